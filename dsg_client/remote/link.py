"""Opening the way to an agent: the one door for the rest of the client.

    async with await open_link(address, settings) as agent:
        repo = await agent.open_repo(address.path)

Start it as a task before anything else is begun: importing asyncssh, signing
in and starting the agent then overlap with the scan.
"""

from __future__ import annotations

from importlib import metadata

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.calls import RemoteAgent
from dsg_client.remote.child import ChildTransport, agent_command
from dsg_client.remote.openssh import explain_ssh, open_openssh
from dsg_client.remote.session import AgentSession
from dsg_client.remote.settings import LinkSettings
from dsg_client.remote.start import StartedAgent, remote_command, start_agent
from dsg_client.remote.transport import Transport
from protocol.compress import have_zstd
from protocol.connection import Connection
from protocol.errors import AgentStartError, UsageError

__all__ = ["open_link"]


async def open_link(address: RemoteAddress, settings: LinkSettings) -> RemoteAgent:
    """Connect to the machine of ``address`` and start an agent there.

    Raises a LinkError that tells what failed (see :mod:`protocol.errors`),
    VersionError for an agent of another protocol, ConfigError for an
    ``~/.ssh/config`` that cannot be read. Nothing is left behind then.
    """
    transport: Transport
    if address.host is None:
        transport = ChildTransport(agent_command(settings.agent_options))
        started = await start_agent(transport, limit=settings.start_limit)
    elif settings.transport == "openssh":
        transport = open_openssh(address, remote_command(settings.agent_command), settings)
        started = await _start_by_ssh(transport, address, settings)
    elif settings.transport == "asyncssh":
        from dsg_client.remote.ssh import open_ssh

        transport = await open_ssh(address, remote_command(settings.agent_command), settings)
        started = await start_agent(transport, tried=settings.agent_command, limit=settings.start_limit)
    else:
        raise UsageError(
            f"there is no transport {settings.transport!r}", hint="write 'asyncssh' or 'openssh'"
        )
    connection = Connection.client(started.preamble, _version(), {"zstd"} if have_zstd() else ())
    session = AgentSession(transport, connection)
    if started.rest:
        session.received(started.rest)
    return RemoteAgent(session, started.preamble)


async def _start_by_ssh(
    transport: ChildTransport, address: RemoteAddress, settings: LinkSettings
) -> StartedAgent:
    # One program connects, asks and runs the agent: what it cannot do in time may have been either.
    limit = settings.start_limit + settings.connect_limit
    try:
        return await start_agent(
            transport, tried=settings.agent_command, limit=limit if settings.ask is None else 10 * limit
        )
    except AgentStartError:
        status = await transport.exit_status(0)
        failure = explain_ssh(bytes(transport.stderr), status, address, settings.again)
        if failure is not None:
            raise failure from None
        raise


def _version() -> str:
    try:
        return metadata.version("dsg-sync")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "0"

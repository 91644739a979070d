"""Opening the way to an agent: the one door for the rest of the client.

    async with await open_link(address, settings) as agent:
        repo = await agent.open_repo(address.path)

Start it as a task before anything else is begun: importing asyncssh, signing
in and starting the agent then overlap with the scan.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.child import ChildTransport, agent_command
from dsg_client.remote.settings import LinkSettings
from dsg_client.remote.transport import Transport
from protocol.errors import AgentStartError, UsageError

if TYPE_CHECKING:
    from dsg_client.remote.calls import RemoteAgent
    from dsg_client.remote.start import StartedAgent

__all__ = ["open_link", "prepare_link"]


def prepare_link() -> None:
    """Import what asyncssh stands on: for the time in which nobody knows yet where to connect, and how.

    It is what takes longest of a connection's imports, and hardly any command does without it.
    """

    import cryptography.hazmat.primitives.serialization  # noqa: F401


async def open_link(
    address: RemoteAddress, settings: LinkSettings, starting: Callable[[], None] = lambda: None
) -> RemoteAgent:
    """Connect to the machine of ``address`` and start an agent there.

    ``starting`` is called when all that connecting needs has been imported:
    the time for work that would have delayed the connection.
    Raises a LinkError that tells what failed (see :mod:`protocol.errors`),
    VersionError for an agent of another protocol, ConfigError for an
    ``~/.ssh/config`` that cannot be read. Nothing is left behind then.
    """
    # What is imported in here is imported while the other program starts: a third of the time to connect.
    transport: Transport
    if address.host is None:
        transport = ChildTransport(agent_command(settings.agent_options))
        started = await _started(transport, "", settings.start_limit, starting)
    elif settings.transport == "openssh":
        from dsg_client.remote.openssh import open_openssh
        from dsg_client.remote.start import remote_command

        transport = open_openssh(address, remote_command(settings.agent_command), settings)
        started = await _start_by_ssh(transport, address, settings, starting)
    elif settings.transport == "asyncssh":
        from dsg_client.remote.start import remote_command

        ssh = _import_ssh()
        starting()
        transport = await ssh.open_ssh(address, remote_command(settings.agent_command), settings)
        started = await _started(transport, settings.agent_command, settings.start_limit, starting)
    else:
        raise UsageError(
            f"there is no transport {settings.transport!r}", hint="write 'asyncssh' or 'openssh'"
        )
    from dsg_client.remote.calls import RemoteAgent
    from dsg_client.remote.session import AgentSession
    from protocol.connection import Connection
    from protocol.preamble import have_zstd
    from protocol.version import VERSION

    connection = Connection.client(started.preamble, VERSION, {"zstd"} if have_zstd() else ())
    session = AgentSession(transport, connection)
    if started.rest:
        session.received(started.rest)
    return RemoteAgent(session, started.preamble)


def _import_ssh() -> ModuleType:
    """:mod:`dsg_client.remote.ssh`, and with it asyncssh, without what makes a third of that import's time.

    asyncssh looks for two libraries in a way that starts ldconfig, a compiler
    and a linker. Without liboqs it still has ML-KEM, from cryptography;
    without nettle it has every MAC but UMAC; and X.509, which it can do
    without, is nothing that OpenSSH's servers know.
    """
    import ctypes.util

    find_library = ctypes.util.find_library

    def find_others(name: str) -> str | None:
        return None if "oqs" in name or "nettle" in name else find_library(name)

    ctypes.util.find_library = find_others
    sys.modules["asyncssh.crypto.x509"] = None  # type: ignore[assignment] # "there is no such module"
    try:
        from dsg_client.remote import ssh
    finally:
        ctypes.util.find_library = find_library
        del sys.modules["asyncssh.crypto.x509"]
    return ssh


async def _started(
    transport: Transport, tried: str, limit: float, starting: Callable[[], None]
) -> StartedAgent:
    starting()
    import dsg_client.remote.calls  # noqa: F401 - now, while the agent starts
    from dsg_client.remote.start import start_agent

    return await start_agent(transport, tried=tried, limit=limit)


async def _start_by_ssh(
    transport: ChildTransport,
    address: RemoteAddress,
    settings: LinkSettings,
    starting: Callable[[], None],
) -> StartedAgent:
    # One program connects, asks and runs the agent: what it cannot do in time may have been either.
    limit = settings.start_limit + settings.connect_limit
    try:
        return await _started(
            transport, settings.agent_command, limit if settings.ask is None else 10 * limit, starting
        )
    except AgentStartError:
        from dsg_client.remote.openssh import SshMessages, explain_ssh

        assert isinstance(transport.stderr, SshMessages)
        status = await transport.exit_status(0)
        failure = explain_ssh(transport.stderr, status, address, settings.again)
        if failure is not None:
            raise failure from None
        raise

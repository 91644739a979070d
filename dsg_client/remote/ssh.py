"""A server reached through asyncssh. Imported only when needed: asyncssh takes 0.2 s.

``~/.ssh/config`` decides as it does for ``ssh``: Host, Match, Include,
HostName, Port, User, IdentityFile, ProxyJump, ProxyCommand and more. asyncssh
does not read the system-wide file.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

import asyncssh
from asyncssh.config import ConfigParseError, SSHClientConfig
from asyncssh.encryption import get_default_encryption_algs

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.dial import acknowledge, dial, silent_host
from dsg_client.remote.hostkeys import known_name
from dsg_client.remote.packets import FastChannel, receive_in_pieces, send_no_padding
from dsg_client.remote.settings import LinkSettings
from dsg_client.remote.signin import SignIn, reason
from dsg_client.remote.transport import ExitStatus, Mailbox, Receiver, Tail
from protocol.codec import Buffer
from protocol.errors import AgentStartError, ConfigError
from protocol.paths import escape

__all__ = ["SshTransport", "open_ssh"]

# Three times as fast as asyncssh's defaults (2 MiB, 32 KiB), more over long distances.
WINDOW = 64 * 1024 * 1024
PACKET = 128 * 1024
HIGH_WATER = 2 * 1024 * 1024
KEEPALIVE_EVERY = 15
KEEPALIVES_MISSED = 4
MOST_HOPS = 8
UNDOING_LIMIT = 5.0
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")


async def open_ssh(address: RemoteAddress, command: str, settings: LinkSettings) -> SshTransport:
    """Connect, sign in and start ``command``.

    HostUnknownError, RefusedError, HostKeyUnknownError, HostKeyChangedError,
    SignInError, AgentStartError (the server runs no commands), ConfigError
    (``~/.ssh/config``), LinkError and LinkLostError for the rest. Nothing is
    left open after a failure.
    """
    assert address.host is not None
    # Without a handler of its own asyncssh's warnings would go to stderr through logging's last resort.
    logging.getLogger("asyncssh").addHandler(logging.NullHandler())
    road = _Road(settings)
    try:
        async with asyncio.timeout(settings.connect_limit) as road.timer:
            connection = await road.connect(address.host, None, address.user, hops=0)
            return await _start(connection, command, road)
    except TimeoutError:
        road.abort()
        raise silent_host(road.at, road.port, settings.connect_limit) from None
    except BaseException:
        road.abort()
        raise


async def _start(connection: asyncssh.SSHClientConnection, command: str, road: _Road) -> SshTransport:
    transport = SshTransport(road)
    try:
        channel, _ = await connection.create_session(
            lambda: transport._session,
            command,
            encoding=None,
            window=WINDOW,
            max_pktsize=PACKET,
            request_pty=False,
            x11_forwarding=False,
        )
    except (asyncssh.Error, OSError) as error:
        raise AgentStartError(
            f"{road.at} does not run commands for this account: {reason(error)}",
            hint="it may allow file transfer (sftp) only: ask the server's administrator",
            facts={"host": road.at},
        ) from None
    channel.set_write_buffer_limits(high=HIGH_WATER)
    transport.fast = FastChannel.install(connection, channel)
    return transport


class SshTransport:
    """A program started on a server, over one session channel without a pty."""

    def __init__(self, road: _Road) -> None:
        self.name = road.at
        self.stderr = Tail()
        self.mailbox = Mailbox()
        self._road = road
        self._session = _Session(self)
        self._closed = False
        self.fast: FastChannel | None = None  # the short way of its channel's data
        self.status: asyncio.Future[ExitStatus | None] = asyncio.get_running_loop().create_future()

    @property
    def congested(self) -> bool:
        return self._session.paused

    def attach(self, receiver: Receiver) -> None:
        self.mailbox.attach(receiver)

    def write(self, chunks: Sequence[Buffer]) -> None:
        channel = self._session.channel
        if channel is not None and not self._closed and not channel.is_closing():
            try:
                if self.fast is not None:
                    self.fast.write(chunks)
                else:
                    channel.write(b"".join(chunks))
            except (OSError, asyncssh.Error):
                pass  # the connection is gone; its end is told through the mailbox

    async def exit_status(self, limit: float) -> ExitStatus | None:
        try:
            return await asyncio.wait_for(asyncio.shield(self.status), limit)
        except TimeoutError:
            return None

    async def close(self, *, undoing: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        channel = self._session.channel
        try:
            if channel is not None and not channel.is_closing():
                channel.write_eof()
                if undoing:
                    await self.exit_status(UNDOING_LIMIT)
        except (OSError, asyncssh.Error):
            pass
        finally:
            self._road.close()

    def abort(self) -> None:
        self._closed = True
        self._road.abort()
        self.mailbox.ended(None)


class _Session(asyncssh.SSHClientSession[bytes]):
    """The callbacks of the channel."""

    def __init__(self, transport: SshTransport) -> None:
        self._transport = transport
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        self.paused = False

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype is None:
            self._transport.mailbox.received(data)
        else:
            self._transport.stderr.add(data)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._transport.mailbox.writable()

    def eof_received(self) -> bool:
        self._transport.mailbox.ended(None)
        return False

    def exit_status_received(self, status: int) -> None:
        self._end(ExitStatus(code=status))

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._end(ExitStatus(signal="SIG" + escape(signal)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(None)
        self._transport.mailbox.ended(exc)

    def _end(self, status: ExitStatus | None) -> None:
        if not self._transport.status.done():
            self._transport.status.set_result(status)


class _Road:
    """The connections to a server, one for each hop of ProxyJump, and the time they may take."""

    timer: asyncio.Timeout

    def __init__(self, settings: LinkSettings) -> None:
        self.settings = settings
        self.connections: list[asyncssh.SSHClientConnection] = []
        self.at = ""  # where the road is being built, for messages
        self.port = 0

    async def connect(
        self, host: str, port: int | None, user: str | None, *, hops: int, over: Any = None
    ) -> asyncssh.SSHClientConnection:
        """Connect to one host and sign in; first to those that its configuration names as jumps."""
        if hops > MOST_HOPS:
            raise ConfigError(
                f"the way to {escape(host)} has more than {MOST_HOPS} hops",
                hint="ProxyJump in ~/.ssh/config seems to go in a circle",
            )
        config = _read_config(host, port, user)
        jumps = config.get("ProxyJump")
        if over is None and isinstance(jumps, str):
            for number, jump in enumerate(jumps.split(",")):
                # As with ssh -J: the first jump may have jumps of its own, the others go through it.
                jump_user, jump_host, jump_port = _split_jump(jump.strip())
                over = await self.connect(jump_host, jump_port, jump_user, hops=hops + number + 1, over=over)
        name = str(config.get("Hostname", host))
        number_ = int(str(config.get("Port", 22)))
        self.at, self.port = known_name(name, number_) if name == host else host, number_
        sock = None
        if over is None and not config.get("ProxyCommand"):
            bind = config.get("BindAddress")
            family = config.get("AddressFamily", 0)
            assert isinstance(family, int)
            sock = await dial(name, number_, family=family, local=(str(bind), 0) if bind else None)
        login = str(config.get("User") or getpass.getuser())
        sign_in = SignIn(config, self.settings, self.ask, host=self.at, name=name, port=number_, login=login)
        connection = None
        try:
            connection, _ = await asyncssh.create_connection(
                lambda: sign_in,
                host,
                number_,
                username=login,
                sock=sock,
                tunnel=over,
                config=_config_files(),
                known_hosts=sign_in.authorities(),
                server_host_key_algs=sign_in.host_key_algorithms(),
                encryption_algs=_ciphers(config),
                compression_algs=None,  # DSG compresses what is worth it
                client_keys=None,
                agent_path=None,
                agent_forwarding=False,
                x509_trusted_certs=None,
                connect_timeout=None,
                login_timeout=0,
                **_keepalive(config),
            )
        except (asyncssh.Error, OSError, ValueError, EOFError) as error:
            raise sign_in.explain(error) from None
        finally:
            if sock is not None and connection is None:
                sock.close()
        self.connections.append(connection)
        send_no_padding(connection)
        receive_in_pieces(connection)
        if sock is not None:
            _acknowledge_all(connection, sock)
        return connection

    async def ask(self, prompt: str, secret: bool) -> str | None:
        """The user's answer, None when there is nobody to ask. The clock stands still meanwhile."""
        if self.settings.ask is None:
            return None
        loop = asyncio.get_running_loop()
        when = self.timer.when()
        left = None if when is None else max(1.0, when - loop.time())
        self.timer.reschedule(None)
        try:
            return await self.settings.ask(prompt, secret)
        except EOFError:
            return None
        finally:
            self.timer.reschedule(None if left is None else loop.time() + left)

    def close(self) -> None:
        """End every connection, without waiting for the other sides."""
        for connection in reversed(self.connections):
            connection.close()

    def abort(self) -> None:
        """Let go of every connection."""
        for connection in reversed(self.connections):
            connection.abort()


def _acknowledge_all(connection: asyncssh.SSHClientConnection, sock: socket.socket) -> None:
    """Acknowledge at once what comes before the session runs, for no message of sshd's to wait for it."""
    data_received = connection.data_received

    def receive(data: bytes, datatype: int | None = None) -> None:
        data_received(data, datatype)
        acknowledge(sock)

    connection.data_received = receive  # type: ignore[method-assign]


def _config_files() -> list[str]:
    path = os.path.expanduser("~/.ssh/config")
    return [path] if os.access(path, os.R_OK) else []


def _read_config(host: str, port: int | None, user: str | None) -> SSHClientConfig:
    """What ``~/.ssh/config`` says of ``host``; ConfigError, with file and line, where it cannot be read."""
    try:
        config = SSHClientConfig.load(
            None, _config_files(), False, False, False, getpass.getuser(), user or (), host, port or ()
        )
    except (ConfigParseError, OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"~/.ssh/config cannot be used: {reason(error)}",
            hint="correct it, or set 'transport: openssh' in DSG's configuration to have ssh itself read it",
        ) from None
    assert isinstance(config, SSHClientConfig)
    return config


def _split_jump(text: str) -> tuple[str | None, str, int | None]:
    """(user, host, port) of one hop of ProxyJump."""
    text = text.removeprefix("ssh://")
    user, at, rest = text.rpartition("@")
    host, colon, port = rest.rpartition(":")
    if rest.endswith("]") or not port.isdigit():
        host, colon = rest, ""
    if not host or host.startswith("-"):
        raise ConfigError(
            f"ProxyJump in ~/.ssh/config names no host: {escape(text)!r}", hint="write [user@]host[:port]"
        )
    return (user if at else None), host.strip("[]"), (int(port) if colon else None)


def _ciphers(config: SSHClientConfig) -> Any:
    """AES-GCM first, unless ``~/.ssh/config`` names ciphers."""
    if config.get("Ciphers"):
        return ()
    others = [alg.decode() for alg in get_default_encryption_algs()]
    return [*_FAST_CIPHERS, *(alg for alg in others if alg not in _FAST_CIPHERS)]


def _keepalive(config: SSHClientConfig) -> dict[str, int]:
    """Off by default in asyncssh: a frozen server would hang the sign-in."""
    if config.get("ServerAliveInterval") is not None:
        return {}
    return {"keepalive_interval": KEEPALIVE_EVERY, "keepalive_count_max": KEEPALIVES_MISSED}

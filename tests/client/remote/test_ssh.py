"""The link through a real sshd, by asyncssh and by the system's ssh; each failure told apart."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsg_client.remote import ssh
from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.calls import RemoteAgent
from dsg_client.remote.link import open_link
from dsg_client.remote.settings import LinkSettings
from protocol.errors import (
    AgentStartError,
    ConfigError,
    HostKeyChangedError,
    HostKeyUnknownError,
    HostUnknownError,
    LinkError,
    LinkLostError,
    RefusedError,
    SignInError,
)
from tests.hosts.proxy import Proxy
from tests.hosts.sshd import REPOSITORY, SshClient, SshHost, ssh_host

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh", "ssh-keygen")]

BOTH = pytest.mark.parametrize("transport", ["asyncssh", "openssh"])
PATH = "/srv/none"
# Of nobody; made by: openssl req -x509 -new -key KEY -subj /CN=x
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBbjCCAROgAwIBAgIUBCjZ+weNQiu9HjxLP2jK9GW7PowwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAeFw0yNjExMjMwNjUxMDdaFw0zNjExMjAwNjUxMDdaMAwx
CjAIBgNVBAMMAXgwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAScK0R+0iwo4SPI
yaAUqxNkf4v/HJwssXXM8WpD73pbxFnmyxmW/for/k2puf2M0SxrpZFSzF/4K+1M
2sYtOBAPo1MwUTAdBgNVHQ4EFgQUnPk9aqAPTCgpr9O4LaBxau2ytz0wHwYDVR0j
BBgwFoAUnPk9aqAPTCgpr9O4LaBxau2ytz0wDwYDVR0TAQH/BAUwAwEB/zAKBggq
hkjOPQQDAgNJADBGAiEA6rr2xwvocTPs87t/AIUfl0PjdHT+Uegb/Qp4/QmszE8C
IQCk4Ees3DG5TwZgtXOkgVVDP67isgDH+SgQZWbjWfE4CQ==
-----END CERTIFICATE-----
"""


@pytest.fixture(scope="module")
def host() -> Iterator[SshHost]:
    with ssh_host() as made:
        made.install_agent()
        yield made


_count = 0


def person(host: SshHost, patch: pytest.MonkeyPatch, **options: object) -> SshClient:
    global _count
    _count += 1
    client = host.client(f"p{_count}", **options)  # type: ignore[arg-type]
    client.enter(patch)
    return client


async def connect(client: SshClient, transport: str = "asyncssh", **settings: object) -> RemoteAgent:
    address = RemoteAddress(PATH, client.alias)
    made = LinkSettings(transport=transport, **settings)  # type: ignore[arg-type]
    return await open_link(address, made)


async def works(client: SshClient, transport: str = "asyncssh", **settings: object) -> None:
    async with await connect(client, transport, **settings) as agent:
        assert [check.name for check in await agent.doctor()]


def answers(*given: str) -> tuple[Callable[[str, bool], Awaitable[str]], list[tuple[str, bool]]]:
    """Somebody at a terminal who gives these answers; and what was asked."""
    asked: list[tuple[str, bool]] = []
    left = list(given)

    async def ask(prompt: str, secret: bool) -> str:
        asked.append((prompt, secret))
        if not left:
            raise EOFError
        return left.pop(0)

    return ask, asked


async def gone(host: SshHost, limit: float = 5.0) -> bool:
    """Whether all agents of the host end within ``limit``."""
    deadline = time.monotonic() + limit
    while host.running_agents():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


# It works.


@pytest.mark.skipif(sys.platform != "linux", reason="no TCP_QUICKACK here; to have it: make test, on Linux")
async def test_nothing_of_a_sign_in_waits_for_an_acknowledgement(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = []
    made: list[socket.socket] = []
    dialled, start = ssh.dial, ssh._start

    async def dial(*args: Any, **options: Any) -> socket.socket:
        made.append(await dialled(*args, **options))
        return made[-1]

    async def started(*args: Any) -> Any:
        transport = await start(*args)
        quick.append(made[-1].getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))
        return transport

    monkeypatch.setattr(ssh, "dial", dial)
    monkeypatch.setattr(ssh, "_start", started)
    await works(person(host, monkeypatch))
    assert quick == [1]


@BOTH
async def test_a_link_and_nothing_left_behind(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    await works(person(host, monkeypatch), transport)
    assert await gone(host)


@BOTH
async def test_a_configured_command(host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    await works(
        person(host, monkeypatch), transport, agent_command=f"{host.bin}/dsg-remote-agent --role read"
    )


async def test_config_with_include_and_a_key_of_another_name(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = person(host, monkeypatch)
    key = client.make_key(path=client.ssh / "work key")
    host.authorize(key)
    client.key.unlink()
    client.write_config(key=client.ssh / "none")
    (client.ssh / "included").write_text(
        client.config.read_text().replace(str(client.ssh / "none"), f'"{key}"')
    )
    client.config.write_text("Include included\n\nHost *\n  User nobody-by-default\n")
    await works(client)


async def test_the_ssh_agents_key(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    client.start_agent(client.key)
    client.key.rename(client.key.with_name("hidden"))
    client.enter(monkeypatch)
    await works(client)


async def test_identities_only_offers_nothing_else(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    client.start_agent(client.key)
    other = client.make_key(path=client.ssh / "other")
    client.write_config("IdentitiesOnly yes", key=other)
    client.enter(monkeypatch)
    with pytest.raises(SignInError) as caught:
        await connect(client)
    assert "ssh-agent" not in caught.value.message
    assert str(other) in caught.value.message


async def test_an_encrypted_key_is_asked_for_on_a_terminal_only(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = person(host, monkeypatch, passphrase="correct horse")
    with pytest.raises(SignInError, match="encrypted, and there is no terminal"):
        await connect(client)
    ask, asked = answers("wrong", "correct horse")
    await works(client, ask=ask)
    assert [(str(client.key) in prompt, secret) for prompt, secret in asked] == [(True, True)] * 2
    ask, asked = answers("no", "no", "no", "no")
    with pytest.raises(SignInError, match="was not unlocked"):
        await connect(client, ask=ask)
    assert len(asked) == 3


async def test_no_passphrase_is_asked_for_a_key_that_the_server_does_not_want(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = person(host, monkeypatch, passphrase="secret", authorized=False)
    ask, asked = answers("secret")
    with pytest.raises(SignInError):
        await connect(client, ask=ask)
    assert asked == []


async def test_an_encrypted_key_without_its_public_half(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = person(host, monkeypatch, passphrase="secret")
    client.key.with_suffix(".pub").unlink()
    ask, asked = answers("secret")
    await works(client, ask=ask)
    assert len(asked) == 1


@pytest.mark.parametrize("passphrase", ["", "let me in"], ids=["plain", "encrypted"])
async def test_an_x509_certificate_behind_a_key_is_passed_over(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, passphrase: str
) -> None:
    client = person(host, monkeypatch, passphrase=passphrase)
    with client.key.open("a") as file:
        file.write(CERTIFICATE)
    ask, asked = answers(passphrase)
    await works(client, ask=ask)
    assert len(asked) == bool(passphrase)


async def test_proxy_jump_checks_each_host(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    with ssh_host() as jump:
        jumping = f"\nHost jump\n  HostName 127.0.0.1\n  Port {jump.port}\n  IdentityFile {client.key}\n"
        jumping += f"  UserKnownHostsFile {client.known_hosts}\n"
        client.write_config("ProxyJump jump")
        client.config.write_text(client.config.read_text() + jumping)
        with (jump.folder / "authorized" / client.user).open("w") as file:
            file.write(client.key.with_suffix(".pub").read_text())
        with pytest.raises(HostKeyUnknownError, match=f":{jump.port}"):
            await connect(client)
        with client.known_hosts.open("a") as file:
            file.write(f"[127.0.0.1]:{jump.port} {jump.public_host_key}\n")
        await works(client)
        assert "Accepted publickey" in jump.log.read_text()
        # The last hop's failure is told as what it is.
        client.write_config("ProxyJump jump", port=1)
        client.config.write_text(client.config.read_text() + jumping)
        with pytest.raises(RefusedError, match="cannot be reached from the jump host"):
            await connect(client)


async def test_a_proxy_command(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    pipe = client.home / "pipe.py"
    pipe.write_text(
        "import os, socket, threading\n"
        f"end = socket.create_connection(('127.0.0.1', {host.port}))\n"
        "down = lambda: [os.write(1, b) for b in iter(lambda: end.recv(65536), b'')]\n"
        "threading.Thread(target=down, daemon=True).start()\n"
        "[end.sendall(b) for b in iter(lambda: os.read(0, 65536), b'')]\n"
    )
    client.write_config(f"ProxyCommand {sys.executable} {pipe}")
    await works(client)


# Each failure is told apart.


@BOTH
async def test_host_unknown(host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    client = person(host, monkeypatch)
    with pytest.raises(HostUnknownError, match=r"no-such-host\.invalid") as caught:
        await open_link(RemoteAddress(PATH, "no-such-host.invalid"), LinkSettings(transport=transport))
    assert caught.value.hint
    assert client.config.exists()


@BOTH
async def test_refused(host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    client = person(host, monkeypatch)
    client.write_config(port=1)
    with pytest.raises(RefusedError) as caught:
        await connect(client, transport)
    assert caught.value.facts["reason"] == "refused"


@BOTH
async def test_a_port_where_nobody_answers(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    client = person(host, monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client.write_config(port=silent.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(LinkError, match=r"answer|timed out|time-out") as caught:
            await connect(client, transport, connect_limit=1.0, start_limit=1.0)
        assert time.monotonic() - started < 4
        assert caught.value.hint


async def test_something_that_is_no_ssh_server(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example ESMTP\r\n" * 300)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        client.write_config(port=server.sockets[0].getsockname()[1])
        with pytest.raises(LinkError) as caught:
            await connect(client, connect_limit=5.0)
        assert caught.value.hint


@BOTH
async def test_a_host_key_that_is_not_known(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    client = person(host, monkeypatch, trusted=False)
    with pytest.raises(HostKeyUnknownError) as caught:
        await connect(client, transport, again="dsg clone x:/y")
    assert host.fingerprint in caught.value.message
    assert "dsg clone x:/y --accept-new-host-key" in caught.value.hint
    assert not client.known_hosts.exists()
    # Accepted, it is written, and known from then on to both.
    await works(client, transport, accept_new_host_key=True)
    assert host.public_host_key.split()[1] in client.known_hosts.read_text()
    await works(client, "asyncssh")
    await works(client, "openssh")


@BOTH
async def test_a_host_key_that_changed_is_not_accepted(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    client = person(host, monkeypatch, trusted=False)
    other = client.make_key(path=client.ssh / "other_host")
    public = " ".join(other.with_suffix(".pub").read_text().split()[:2])
    before = f"# comment\n[127.0.0.1]:{host.port} {public}\n"
    client.known_hosts.write_text(before)
    with pytest.raises(HostKeyChangedError) as caught:
        await connect(client, transport, accept_new_host_key=True)
    assert host.fingerprint in caught.value.message
    assert str(client.known_hosts) in caught.value.message
    assert "2" in caught.value.message.rpartition(str(client.known_hosts))[2]
    assert client.known_hosts.read_text() == before


async def test_a_revoked_host_key(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    with client.known_hosts.open("a") as file:
        file.write(f"@revoked * {host.public_host_key}\n")
    with pytest.raises(HostKeyChangedError, match="revoked"):
        await connect(client, accept_new_host_key=True)


async def test_known_hosts_none_does_not_mean_trust(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    client.config.write_text(client.config.read_text().replace(str(client.known_hosts), "none"))
    with pytest.raises(HostKeyUnknownError):
        await connect(client)


@BOTH
async def test_sign_in_refused_names_the_keys(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    client = person(host, monkeypatch, authorized=False)
    with pytest.raises(SignInError) as caught:
        await connect(client, transport)
    assert str(client.key) in caught.value.message
    if transport == "asyncssh":
        assert "publickey" in caught.value.facts["accepted"]
    assert "authorized_keys" in caught.value.hint


@BOTH
async def test_no_agent_on_the_server(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    with ssh_host() as bare:
        client = person(bare, monkeypatch)
        with pytest.raises(AgentStartError, match="no DSG agent was found") as caught:
            await connect(client, transport)
        assert str(bare.bin) in caught.value.facts["path"]


@BOTH
async def test_an_agent_that_dies_at_once(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    with ssh_host() as sick:
        sick.install_agent(command="#!/bin/sh\necho 'cannot open shared object' >&2\nexit 127\n")
        client = person(sick, monkeypatch)
        with pytest.raises(AgentStartError, match="cannot open shared object"):
            await connect(client, transport)


async def test_a_key_that_may_only_run_something_else(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch, pinned="echo only backups here")
    with pytest.raises(AgentStartError, match="only backups here"):
        await connect(client)


async def test_a_pinned_key_reaches_its_agent(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch, pinned="dsg-remote-agent --role read")
    await works(client, agent_command="dsg-remote-agent --role admin")


async def test_a_config_that_cannot_be_read(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    client.write_config("Port many")
    with pytest.raises(ConfigError, match="config cannot be used") as caught:
        await connect(client)
    assert "line" in caught.value.message


# The agent and the connection die.


@BOTH
async def test_a_killed_agent_is_told(host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    client = person(host, monkeypatch)
    async with await connect(client, transport) as agent:
        await agent.doctor()
        for pid in host.running_agents():
            os.kill(pid, 9)
        with pytest.raises(LinkLostError, match=r"agent|lost"):
            for _ in range(100):
                await agent.doctor()
                await asyncio.sleep(0.01)


@BOTH
async def test_a_cut_connection_is_told_and_the_agent_ends(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    client = person(host, monkeypatch)
    with Proxy(host.port) as proxy:
        client.write_config(port=proxy.port)
        client.trust(proxy.port)
        async with await connect(client, transport) as agent:
            await agent.doctor()
            assert proxy.up > 1000 and proxy.down > 1000
            proxy.cut()
            with pytest.raises(LinkLostError):
                await agent.doctor()
    assert await gone(host)


async def test_a_client_that_is_killed_leaves_no_agent(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = person(host, monkeypatch)
    script = (
        "import asyncio\n"
        "from dsg_client.remote.link import open_link, LinkSettings, RemoteAddress\n"
        "async def main():\n"
        f"    agent = await open_link(RemoteAddress('/x', {client.alias!r}), LinkSettings())\n"
        "    print('there', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    running = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs on the loop meanwhile
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert running.stdout and running.stdout.readline() == b"there\n"
    assert host.running_agents()
    running.kill()
    running.wait()
    assert await gone(host)


async def test_a_cancelled_start_leaves_nothing(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    for pause in (0.02, 0.05, 0.1, 0.2):
        opening = asyncio.create_task(connect(client))
        await asyncio.sleep(pause)
        opening.cancel()
        try:
            agent = await opening
        except asyncio.CancelledError:
            continue
        await agent.close()
    assert await gone(host)


async def test_closing_takes_no_time(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    agent = await connect(client)
    await agent.doctor()
    started = time.perf_counter()
    await agent.close()
    assert time.perf_counter() - started < 0.05
    assert await gone(host)


async def test_ctrl_c_does_not_reach_through_the_systems_ssh(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = person(host, monkeypatch)
    ask, _ = answers()
    async with await connect(client, "openssh", ask=ask) as agent:
        pid = agent.session.transport.pid  # type: ignore[attr-defined]
        # With a terminal it must stay in the foreground group, to ask there, and there Ctrl-C goes to all.
        assert os.getpgid(pid) == os.getpgrp()
        os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0.1)
        assert await agent.doctor()


async def test_a_frozen_connection_is_silence(host: SshHost, monkeypatch: pytest.MonkeyPatch) -> None:
    client = person(host, monkeypatch)
    with Proxy(host.port) as proxy:
        client.write_config(port=proxy.port)
        client.trust(proxy.port)
        agent = await connect(client)
        agent.session._heartbeat_every = 0.1
        agent.session._silence_limit = 0.5
        agent.session._tick()
        proxy.freeze()
        with pytest.raises(LinkLostError, match="nothing was heard"):
            await asyncio.wait_for(agent.doctor(), 10)
        await agent.close(undoing=True)


@pytest.mark.parametrize(("cipher", "needed"), [("aes256-gcm@openssh.com", False), ("aes256-ctr", True)])
async def test_empty_packets_only_where_the_cipher_needs_them(
    host: SshHost, monkeypatch: pytest.MonkeyPatch, cipher: str, needed: bool
) -> None:
    """asyncssh puts one before every packet, which doubles their number."""
    import asyncssh
    from asyncssh.constants import MSG_CHANNEL_REQUEST, MSG_IGNORE

    client = person(host, monkeypatch)
    with client.config.open("a") as config:
        config.write(f"Host *\n  Ciphers {cipher}\n")
    sent: list[int] = []
    original = asyncssh.SSHClientConnection.send_packet

    def counting(self: asyncssh.SSHClientConnection, pkttype: int, *args: bytes, **options: object) -> None:
        sent.append(pkttype)
        original(self, pkttype, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncssh.SSHClientConnection, "send_packet", counting)
    await works(client)
    after = sent[sent.index(MSG_CHANNEL_REQUEST) :]
    assert len(after) > 3 and (MSG_IGNORE in after) == needed


async def test_over_a_long_way_requests_do_not_wait_for_each_other(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = person(host, monkeypatch)
    with Proxy(host.port, delay=0.05) as proxy:
        client.write_config(port=proxy.port)
        client.trust(proxy.port)
        command = f"{sys.executable} {REPOSITORY}/tests/client/remote/agent_program.py serve"
        async with await connect(client, agent_command=command) as agent:
            started = time.monotonic()
            await agent.session.call("echo", {})
            one = time.monotonic() - started
            started = time.monotonic()
            await asyncio.gather(*(agent.session.call("echo", {"n": n}) for n in range(32)))
            assert time.monotonic() - started < 3 * one
            # A body does not stop at the end of a window of 2 MiB: asyncssh's default gives 18 MB/s here.
            size, started = 24 * 1024 * 1024, time.monotonic()
            async with await agent.session.request("give", {"size": size, "piece": 512 * 1024}) as exchange:
                async for piece in exchange.body():
                    size -= len(piece.payload)
            assert size == 0
            assert 24 / (time.monotonic() - started) > 25


async def test_more_than_a_gigabyte_each_way_crosses_a_rekeying(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = person(host, monkeypatch)
    command = f"{sys.executable} {REPOSITORY}/tests/client/remote/agent_program.py serve"
    size = (1 << 30) + (200 << 20)
    block = random.Random(1).randbytes(512 * 1024)
    async with await connect(client, agent_command=command) as agent:
        crc = 0
        async with await agent.session.request("take", {}, body=True) as exchange:
            for _ in range(size // len(block)):
                crc = zlib.crc32(block, crc)
                assert await exchange.send(block)
            exchange.end()
            assert await exchange.response() == {"bytes": size, "crc": crc, "changed": False}
        expected = got = 0
        pattern = bytes(range(256)) * 2048
        async with await agent.session.request("give", {"size": size, "piece": len(pattern)}) as exchange:
            async for piece in exchange.body():
                got = zlib.crc32(piece.payload, got)
        for _ in range(size // len(pattern)):
            expected = zlib.crc32(pattern, expected)
        assert got == expected
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < 400 * 1024, "the body was gathered in memory"

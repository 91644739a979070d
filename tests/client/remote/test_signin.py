"""Signing in by what a person types, and odd servers: a real sshd where it can, asyncssh's server else."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.link import open_link
from dsg_client.remote.settings import LinkSettings
from protocol.errors import AgentStartError, ConfigError, HostKeyChangedError, LinkError, SignInError
from tests.client.remote.conftest import program
from tests.conftest import find_program
from tests.hosts.accounts import unix_accounts
from tests.hosts.sshd import SshHost, ssh_host

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh", "ssh-keygen")]


def answers(*given: str) -> tuple[Callable[[str, bool], Awaitable[str]], list[tuple[str, bool]]]:
    asked: list[tuple[str, bool]] = []
    left = list(given)

    async def ask(prompt: str, secret: bool) -> str:
        asked.append((prompt, secret))
        if not left:
            raise EOFError
        return left.pop(0)

    return ask, asked


async def sign_in(alias: str, **settings: Any) -> None:
    async with await open_link(RemoteAddress("/x", alias), LinkSettings(**settings)) as agent:
        assert agent.preamble.dsg


def set_password(user: str, password: str) -> None:
    program = find_program("chpasswd")
    assert program
    subprocess.run([program], input=f"{user}:{password}\n", text=True, check=True)


async def test_a_password_is_asked_for_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with unix_accounts(1) as (account,), ssh_host(options=["PasswordAuthentication yes"]) as host:
        set_password(account.name, "open-sesame-7")
        client = host.client(account=account, authorized=False)
        client.enter(monkeypatch)
        with pytest.raises(SignInError) as refused:
            await sign_in(client.alias)
        assert "password" in refused.value.facts["accepted"]
        ask, asked = answers("wrong", "wronger", "wrongest", "more")
        with pytest.raises(SignInError, match="a password"):
            await sign_in(client.alias, ask=ask)
        assert len(asked) == 3 and all(secret for _, secret in asked)
        ask, asked = answers("open-sesame-7")
        with pytest.raises(AgentStartError, match="signed in as"):
            await sign_in(client.alias, ask=ask, agent_command="echo signed in as $USER")
        assert account.name in asked[0][0]


class Quiz(asyncssh.SSHServer):
    """Asks two questions, one of them shown while it is answered."""

    def password_auth_supported(self) -> bool:
        return False

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        return "Second factor", "Look at your \x1b[31mtoken", "", [("Code:", False), ("Colour:", True)]

    def validate_kbdint_response(self, username: str, responses: Any) -> bool:
        return list(responses) == ["123456", "blue"]


@asynccontextmanager
async def odd_server(folder: Path, factory: Any, **options: Any) -> AsyncIterator[str]:
    """An asyncssh server; gives the alias by which ``~/.ssh/config`` (in ``folder``) knows it."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(factory, "127.0.0.1", 0, server_host_keys=[key], **options)
    port = server.sockets[0].getsockname()[1]
    ssh = folder / ".ssh"
    ssh.mkdir()
    public = key.export_public_key().decode().strip()
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
    (ssh / "config").write_text(f"Host odd\n  HostName 127.0.0.1\n  Port {port}\n")
    try:
        yield "odd"
    finally:
        server.close()


async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
    child = await asyncio.create_subprocess_exec(
        *program("serve"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin and child.stdout

    async def up(sink: asyncio.StreamWriter) -> None:
        while chunk := await process.stdin.read(65536):
            sink.write(chunk)
        sink.close()

    async def down(source: asyncio.StreamReader) -> None:
        while chunk := await source.read(65536):
            process.stdout.write(chunk)

    await asyncio.gather(up(child.stdin), down(child.stdout))
    process.exit(await child.wait())


async def test_questions_of_the_server_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with odd_server(tmp_path, Quiz, process_factory=serve, encoding=None) as alias:
        with pytest.raises(SignInError):
            await sign_in(alias)
        ask, asked = answers("123456", "blue")
        await sign_in(alias, ask=ask)
        assert [secret for _, secret in asked] == [True, False]
        assert "Look at your \\x1b[31mtoken" in asked[0][0] and "\x1b" not in asked[0][0]
        assert asked[1][0].strip() == "Colour:"


async def test_the_clock_stands_while_the_user_thinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    async def think(prompt: str, secret: bool) -> str:
        await asyncio.sleep(1.0)
        return "123456" if secret else "blue"

    async with odd_server(tmp_path, Quiz, process_factory=serve, encoding=None) as alias:
        await sign_in(alias, ask=think, connect_limit=1.5)


class Open(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


async def test_a_server_that_runs_no_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with odd_server(tmp_path, Open) as alias:
        with pytest.raises(AgentStartError, match="does not run commands") as caught:
            await sign_in(alias)
        assert "sftp" in caught.value.hint


async def test_no_common_encryption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with odd_server(tmp_path, Open, encryption_algs=["aes128-ctr"]) as alias:
        config = tmp_path / ".ssh" / "config"
        config.write_text(config.read_text() + "  Ciphers aes256-ctr\n")
        with pytest.raises(LinkError, match="no common encryption") as caught:
            await sign_in(alias)
        assert "openssh" in caught.value.hint


async def test_an_account_for_files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sftp = next(
        (
            path
            for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server")
            if Path(path).exists()
        ),
        shutil.which("sftp-server"),
    )
    if sftp is None:
        pytest.skip("sftp-server not found; to have it: sudo apt-get install -y openssh-sftp-server")
    with ssh_host() as host:
        client = host.client(pinned=sftp)
        client.enter(monkeypatch)
        started = time.monotonic()
        with pytest.raises(AgentStartError, match="nothing came at all") as caught:
            await sign_in(client.alias, start_limit=1.0)
        assert time.monotonic() - started < 5
        assert "sftp" in caught.value.hint


@pytest.mark.parametrize("transport", ["asyncssh", "openssh"])
async def test_a_bad_line_in_the_config(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    with ssh_host(started=False) as host:
        client = host.client()
        client.enter(monkeypatch)
        client.write_config("ServerAliveInterval often")
        with pytest.raises(ConfigError) as caught:
            await sign_in(client.alias, transport=transport)
        assert "line 7" in caught.value.message.lower()


def certify(host: SshHost, folder: Path) -> str:
    """Make an authority, let it sign the host's key for 127.0.0.1; the authority's public key."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ca")], check=True)
    signing = ["ssh-keygen", "-q", "-s", str(folder / "ca"), "-I", "host", "-h", "-n", "127.0.0.1,data-host"]
    subprocess.run([*signing, str(host.folder / "host_key.pub")], check=True)
    return " ".join((folder / "ca.pub").read_text().split()[:2])


async def test_a_certified_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ssh_host(started=False) as host:
        authority = certify(host, tmp_path)
        host.options = [f"HostCertificate {host.folder}/host_key-cert.pub"]
        host.start()
        host.install_agent()
        client = host.client(trusted=False)
        client.enter(monkeypatch)
        client.known_hosts.write_text(f"@cert-authority * {authority}\n")
        await sign_in(client.alias)
        # Revoked, the authority's word is worth nothing.
        client.known_hosts.write_text(f"@cert-authority * {authority}\n@revoked * {authority}\n")
        with pytest.raises(HostKeyChangedError, match="revoked"):
            await sign_in(client.alias)

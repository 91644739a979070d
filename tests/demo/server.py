"""An SSH server on loopback for one account: the one who runs this.

OpenSSH's where it is installed, as root or as an ordinary user; else
asyncssh's, which needs nothing but Python.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import frozen

__all__ = [
    "Server",
    "find_sshd",
    "free_port",
    "make_key",
    "session_environment",
    "start_asyncssh",
    "start_openssh",
    "stop",
]

Say = Callable[[Sequence[str]], None]

START_SECONDS = 15.0


@frozen
class Server:
    """A running server; ``stop`` ends it."""

    name: str  # as it announces itself, e.g. OpenSSH_9.2p1
    port: int
    user: str
    host_key: Path
    child: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.child.pid


def find_sshd() -> str | None:
    """Where OpenSSH's server is; it must be started by its absolute path."""
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def session_environment(bin_folder: Path) -> dict[str, str]:
    """What a session's programs get: a PATH as if ``dsg-remote-agent`` were installed on the server.

    SHLVL keeps bash from taking itself for a login over the network: what the
    profile of the account that runs this does, and how long that takes, is
    neither shown nor measured.
    """
    return {"PATH": f"{bin_folder}:/usr/local/bin:/usr/bin:/bin", "SHLVL": "1"}


def make_key(path: Path, comment: str, say: Say) -> None:
    """An ed25519 key without passphrase at ``path``, its public half beside it."""
    if shutil.which("ssh-keygen"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
        say(argv)
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        return
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    key.write_private_key(str(path))
    path.chmod(0o600)
    key.write_public_key(f"{path}.pub")


def start_openssh(
    folder: Path, port: int, keys: Sequence[Path], environment: Mapping[str, str], say: Say
) -> Server:
    """OpenSSH's sshd with ``folder`` for its configuration, key and log.

    ``keys`` are the public keys let in; ``environment`` is what a session's
    programs get beside the usual. RuntimeError with the log's end when it
    does not come up.
    """
    sshd = find_sshd()
    if sshd is None:
        raise RuntimeError("sshd is not installed: sudo apt-get install -y openssh-server")
    folder.mkdir(parents=True, exist_ok=True)
    host_key = folder / "host_key"
    make_key(host_key, "demo server", say)
    allowed = folder / "authorized_keys"
    allowed.write_text("".join(key.read_text() for key in keys))
    config = folder / "sshd_config"
    set_env = " ".join(_quoted(f"{name}={value}") for name, value in environment.items())
    config.write_text(
        "\n".join(
            [
                "ListenAddress 127.0.0.1",
                f"Port {port}",
                f"HostKey {_quoted(str(host_key))}",
                f"AuthorizedKeysFile {_quoted(str(allowed))}",
                f"PidFile {_quoted(str(folder / 'sshd.pid'))}",
                "AuthenticationMethods publickey",
                "PermitRootLogin prohibit-password",
                # The folder may lie below one that others can write to, such as /tmp.
                "StrictModes no",
                f"UsePAM {'yes' if _locked_root() else 'no'}",
                f"SetEnv {set_env}" if set_env else "",
                "LogLevel VERBOSE",
            ]
        )
        + "\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd as root drops its privileges
    log = folder / "sshd.log"
    argv = [sshd, "-D", "-f", str(config), "-E", str(log)]
    say(argv)
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    return Server(_await(child, port, log), port, getpass.getuser(), host_key, child)


def start_asyncssh(
    folder: Path, port: int, keys: Sequence[Path], environment: Mapping[str, str], say: Say
) -> Server:
    """asyncssh's server, the same way."""
    folder.mkdir(parents=True, exist_ok=True)
    host_key = folder / "host_key"
    make_key(host_key, "demo server", say)
    allowed = folder / "authorized_keys"
    allowed.write_text("".join(key.read_text() for key in keys))
    log = folder / "server.log"
    argv = [sys.executable, "-m", "tests.demo.asyncssh_server", str(port), str(host_key), str(allowed)]
    say(argv)
    with log.open("wb") as output:
        child = subprocess.Popen(
            argv,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Server(_await(child, port, log), port, getpass.getuser(), host_key, child)


def stop(server: Server) -> None:
    """End the server by its process id and wait for it."""
    server.child.terminate()
    try:
        server.child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.child.kill()
        server.child.wait()


def _await(child: subprocess.Popen[bytes], port: int, log: Path) -> str:
    """The software that greets on ``port``, e.g. ``OpenSSH_9.2p1``."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                greeting = probe.recv(255).decode("ascii", "replace")
            if greeting.startswith("SSH-2.0-"):
                return greeting.removeprefix("SSH-2.0-").split()[0]
        except OSError:
            pass
        time.sleep(0.05)
    child.kill()
    child.wait()
    text = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    raise RuntimeError(f"the SSH server did not come up on port {port}:\n{text}")


def _locked_root() -> bool:
    """Whether root's account is locked, in which case sshd lets it in only with PAM."""
    if os.geteuid() != 0:
        return False
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    user = getpass.getuser()
    return any(line.split(":")[0] == user and line.split(":")[1].startswith("!") for line in lines)


def _quoted(word: str) -> str:
    """A word of sshd_config."""
    return f'"{word}"' if shlex.quote(word) != word else word

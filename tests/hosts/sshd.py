"""OpenSSH's own server on loopback, with its keys, its users' folders and the clients' ``~/.ssh``.

Works as root and as an ordinary user: whoever runs it is the account that is
signed in to (as root, :mod:`tests.hosts.accounts` makes more accounts). What
an account's login shell and profile would do is done by a script that
``authorized_keys`` forces, so that nothing of the machine is changed.

    with ssh_host() as host:
        host.install_agent()
        ann = host.client("ann")
        subprocess.run(["dsg", ...], env=ann.environment)   # reaches it as ann.alias + ":/path"
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import find_program
from tests.hosts.accounts import Account

REPOSITORY = Path(__file__).resolve().parents[2]

LAUNCHER = """\
#!/bin/sh
echo $$ > {agents}/$$
exec {python} -I -c 'import sys; sys.path[1:1] = sys.argv[1].split(":"); del sys.argv[1]
sys.argv[0] = "dsg-remote-agent"
from dsg_remote_agent.main import main; sys.exit(main())' {folders} "$@"
"""

# Runs as the account; $1 is a pinned command or empty. SHLVL is unset so that bash takes itself
# for a login over the network and reads ~/.bashrc, as it does behind any sshd.
SESSION = """\
#!/bin/sh
if [ -r {folder}/environment ]; then . {folder}/environment; fi
HOME={home}; PATH={bin}:/usr/bin:/bin; export HOME PATH
cd "$HOME" || exit 1
command=${{1:-$SSH_ORIGINAL_COMMAND}}
exec env -u SHLVL {shell} -c "$command"
"""


class SshClient:
    """One person's machine: a home with keys, ``~/.ssh/config`` and known_hosts."""

    def __init__(self, host: SshHost, name: str, user: str) -> None:
        self.host = host
        self.name = name
        self.user = user
        self.alias = "data-host"
        self.home = host.folder / "clients" / name
        self.ssh = self.home / ".ssh"
        self.ssh.mkdir(parents=True, mode=0o700)
        self.key = self.ssh / "id_ed25519"
        self.config = self.ssh / "config"
        self.known_hosts = self.ssh / "known_hosts"
        self.agent: tuple[str, int] | None = None

    def write_config(self, *lines: str, port: int | None = None, key: Path | None = None) -> None:
        """Write ``~/.ssh/config`` afresh: one Host with the address, and ``lines`` within it."""
        written = [
            f"Host {self.alias}",
            "HostName 127.0.0.1",
            f"Port {port or self.host.port}",
            f"User {self.user}",
            f"IdentityFile {key or self.key}",
            f"UserKnownHostsFile {self.known_hosts}",
            *lines,
        ]
        self.config.write_text("\n    ".join(written) + "\n")

    def make_key(self, passphrase: str = "", *, path: Path | None = None) -> Path:
        """Make a key pair; returns the private file."""
        path = path or self.key
        for old in (path, path.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        _keygen(path, passphrase, f"{self.name}@test")
        return path

    def trust(self, *ports: int) -> None:
        """Write the host's present key to known_hosts, for its own port and ``ports``."""
        public = self.host.public_host_key
        with self.known_hosts.open("a") as file:
            for port in (self.host.port, *ports):
                file.write(f"[127.0.0.1]:{port} {public}\n")

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which this person's programs run (its ``ssh`` reads this home's config)."""
        found = dict(os.environ)
        for name in ("SSH_AUTH_SOCK", "SSH_ASKPASS", "DISPLAY"):
            found.pop(name, None)
        found["HOME"] = str(self.home)
        found["PATH"] = f"{self.home / 'bin'}:{found.get('PATH', os.defpath)}"
        if self.agent:
            found["SSH_AUTH_SOCK"] = self.agent[0]
        return found

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Make this very process this person's, for the length of a test."""
        for name in ("SSH_AUTH_SOCK", "SSH_ASKPASS", "DISPLAY"):
            patch.delenv(name, raising=False)
        for name, value in self.environment.items():
            patch.setenv(name, value)

    def start_agent(self, *keys: Path) -> None:
        """Start an ssh-agent that holds ``keys`` (unencrypted ones)."""
        # A socket's path is at most 107 bytes, and pytest's folders are long.
        folder = tempfile.mkdtemp(prefix="dsg-agent-", dir="/tmp")
        socket_path = f"{folder}/s"
        agent = subprocess.Popen(
            ["ssh-agent", "-D", "-a", socket_path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.host.clean_up.callback(shutil.rmtree, folder, ignore_errors=True)
        self.host.clean_up.callback(agent.wait)
        self.host.clean_up.callback(agent.terminate)
        self.agent = (socket_path, agent.pid)
        _await(lambda: os.path.exists(socket_path), "ssh-agent's socket")
        for key in keys:
            subprocess.run(["ssh-add", "-q", str(key)], check=True, env=self.environment, capture_output=True)

    def _install_ssh(self) -> None:
        # OpenSSH takes the home from the account, never from HOME.
        program = find_program("ssh")
        if program:
            _script(self.home / "bin" / "ssh", f'#!/bin/sh\nexec {program} -F {self.config} "$@"\n')


class SshHost:
    """A running sshd and the folders of the server behind it."""

    def __init__(
        self,
        folder: Path,
        clean_up: contextlib.ExitStack,
        *,
        shell: str = "/bin/sh",
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.clean_up = clean_up
        self.shell = shell
        self.home = folder / "home"  # of the account on the server
        self.bin = folder / "bin"  # first on its PATH
        self.agents = folder / "agents"
        self.log = folder / "sshd.log"
        self.options = list(options)
        self.port = _free_port()
        for made in (self.home, self.bin, self.agents, folder / "clients", folder / "authorized"):
            made.mkdir()
        self.agents.chmod(0o1777)
        self._daemon: subprocess.Popen[bytes] | None = None
        self.make_host_key()

    # ---- the server

    def make_host_key(self) -> None:
        """A new host key; takes effect at the next :meth:`start`."""
        for old in ("host_key", "host_key.pub"):
            (self.folder / old).unlink(missing_ok=True)
        _keygen(self.folder / "host_key", "", "host")

    @property
    def public_host_key(self) -> str:
        """Type and base64 of the host key."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` of the host key, as ssh-keygen tells it."""
        told = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(self.folder / "host_key.pub")],
            check=True,
            capture_output=True,
            text=True,
        )
        return told.stdout.split()[1]

    def start(self) -> None:
        """Start sshd (again) on the same port and wait until it answers."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # the server insists on it as root
        lines = [
            *self.options,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder / 'host_key'}",
            f"PidFile {self.folder / 'sshd.pid'}",
            f"AuthorizedKeysFile {self.folder / 'authorized'}/%u",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "AllowTcpForwarding yes",
            "MaxStartups 200:30:400",
            "LogLevel VERBOSE",
            # The account's own bash must not take itself for a login over the network: what ~/.bashrc of
            # this machine does is no matter of the tests, takes time, and may wait for a lock.
            "SetEnv SHLVL=1",
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        program = find_program("sshd")
        if program is None:
            pytest.skip("sshd not found; to have it: sudo apt-get install -y openssh-server")
        self._daemon = subprocess.Popen(
            [program, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.log)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _await(self._answers, f"sshd on port {self.port}; its log: {self.log}")

    def stop(self) -> None:
        """End sshd, every session of it and every agent it started."""
        if self._daemon is None:
            return
        found = _descendants(self._daemon.pid)
        self._daemon.terminate()
        self._daemon.wait()
        self._daemon = None
        for pid in [*found, *self.running_agents()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut_sessions(self) -> None:
        """Kill the server's end of every open connection, and nothing else."""
        if self._daemon is not None:
            for pid in _descendants(self._daemon.pid):
                if "sshd" in _command_line(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise AssertionError(f"sshd ended at once:\n{self.log.read_text() if self.log.exists() else ''}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as end:
                end.settimeout(1)
                return end.recv(4) == b"SSH-"
        except OSError:
            return False

    # ---- what runs on it

    def install_agent(self, *, command: str | None = None, python: str | None = None) -> Path:
        """Put ``dsg-remote-agent`` on the server's PATH: this checkout's, or the shell script ``command``."""
        import attr
        import msgpack

        folders: list[str] = [str(REPOSITORY)]
        for module in (attr, msgpack):
            folder = str(Path(module.__file__ or "").resolve().parents[1])
            if folder not in folders:
                folders.append(folder)
        text = LAUNCHER.format(
            agents=self.agents,
            python=shlex.quote(python or sys.executable),
            folders=shlex.quote(":".join(folders)),
        )
        return _script(self.bin / "dsg-remote-agent", command or text)

    def install_program(self, name: str, text: str) -> None:
        """Put a script on the server's PATH."""
        _script(self.bin / name, text)

    def scratch(self, folder: Path) -> Path:
        """A folder on the server for what a test with its own ``folder`` keeps there."""
        return folder

    def read_text(self, path: Path) -> str:
        """What is in a file on the server; '' when it is not there."""
        return path.read_text() if path.exists() else ""

    def set_environment(self, variables: Mapping[str, str]) -> None:
        """Variables of every session that begins from now on (replaces earlier ones)."""
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        (self.folder / "environment").write_text("".join(lines))

    def write_profile(self, text: str, *names: str) -> None:
        """Write a shell's start-up file in the server's home (default: the one that its shell reads)."""
        usual = {
            "bash": ".bashrc",
            "zsh": ".zshenv",
            "fish": ".config/fish/config.fish",
            "tcsh": ".tcshrc",
            "csh": ".cshrc",
        }
        for name in names or (usual[os.path.basename(self.shell)],):
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def running_agents(self) -> list[int]:
        """Process ids of the agents that :meth:`install_agent`'s launcher started and that still run."""
        found = []
        for note in self.agents.iterdir():
            pid = int(note.name)
            # A number may be another process's by now, perhaps of another test: that began after the note.
            if state_of(pid) and _began(pid) < note.stat().st_mtime + 1:
                found.append(pid)
            else:
                with contextlib.suppress(OSError):  # another account's
                    note.unlink()
        return sorted(found)

    # ---- who signs in

    def client(
        self,
        name: str = "ann",
        *,
        account: Account | None = None,
        pinned: str | None = None,
        passphrase: str = "",
        trusted: bool = True,
        authorized: bool = True,
    ) -> SshClient:
        """A person with a key, signed in to ``account`` (default: whoever runs this).

        ``pinned`` is the one command that the key may run, as ``command="..."``
        in authorized_keys.
        """
        client = SshClient(self, name, account.name if account else getpass.getuser())
        client.make_key(passphrase)
        client.write_config()
        client._install_ssh()
        if trusted:
            client.trust()
        if authorized:
            self.authorize(client.key, account=account, pinned=pinned)
        return client

    def authorize(
        self, key: Path, *, account: Account | None = None, pinned: str | None = None, restrict: bool = False
    ) -> None:
        """Let ``key`` in."""
        user = account.name if account else getpass.getuser()
        home = account.home if account else self.home
        session = self.folder / f"session-{user}"
        if not session.exists():
            _script(
                session,
                SESSION.format(folder=self.folder, home=home, bin=self.bin, shell=shlex.quote(self.shell)),
            )
        command = f"{session} {shlex.quote(pinned)}" if pinned else str(session)
        options = f'command="{command.replace(chr(34), chr(92) + chr(34))}"'
        if restrict or pinned:
            options += ",restrict"
        public = key.with_name(key.name + ".pub").read_text().strip()
        authorized = self.folder / "authorized" / user
        with authorized.open("a") as file:
            file.write(f"{options} {public}\n")
        authorized.chmod(0o644)


@contextlib.contextmanager
def ssh_host(
    *, shell: str = "/bin/sh", profile: str | None = None, options: Sequence[str] = (), started: bool = True
) -> Iterator[SshHost]:
    """A real sshd in a folder of its own under /tmp, gone at the end with all it started.

    ``shell`` runs the commands as a login shell would, ``profile`` is the text
    of its start-up file, ``options`` are lines for sshd_config, before all
    others: the first value of a keyword holds.
    """
    # Not pytest's folder: other accounts must be able to get at it.
    folder = Path(tempfile.mkdtemp(prefix="dsg-sshd-", dir="/tmp"))
    folder.chmod(0o755)
    with contextlib.ExitStack() as clean_up:
        clean_up.callback(shutil.rmtree, folder, ignore_errors=True)
        host = SshHost(folder, clean_up, shell=shell, options=options)
        if profile is not None:
            host.write_profile(profile)
        clean_up.callback(host.stop)
        if started:
            host.start()
        yield host


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: a running copy is never "text file busy".
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    aside.chmod(0o755)
    aside.rename(path)
    return path


def _keygen(path: Path, passphrase: str, comment: str) -> None:
    # Few rounds: the tests wait for them.
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-a", "1", "-N", passphrase, "-C", comment, "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(condition: object, what: str, limit: float = 10.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit:.0f} s in vain for {what}")
        time.sleep(0.01)


def _descendants(pid: int) -> list[int]:
    told = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True)
    children: dict[int, list[int]] = {}
    for line in told.stdout.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, queue = [], [pid]
    while queue:
        more = children.get(queue.pop(), [])
        found += more
        queue += more
    return found


def _command_line(pid: int) -> str:
    return subprocess.run(
        ["ps", "-o", "args=", "-p", str(pid)], check=False, capture_output=True, text=True
    ).stdout


def _began(pid: int) -> float:
    """When a process began, in seconds as of ``time.time``; 0 where that is not known."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def state_of(pid: int) -> str:
    """What a process does, as the letter that ps shows (``T``: it is stopped); empty when it has ended."""
    try:
        # The name before it may hold anything, but nothing after it holds a parenthesis.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return ""
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True
        ).stdout.strip()[:1]
    return "" if state in ("Z", "X") else state

"""A server with OpenZFS: a virtual machine that is both the sshd and the ZFS of a test.

    with openzfs_guest() as guest:
        root = guest.make_root("one")                 # tank/one, on the machine's own pool
        ann = guest.client("ann")                     # signs in there as root
        guest.sh("zfs list -r tank")
        guest.kill()                                  # the power fails
        guest.start()

Its agent and tests are those of this checkout, handed over at each start.
"""

from __future__ import annotations

import compileall
import contextlib
import io
import secrets
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import find_program
from tests.hosts.openzfs.image import find_image
from tests.hosts.openzfs.machine import Machine, fill
from tests.hosts.sshd import LAUNCHER, REPOSITORY, SshClient, SshHost
from tests.hosts.zfs_host import ZfsHost

__all__ = ["Guest", "openzfs_guest"]

_LIMIT = 300.0  # seconds that a command may take; the processor is emulated, and the machine may be busy
_TRIES = 5
_CHECKOUT = "opt/dsg"
_SITE = "opt/site"
_AGENTS = "run/dsg-agents"
_PYTHON = "/usr/bin/python3"
# What the agent needs, and what the tests do that run in the machine itself. All of it works without what is
# compiled for this machine's own Python.
_AGENT = ("msgpack", "attrs")
_TESTS = (
    "pytest", "pluggy", "iniconfig", "packaging", "pytest-timeout", "pytest-asyncio", "typing-extensions",
    "hypothesis", "sortedcontainers", "pygments",
)  # fmt: skip


class Guest(SshHost, ZfsHost):
    """The running machine. Who signs in is root; ``folder`` and its like are on this side."""

    pool = "tank"
    mountpoint = Path("/tank")
    shows_snapshots = True
    patience = 120.0

    def __init__(self, folder: Path, clean_up: contextlib.ExitStack, image: Path) -> None:
        super().__init__(folder, clean_up)
        self._files = folder / "files.tar"
        self.connection = folder / "mux"  # an ssh's ControlPath; as root, while the machine runs
        self.machine = Machine(folder, image, self._files)
        self.port = self.machine.port
        self._programs: dict[str, str] = {}
        self._master: subprocess.Popen[bytes] | None = None
        self._key = folder / "id_ed25519"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(self._key)], check=True
        )
        self._known = folder / "known_hosts"
        self._known.write_text(f"[127.0.0.1]:{self.port} {self.public_host_key}\n")

    # The machine

    def start(self, *, cold: bool = False) -> None:
        """Start it (again), with this checkout's agent in it; ``cold``: see :meth:`Machine.start`."""
        self._write_files()
        self.machine.start(cold=cold)
        self._connect()

    def kill(self) -> None:
        """The power fails: see :meth:`Machine.kill`."""
        self.machine.kill()
        self._disconnect()

    def stop(self) -> None:
        self.machine.stop(lambda: self.sh("setsid power-off > /dev/null 2>&1 < /dev/null &"))
        self._disconnect()

    def _connect(self) -> None:
        """One connection that all commands share: a new one takes most of a second."""
        for attempt in range(_TRIES):
            self._master = subprocess.Popen(
                [*self._ssh(), "-M", "-N", "root@127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            while self._master.poll() is None:
                if (self.connection).exists():
                    return
                time.sleep(0.02)
            assert self._master.stderr is not None
            said = self._master.stderr.read().decode()
            self._disconnect()
            time.sleep(attempt)
        raise AssertionError(f"no connection to the machine: {said}\n{self.machine.console.read_text()}")

    def _disconnect(self) -> None:
        if self._master is not None:
            self._master.terminate()
            self._master.communicate()
            self._master = None
        (self.connection).unlink(missing_ok=True)

    def _ssh(self) -> list[str]:
        options = {
            "ControlPath": self.connection,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self._known,
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": 60,
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", "-p", str(self.port), "-i", str(self._key), *words]

    # Commands

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.try_sh(shlex.join(words))

    def try_sh(self, text: str, limit: float = _LIMIT) -> subprocess.CompletedProcess[str]:
        """Run a line of shell as root in the machine."""
        return subprocess.run(
            [*self._ssh(), "root@127.0.0.1", text],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )

    def sh(self, text: str) -> str:
        """What a line of shell prints; AssertionError when it fails."""
        done = self.try_sh(text)
        assert done.returncode == 0, f"{text}: {done.stdout}{done.stderr}"
        return done.stdout

    def run_tests(self, *words: str, limit: float) -> subprocess.CompletedProcess[str]:
        """Run pytest in the machine, on its own ZFS, with this checkout's tests."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            packing = _Packing(tar)
            packing.tree(REPOSITORY / "tests", f"{_CHECKOUT}/tests")
            packing.tree(REPOSITORY / "pyproject.toml", f"{_CHECKOUT}/pyproject.toml")
            for name in _TESTS:
                packing.distribution(name, _SITE)
        unpack = [*self._ssh(), "root@127.0.0.1", "tar -C / -xf -"]
        subprocess.run(unpack, input=packed.getvalue(), check=True)
        line = shlex.join(["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--kernel-zfs", *words])
        return self.try_sh(f"cd /{_CHECKOUT} && CI=1 PYTHONPATH=/{_SITE} {line}", limit)

    def send(self, snapshot: str, target: str) -> None:
        self.sh(f"set -o pipefail; zfs send -R {shlex.quote(snapshot)} | zfs recv {shlex.quote(target)}")

    def fetch(self, folder: Path, into: Path) -> Path:
        """A copy of what is in the machine's ``folder``, with its times, in a new folder below ``into``."""
        copy = Path(tempfile.mkdtemp(prefix="fetched-", dir=into))
        packed = subprocess.run(
            [
                *self._ssh(),
                "root@127.0.0.1",
                f"tar -C {shlex.quote(str(folder))} --format=posix --exclude=./.zfs -cf - .",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_LIMIT,
        )
        if packed.returncode:
            raise FileNotFoundError(f"{folder}: {packed.stderr.decode()}")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
            tar.extractall(copy, filter="fully_trusted")
        return copy

    # What a test's people see of it: see SshHost.

    def client(self, name: str = "ann", **options: object) -> SshClient:
        """A person who signs in as root; all have the one key that the machine was started with."""
        assert not options, "the machine has but one account for people, and one key"
        client = SshClient(self, name, "root")
        for suffix in ("", ".pub"):
            shutil.copy(f"{self._key}{suffix}", f"{client.key}{suffix}")
        client.write_config()
        client._install_ssh()
        client.trust()
        return client

    def install_program(self, name: str, text: str) -> None:
        self._programs[name] = text
        if self.machine.pid is not None:
            path = f"/usr/local/bin/{name}"
            self.sh(f"printf %s {shlex.quote(text)} > {path}; chmod 755 {path}")

    def scratch(self, folder: Path) -> Path:
        return Path(self.sh("found=$(mktemp -d /tmp/test-XXXXXX); chmod 777 $found; echo $found").strip())

    def read_text(self, path: Path) -> str:
        return self.sh(f"cat {shlex.quote(str(path))} 2> /dev/null || true")

    def running_agents(self) -> list[int]:
        told = self.sh(f"cd /{_AGENTS}; for n in *; do [ ! -d /proc/$n ] || echo $n; done")
        return sorted(int(word) for word in told.split())

    # What it is given at each start

    def _write_files(self) -> None:
        with tarfile.open(self._files, "w", format=tarfile.PAX_FORMAT) as tar:
            packed = _Packing(tar)
            packed.text("root/.ssh/authorized_keys", Path(f"{self._key}.pub").read_text(), 0o600)
            packed.text("home/reader/.ssh/authorized_keys", Path(f"{self._key}.pub").read_text(), 0o644)
            packed.text("etc/ssh/ssh_host_ed25519_key", (self.folder / "host_key").read_text(), 0o600)
            packed.folder(_AGENTS, 0o1777)
            # Its clock and its randomness are those of the saved state, until it is told better.
            packed.text("etc/start/now", f"{time.time():.3f}", 0o644)
            packed.text("etc/start/seed", secrets.token_hex(64), 0o600)
            for name in ("protocol", "dsg_remote_agent"):
                # Each of its agents would do so, and slowly.
                compileall.compile_dir(REPOSITORY / name, quiet=2)
                packed.tree(REPOSITORY / name, f"{_CHECKOUT}/{name}")
            for name in _AGENT:
                packed.distribution(name, _SITE)
            launcher = LAUNCHER.format(agents=f"/{_AGENTS}", python=_PYTHON, folders=f"/{_CHECKOUT}:/{_SITE}")
            for name, text in {"dsg-remote-agent": launcher, **self._programs}.items():
                packed.text(f"usr/local/bin/{name}", text, 0o755)
        fill(self._files)


class _Packing:
    """What goes into a tar file, all of it root's."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def folder(self, path: str, mode: int = 0o755) -> None:
        found = tarfile.TarInfo(path)
        found.type, found.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(found)

    def text(self, path: str, text: str, mode: int) -> None:
        found = tarfile.TarInfo(path)
        raw = text.encode()
        found.mode, found.size = mode, len(raw)
        # sshd wants to know whose folder a key is in.
        parent = PurePosixPath(path).parent
        if parent.name == ".ssh":
            self.folder(str(parent))
        self._tar.addfile(found, io.BytesIO(raw))

    def tree(self, source: Path, path: str) -> None:
        """A folder of Python code; what this interpreter has compiled goes along."""
        self._tar.add(source, path, filter=self._of_root)

    def distribution(self, name: str, folder: str) -> None:
        """An installed package, with what is written about it."""
        for file in distribution(name).files or ():
            if ".." not in file.parts:
                self.tree(Path(str(file.locate())), f"{folder}/{file}")

    @staticmethod
    def _of_root(found: tarfile.TarInfo) -> tarfile.TarInfo:
        found.uid = found.gid = 0
        found.uname = found.gname = "root"
        return found


@contextlib.contextmanager
def openzfs_guest() -> Iterator[Guest]:
    """A running machine in a folder of its own, gone at the end with all that belongs to it."""
    for program, package in {"qemu-system-x86_64": "qemu-system-x86", "ssh": "openssh-client"}.items():
        if find_program(program) is None:
            pytest.skip(f"{program} not found; to have it: sudo apt-get install -y {package}")
    try:
        image = find_image()
    except RuntimeError as error:
        pytest.fail(str(error))
    # A socket's path is at most 107 bytes, and pytest's folders are long.
    folder = Path(tempfile.mkdtemp(prefix="dsg-openzfs-", dir="/tmp"))
    with contextlib.ExitStack() as clean_up:
        clean_up.callback(shutil.rmtree, folder, ignore_errors=True)
        guest = Guest(folder, clean_up, image)
        clean_up.callback(guest.stop)
        guest.start()
        yield guest

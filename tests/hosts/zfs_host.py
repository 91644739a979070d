"""What every ZFS of the tests can be asked, wherever it runs: commands, roots, a look at files."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from tests.conftest import find_program

__all__ = ["KernelZfs", "LocalZfs", "ZfsHost", "ZfsRoot"]

_LIMIT = 30.0


@frozen
class ZfsRoot:
    """A dataset below which repositories are made: ``dataset``, and the folder with their links."""

    dataset: str
    folder: Path


class ZfsHost(ABC):
    """A ZFS with one ``pool``; ``mountpoint`` is the folder on that machine where roots are made."""

    pool: str
    mountpoint: Path
    shows_snapshots = False  # in .zfs/snapshot
    patience = 20.0  # seconds in which housekeeping is done

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be where the pool is seen, as far as that is a matter of this process."""
        yield

    @abstractmethod
    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program on that machine to its end."""

    @abstractmethod
    def send(self, snapshot: str, target: str) -> None:
        """Copy a dataset with its snapshots up to this one to the new dataset ``target``."""

    def fetch(self, folder: Path, into: Path) -> Path:
        """Where this process can read what is in ``folder`` there: itself, or a copy below ``into``.

        FileNotFoundError when it is not there.
        """
        return folder

    def run(self, *words: str) -> str:
        """What a program prints there; AssertionError when it fails."""
        done = self.attempt(*words)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def zfs(self, *words: str) -> str:
        """What ``zfs WORDS`` prints; AssertionError when it fails."""
        return self.run("zfs", *words)

    def zpool(self, *words: str) -> str:
        """The same for ``zpool``."""
        return self.run("zpool", *words)

    def fails(self, *words: str) -> bool:
        """Whether ``zfs WORDS`` fails."""
        return self.attempt("zfs", *words).returncode != 0

    def make_root(self, name: str) -> ZfsRoot:
        """A dataset for repositories, made as the administrator's guide says."""
        root = ZfsRoot(f"{self.pool}/{name}", self.mountpoint / name)
        self.zfs(
            "create", "-o", "canmount=off", "-o", "atime=off", "-o", f"mountpoint={root.folder}/.gen",
            root.dataset,
        )  # fmt: skip
        self.run("mkdir", "-p", f"{root.folder}/.gen")
        return root

    def discard(self, root: ZfsRoot) -> None:
        """Let go of what a test made; what somebody still uses stays until the host ends."""
        self.attempt("zfs", "destroy", "-r", root.dataset)

    def datasets(self, root: ZfsRoot, kind: str = "filesystem") -> list[str]:
        """The names of what lies below a root: ``filesystem`` or ``snapshot``."""
        listed = self.zfs("list", "-H", "-r", "-t", kind, "-o", "name", root.dataset).split("\n")
        return [name for name in listed if name and name != root.dataset]


class LocalZfs(ZfsHost):
    """One whose commands run on this machine."""

    def send(self, snapshot: str, target: str) -> None:
        program = find_program("zfs")
        assert program is not None
        sender = subprocess.Popen([program, "send", "-R", snapshot], stdout=subprocess.PIPE, cwd="/")
        done = subprocess.run(
            [program, "recv", target],
            stdin=sender.stdout,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT,
            cwd="/",
        )
        assert sender.wait(_LIMIT) == 0 and done.returncode == 0, done.stderr

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = find_program(words[0])
        assert program is not None, words[0]
        return subprocess.run(
            [program, *words[1:]], capture_output=True, text=True, check=False, timeout=_LIMIT, cwd="/"
        )


class KernelZfs(LocalZfs):
    """This machine's kernel's own; the machine is one for tests, and has a pool ``tank``."""

    shows_snapshots = True
    patience = 120.0

    def __init__(self) -> None:
        self.pool = f"tank/t{secrets.token_hex(3)}"
        self.mountpoint = Path("/", self.pool)
        self.zfs("create", self.pool)

"""Where the server of a benchmark keeps what is synced: in folders, or in datasets of a ZFS of the tests."""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from tests.bench.measure import children, put_aside
from tests.bench.report import file_system
from tests.demo.server import free_port, make_key, session_environment, start_openssh, stop
from tests.hosts.openzfs.guest import Guest, openzfs_guest
from tests.hosts.zfs_fuse import zfs_fuse
from tests.hosts.zfs_host import ZfsHost

__all__ = ["BACKENDS", "Door", "Store", "ZfsStore", "open_store"]

BACKENDS = ("directory", "zfs-fuse", "openzfs")
_SETTLED_S = 300.0  # in the virtual machine; elsewhere it is a second


@frozen
class Door:
    """How the server is reached. ``pid`` is its sshd's; 0 where its processes are not seen from here."""

    port: int
    user: str
    key: Path
    host_key: Path
    pid: int


class Store(ABC):
    """Places by name. ``facts`` describe the server for the report."""

    door: Door
    facts: dict[str, str]

    @abstractmethod
    def folder(self, name: str) -> Path:
        """Where rsync's bytes go."""

    @abstractmethod
    def make_folder(self, name: str) -> None:
        """Make that folder, empty, whatever was in it."""

    @abstractmethod
    def address(self, name: str) -> str:
        """A repository as ``dsg`` names it behind the host."""

    @abstractmethod
    def clear(self, name: str) -> None:
        """See that no repository is there."""

    @abstractmethod
    def look(self, folder: Path, into: Path) -> Path:
        """What this process can read in place of the server's ``folder``: that, or a copy below ``into``."""

    def live(self, name: str) -> Path:
        """The folder in which people on the server see the repository's files."""
        return self.folder(name)

    def settle(self) -> None:
        """Wait until nothing goes on there, and all is written."""
        os.sync()


class FolderStore(Store):
    """Folders of this machine's file system."""

    def __init__(self, door: Door, folder: Path, software: str) -> None:
        self.door = door
        self.facts = {"server": software, "its file system": file_system(folder)}
        self._folder = folder

    def folder(self, name: str) -> Path:
        return self._folder / name

    def make_folder(self, name: str) -> None:
        self.clear(name)
        self.folder(name).mkdir()

    def address(self, name: str) -> str:
        return str(self.folder(name))

    def clear(self, name: str) -> None:
        put_aside(self.folder(name), self._folder.with_name("aside"))

    def look(self, folder: Path, into: Path) -> Path:
        return folder


class ZfsStore(Store):
    """Datasets of one pool: one for each of rsync's folders, and a root for repositories."""

    def __init__(self, door: Door, zfs: ZfsHost, facts: dict[str, str]) -> None:
        self.door = door
        self.facts = facts
        self.zfs = zfs
        self._root = zfs.make_root("dsg")
        self._flushes = 0

    def folder(self, name: str) -> Path:
        return self.zfs.mountpoint / name

    def make_folder(self, name: str) -> None:
        dataset = f"{self.zfs.pool}/{name}"
        self._destroy(dataset)
        # As a root for repositories is made: the two differ in nothing that costs time.
        self.zfs.zfs("create", "-o", "atime=off", "-o", f"mountpoint={self.folder(name)}", dataset)

    def address(self, name: str) -> str:
        return f"zfs:{self._root.dataset}/{name}"

    def clear(self, name: str) -> None:
        self._destroy(f"{self._root.dataset}/{name}")
        self.zfs.run("rm", "-rf", str(self.live(name)), str(self._root.folder / ".gen" / name))

    def live(self, name: str) -> Path:
        return self._root.folder / name

    def look(self, folder: Path, into: Path) -> Path:
        return self.zfs.fetch(folder, into)

    def read_text(self, path: Path) -> str:
        """What is in a file on the server."""
        return self.zfs.run("cat", str(path))

    def settle(self) -> None:
        # dsg's housekeeping goes on behind its reply: nobody else is to pay for it.
        deadline = time.monotonic() + _SETTLED_S
        while self._busy():
            if time.monotonic() > deadline:
                raise RuntimeError("something on the server does not end")
            time.sleep(0.02)
        # Setting a property waits until what was written before is in the pool; any ZFS has that.
        self._flushes += 1
        self.zfs.zfs("set", f"dsg-bench:flushed={self._flushes}", self.zfs.pool)
        os.sync()

    def _busy(self) -> bool:
        if isinstance(self.zfs, Guest):
            return bool(self.zfs.running_agents())
        return bool(children(self.door.pid))

    def _destroy(self, dataset: str) -> None:
        deadline = time.monotonic() + _SETTLED_S
        while not self.zfs.fails("list", dataset):
            if self.zfs.fails("destroy", "-r", dataset) and time.monotonic() > deadline:
                raise RuntimeError(f"{dataset} cannot be destroyed")


@contextlib.contextmanager
def open_store(backend: str, folder: Path, bin_folder: Path) -> Iterator[Store]:
    """A started server of this kind, gone at the end; ``folder`` is its own. Be in the main thread."""
    folder.mkdir()
    if backend == "openzfs":
        with openzfs_guest() as guest:
            key = guest.client("bench").key
            door = Door(guest.port, "root", key, guest.folder / "host_key", 0)
            yield ZfsStore(door, guest, _facts_of_guest(guest))
    elif backend == "zfs-fuse":
        with zfs_fuse() as host, host.entered(), _sshd(folder, bin_folder) as (door, software):
            facts = {
                "server": software,
                "its file system": f"zfs-fuse, its pool in a file on {file_system(host.folder)}",
            }
            yield ZfsStore(door, host, facts)
    else:
        with _sshd(folder, bin_folder) as (door, software):
            files = folder / "files"
            files.mkdir()
            yield FolderStore(door, files, software)


@contextlib.contextmanager
def _sshd(folder: Path, bin_folder: Path) -> Iterator[tuple[Door, str]]:
    """An sshd of this machine and account, and what software it is."""
    key = folder / "id_ed25519"
    make_key(key, "bench", lambda argv: None)
    server = start_openssh(
        folder / "sshd",
        free_port(),
        [key.with_suffix(".pub")],
        session_environment(bin_folder),
        lambda argv: None,
    )
    try:
        yield Door(server.port, server.user, key, server.host_key, server.pid), server.name
    finally:
        stop(server)


def _facts_of_guest(guest: Guest) -> dict[str, str]:
    return {
        "server": guest.sh("ssh -V 2>&1").split(",")[0].strip(),
        "its machine": "qemu without hardware virtualisation: its processor is emulated, some 10 to 20 "
        "times slower than the client's",
        "its kernel": guest.sh("uname -r").strip(),
        "its file system": f"OpenZFS {guest.sh('cat /sys/module/zfs/version').strip()}",
        "its rsync": guest.sh("rsync --version").partition("\n")[0].strip(),
    }

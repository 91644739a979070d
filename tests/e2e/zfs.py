"""A world whose repository is a dataset of a ZFS of the tests; the sshd and everybody's files are as ever."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import time
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.e2e.oracle import File, Repository, read_repository, read_tree
from tests.e2e.world import People, World
from tests.hosts.sshd import SshHost
from tests.hosts.zfs_host import ZfsHost

__all__ = ["ZfsPeople", "ZfsWorld"]

_numbers = itertools.count()
_SNAPSHOTS = ("list", "-H", "-r", "-t", "snapshot", "-o", "name")
# What a snapshot holds, by its record's digest: that never changes, also not in a copy of the repository.
_contents: dict[str, dict[bytes, bytes]] = {}


class ZfsPeople(People):
    """People who reach an sshd that sees ``zfs``."""

    def __init__(self, host: SshHost, zfs: ZfsHost) -> None:
        super().__init__(host)
        self.zfs = zfs


class ZfsWorld(World):
    """One repository on ZFS; be in the namespace that sees it."""

    people: ZfsPeople

    def __init__(self, people: ZfsPeople, folder: Path) -> None:
        self.people = people
        self.zfs = people.zfs
        self.folder = folder
        self.root = self.zfs.make_root(f"w{next(_numbers)}")
        self.dataset = f"{self.root.dataset}/repo"
        self.repository = self.root.folder / "repo"
        self.clients = {}
        self.origin = None

    @property
    def address(self) -> str:
        return f"data-host:zfs:{self.dataset}"

    def head(self) -> tuple[str, str]:
        """The head's generation and snapshot, as in ``g4`` and ``s7``."""
        value = self.zfs.zfs("get", "-H", "-o", "value", "dsg:head", self.dataset)
        generation, _, rest = value.strip().partition("@")
        return generation, rest.partition(":")[0]

    def copy_repository(self, copy: Self) -> None:
        zfs = self.zfs
        generation, snapshot = self.head()
        values = {
            name: zfs.zfs("get", "-H", "-o", "value", name, self.dataset).strip()
            for name in ("dsg:format", "dsg:repo-id", "dsg:head")
        }
        own = [word for name in ("dsg:format", "dsg:repo-id") for word in ("-o", f"{name}={values[name]}")]
        zfs.zfs("create", "-o", "canmount=off", *own, copy.dataset)
        outer = copy.root.folder / ".gen" / "repo"
        zfs.run("mkdir", "-p", str(outer))
        zfs.run("cp", "-a", str(self.root.folder / ".gen" / "repo" / ".dsg"), str(outer))
        zfs.send(f"{self.dataset}/{generation}@{snapshot}", f"{copy.dataset}/{generation}")
        zfs.run("ln", "-s", f".gen/repo/{generation}", str(copy.repository))
        zfs.zfs("set", f"dsg:head={values['dsg:head']}", copy.dataset)

    def remote(self) -> Repository:
        zfs, found = self.zfs, list[Repository]()

        def older() -> Mapping[bytes, bytes]:
            contents: dict[bytes, bytes] = {}
            for record in found[0].records:
                contents |= self._snapshot(record.seq, record.digest)
            return contents

        found.append(read_repository(zfs.fetch(self.repository, self.folder), "zfs", older))
        return found[0]

    def _snapshot(self, seq: int, record: str) -> dict[bytes, bytes]:
        """The contents in a snapshot, by digest."""
        if record not in _contents:
            found: list[dict[bytes, bytes]] = []
            deadline = time.monotonic() + self.zfs.patience
            # Housekeeping goes on behind the reply: a listing made while it promotes shows a snapshot where
            # it was and where it is, or nowhere, and one that nobody committed may have the same number.
            # Whatever is found goes by its digest, so that all of them may be read.
            while not found:
                assert time.monotonic() < deadline, f"s{seq} cannot be read"
                listed = self.zfs.zfs(*_SNAPSHOTS, self.dataset).split()
                read = [self._read_snapshot(name) for name in listed if name.endswith(f"@s{seq}")]
                found = [contents for contents in read if contents is not None]
            _contents[record] = dict(ChainMap(*found))
        return _contents[record]

    def _read_snapshot(self, name: str) -> dict[bytes, bytes] | None:
        """The contents in the snapshot ``name``; None when it has moved away."""
        dataset, _, snapshot = name.partition("@")
        if self.zfs.shows_snapshots:
            generation = self.root.folder / ".gen" / "repo" / dataset.rpartition("/")[2]
            try:
                return _by_digest(self.zfs.fetch(generation / ".zfs" / "snapshot" / snapshot, self.folder))
            except FileNotFoundError:
                return None
        clone = f"{self.root.dataset}/look-{secrets.token_hex(4)}"
        if self.zfs.fails("clone", name, clone):
            return None
        contents = _by_digest(self.root.folder / ".gen" / clone.rpartition("/")[2])
        for attempt in range(10):
            time.sleep(0.02 * attempt)
            if not self.zfs.fails("destroy", clone):
                break
        return contents

    def settled(self) -> None:
        """Assert that housekeeping has left one generation, to which the link leads."""
        generation, _ = self.head()
        deadline = time.monotonic() + self.zfs.patience
        while (names := self.zfs.datasets(self.root)) != [self.dataset, f"{self.dataset}/{generation}"]:
            assert time.monotonic() < deadline, names
            time.sleep(0.1)
        assert self.link() == f".gen/repo/{generation}"

    def link(self) -> str:
        """Where the link that people use leads."""
        return self.zfs.run("readlink", str(self.repository)).rstrip("\n")


def _by_digest(folder: Path) -> dict[bytes, bytes]:
    files = [version.content for version in read_tree(folder).values() if isinstance(version, File)]
    return {hashlib.sha256(content).digest(): content for content in files}

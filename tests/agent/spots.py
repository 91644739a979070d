"""Where a repository for a test lies, whatever its backend: its address, and the folder that people see."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attrs import frozen

if TYPE_CHECKING:
    from tests.hosts.zfs_fuse import ZfsFuse, ZfsRoot

__all__ = ["BACKENDS", "Spot", "ZfsSpot"]

#: The parameters of a fixture that is to be had on each backend.
BACKENDS = [
    "directory",
    pytest.param("zfs", marks=[pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root")]),
]


@frozen
class Spot:
    """A place for one repository; nothing is there yet."""

    address: str
    folder: Path

    def check_clean(self) -> None:
        """Assert that no transaction left anything that only this backend has."""
        assert not (self.folder / ".dsg" / "rescued").exists()


@frozen
class ZfsSpot(Spot):
    """A place in datasets; be in the namespace of ``host``."""

    host: ZfsFuse
    root: ZfsRoot

    def generations(self) -> list[str]:
        """The names of the datasets in the repository, without its own."""
        prefix = f"{self.address.removeprefix('zfs:')}/"
        return [
            name.removeprefix(prefix) for name in self.host.datasets(self.root) if name.startswith(prefix)
        ]

    def snapshots(self) -> list[str]:
        """All snapshots, as ``gN@sN``."""
        return [name.rpartition("/")[2] for name in self.host.datasets(self.root, "snapshot")]

    def check_clean(self) -> None:
        generations = self.generations()
        assert len(generations) == 1, self.host.zfs("list", "-r", "-t", "all", self.root.dataset)
        (generation,) = generations
        assert os.readlink(self.folder) == f".gen/{self.folder.name}/{generation}"
        assert os.path.ismount(os.path.realpath(self.folder))
        count = len(self.snapshots())
        assert self.snapshots() == [f"{generation}@s{seq}" for seq in range(count)]
        outer = self.root.folder / ".gen" / self.folder.name
        assert sorted(path.name for path in outer.iterdir()) == [".dsg", generation]
        assert not (outer / ".dsg" / "lock.holder").exists()
        assert sorted(path.name for path in self.root.folder.iterdir()) == [".gen", self.folder.name]

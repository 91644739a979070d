"""A repository in this process, without a wire: for what must be looked at closely, or broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from dsg_remote_agent.storage.base import Claim
from dsg_remote_agent.storage.directory import DirectoryRepository
from dsg_remote_agent.storage.directory_init import make_repository
from dsg_remote_agent.storage.layout import ZFS, Marker
from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.init import make_zfs_repository
from dsg_remote_agent.storage.zfs.repository import ZfsRepository
from protocol.manifest import Entry
from protocol.records import SnapshotRecord
from protocol.transaction import Failpoints, NoFailpoints, Step
from protocol.tree.fs import TreeFS
from protocol.tree.posix import PosixTree
from tests.agent.client import REPO_ID, changes_of, merged, upload_body

#: For a test, or a module's ``pytestmark``, of what only a repository in a folder has.
only_directory = pytest.mark.parametrize("ground", ["directory"], indirect=True)


def claim(txid: str = "tx-ground-001") -> Claim:
    return Claim(txid, "ann", "laptop", "account", "server", 1)


@define
class Clock:
    """Seconds that pass when they are told to."""

    time: int = 1_700_000_000

    def __call__(self) -> int:
        return self.time


@define
class CallAt:
    """Failpoints that call a function at one step."""

    step: Step
    function: Any

    def reach(self, step: Step) -> None:
        if step is self.step:
            self.function()


@define
class Ground:
    """One repository and what its parts are given."""

    folder: Path
    clock: Clock = field(factory=Clock)
    failpoints: Failpoints = field(factory=NoFailpoints)
    count: int = 0

    @property
    def area(self) -> Path:
        """The folder with the lock and the stat index."""
        return self.folder / ".dsg"

    def tree(self) -> TreeFS:
        return PosixTree.open_tree(str(self.folder))

    def init(self) -> SnapshotRecord:
        self.folder.mkdir(exist_ok=True)
        tree = PosixTree.open_tree(str(self.folder))
        return make_repository(
            tree, str(self.folder), Marker(REPO_ID, "sha256", self.clock()), "ann", "laptop", "{}"
        )

    def open(self, tree: TreeFS | None = None) -> DirectoryRepository:
        return DirectoryRepository(
            tree or self.tree(), str(self.folder), self.clock, self.failpoints, "machine"
        )

    def place(self) -> Place:
        return self.open()._place

    def begin(self, repository: Any, txid: str = "", *, adopt: bool = False) -> Any:
        self.count += 1
        record = repository.head()[1]
        return repository.begin(
            claim(txid or f"tx-ground-{self.count:03d}"), record.digest, adopt=adopt, notice=lambda _: None
        )

    def prepare(
        self,
        repository: Any,
        puts: dict[str, bytes],
        deletes: list[str] | None = None,
        links: dict[str, str] | None = None,
        txid: str = "",
    ) -> tuple[Any, SnapshotRecord]:
        """A transaction up to its decision."""
        transaction = self.begin(repository, txid)
        reader = repository.reader(None)
        base = reader.manifest()
        reader.close()
        changes: list[Entry | str] = changes_of(puts, deletes or [], links or {}, transaction.seq)
        transaction.change(changes)
        transaction.receive(upload_body(changes, puts))
        return transaction, transaction.prepare(merged(base, changes).digest, "", "ann", "laptop")

    def sync(
        self,
        puts: dict[str, bytes],
        deletes: list[str] | None = None,
        links: dict[str, str] | None = None,
    ) -> SnapshotRecord:
        """A whole transaction by an agent of its own."""
        repository = self.open()
        transaction, record = self.prepare(repository, puts, deletes, links)
        transaction.commit(record.digest, lambda: None)
        transaction.tidy()
        repository.close()
        return record

    def die(self, transaction: Any) -> None:
        """Let go of what the kernel takes from a killed agent."""
        transaction._held.lock.release()


@define
class ZfsGround(Ground):
    """The same in datasets; be in the namespace of ``host``. ``folder`` is the link to the head."""

    host: Any = None
    root: Any = None

    @property
    def area(self) -> Path:
        return Path(self.root.folder) / ".gen" / self.folder.name / ".dsg"

    @property
    def dataset(self) -> str:
        return f"{self.root.dataset}/{self.folder.name}"

    def init(self) -> SnapshotRecord:
        marker = Marker(REPO_ID, "sha256", self.clock(), ZFS)
        return make_zfs_repository(Zfs.find(), self.dataset, marker, "ann", "laptop", "{}", "")

    def open(self, tree: TreeFS | None = None) -> Any:
        assert tree is None
        return ZfsRepository(Zfs.find(), self.dataset, self.clock, self.failpoints, "machine")

    def die(self, transaction: Any) -> None:
        transaction._old.close()
        transaction._clone.close()
        Ground.die(self, transaction)

    def generations(self) -> list[str]:
        """The names of the generations, without the dataset's."""
        return [name.rpartition("/")[2] for name in self.host.datasets(self.root) if "/g" in name]

    def snapshots(self) -> list[str]:
        """All snapshots, as ``gN@sN``."""
        return [name.rpartition("/")[2] for name in self.host.datasets(self.root, "snapshot")]

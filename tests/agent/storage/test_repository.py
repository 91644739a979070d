"""The directory backend, closely; and each of its safety mechanisms taken away, to see that it is missed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsg_remote_agent import lock as lock_module
from dsg_remote_agent.dispatch import Agent, Opened, Policy
from dsg_remote_agent.roots import Roots
from dsg_remote_agent.storage import directory as directory_module
from dsg_remote_agent.storage import directory_transaction as directory_transaction_module
from dsg_remote_agent.storage.base import Outcome, Wanted
from dsg_remote_agent.storage.layout import LOCK
from dsg_remote_agent.storage.zfs import transaction as zfs_transaction_module
from dsg_remote_agent.transactions import commit
from protocol.errors import DsgError, IntegrityError, InternalError, LockedError, RemoteStorageError
from protocol.errors import Outcome as DsgOutcome
from protocol.messages import Commit, Role
from protocol.records import SnapshotRecord
from protocol.transaction import NoFailpoints, RemoteState, Step
from protocol.tree import arrive
from protocol.tree.posix import PosixTree
from tests.agent.client import changes_of, file_entry, merged, tree_of, upload_body
from tests.agent.storage.ground import CallAt, Ground, claim, only_directory


class Died(BaseException):
    """Stands for the end of the process: no handler of the product catches it."""


def die() -> None:
    raise Died


@pytest.fixture
def filled(ground: Ground) -> Ground:
    ground.sync({"a": b"one", "d/b": b"two"})
    return ground


@only_directory
def test_a_dead_readers_probe_is_removed_and_a_living_ones_is_not(filled: Ground) -> None:
    probe = filled.folder / ".dsg" / "tmp" / "probe-4711-0"
    probe.mkdir()
    (probe / "plain").touch()
    began = filled.clock()
    for age, stays in ((60, True), (3600, False)):
        os.utime(probe, (began - age, began - age))
        filled.open().recover(claim())
        assert probe.exists() == stays


# Outcome: the fence.


def test_the_outcome_of_what_runs_is_running(filled: Ground) -> None:
    transaction, _ = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-asked-001")
    assert filled.open().outcome(claim("tx-asked-001"), 2) == (Outcome.RUNNING, b"")
    # Somebody else's transaction: neither running nor aborted can be said while another holds the lock.
    with pytest.raises(LockedError):
        filled.open().outcome(claim("tx-other-001"), 2)
    transaction.abort()
    assert filled.open().outcome(claim("tx-asked-001"), 2) == (Outcome.ABORTED, b"")


def left_prepared(ground: Ground, txid: str) -> SnapshotRecord:
    """What a killed agent leaves: a prepared transaction without a lock."""
    transaction, record = ground.prepare(ground.open(), {"a": b"new"}, txid=txid)
    ground.die(transaction)
    return record


@only_directory
def test_aborted_is_said_when_it_is_impossible_to_commit(filled: Ground) -> None:
    left_prepared(filled, "tx-asked-001")
    assert filled.open().outcome(claim("tx-asked-001"), 2)[0] is Outcome.ABORTED
    area = filled.folder / ".dsg"
    assert not (area / "journal.prepared").exists()
    assert not (area / "staging" / "tx-asked-001").exists()


@only_directory
def test_without_the_fence_an_aborted_transaction_can_commit(
    filled: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: an outcome that does not settle first says "aborted", and then it commits after all."""
    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-asked-001")
    filled.die(transaction)
    monkeypatch.setattr(directory_module, "settle", lambda _: [])
    assert filled.open().outcome(claim("tx-asked-001"), 2)[0] is Outcome.ABORTED
    transaction.commit(record.digest, lambda: None)
    assert tree_of(filled.folder)["a"] == b"new", "aborted was a lie: this is what the fence prevents"


def test_with_the_fence_it_cannot(filled: Ground) -> None:
    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-asked-001")
    filled.die(transaction)
    assert filled.open().outcome(claim("tx-asked-001"), 2)[0] is Outcome.ABORTED
    with pytest.raises(IntegrityError, match="gone"):
        transaction.commit(record.digest, lambda: None)
    assert tree_of(filled.folder)["a"] == b"one"


def test_committed_is_read_from_the_chain_without_the_lock(filled: Ground) -> None:
    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-asked-001")
    transaction.commit(record.digest, lambda: None)
    filled.sync({"later": b"x"})
    other = filled.begin(filled.open(), "tx-holds-0001")
    assert filled.open().outcome(claim("tx-asked-001"), 2) == (Outcome.COMMITTED, record.to_bytes())
    other.abort()


@only_directory
@pytest.mark.parametrize("few", [0, 1 << 20])
def test_few_actions_are_decoded_once_and_many_each_time(
    filled: Ground, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_transaction_module, "_FEW_BYTES", few)
    transaction, record = filled.prepare(filled.open(), {"a": b"new", "d/e": b"another"})
    actions = transaction._actions
    assert [action.path for action in actions] == ["a", "d/e"]
    assert (actions._decoded is None) == (few == 0)
    transaction.commit(record.digest, lambda: None)
    assert (tree_of(filled.folder)["a"], tree_of(filled.folder)["d/e"]) == (b"new", b"another")


@only_directory
def test_a_decided_journal_is_committed_at_once(filled: Ground) -> None:
    filled.failpoints = CallAt(Step.REMOTE_DECIDED, die)
    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-asked-001")
    with pytest.raises(Died):
        transaction.commit(record.digest, lambda: None)
    # The dying agent still holds the lock: a reader sees the decision all the same.
    reader = filled.open()
    assert reader.outcome(claim("tx-asked-001"), 2) == (Outcome.COMMITTED, record.to_bytes())
    raw, head, unapplied = reader.head()
    assert (raw, head.seq, unapplied) == (record.to_bytes(), 2, True)
    files = reader.reader(None)
    assert [entry.path for entry in files.manifest()] == ["a", "d/b"]
    files.close()


# The lock.


def test_the_lock_excludes(filled: Ground) -> None:
    one = filled.begin(filled.open(), "tx-first-001")
    with pytest.raises(LockedError) as caught:
        filled.begin(filled.open(), "tx-second-01")
    assert caught.value.facts["txid"] == "tx-first-001"
    one.abort()
    filled.begin(filled.open(), "tx-second-01").abort()


def test_without_the_lock_two_lose_a_file(filled: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with a lock that always succeeds, the second recovers the first's live staging away."""
    original = PosixTree.lock

    def no_lock(self: PosixTree, path: str, *, shared: bool = False) -> Any:
        return original(self, path, shared=True) if path == LOCK else original(self, path, shared=shared)

    monkeypatch.setattr(PosixTree, "lock", no_lock)
    one, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-first-001")
    filled.begin(filled.open(), "tx-second-01")
    with pytest.raises((DsgError, OSError)):
        one.commit(record.digest, lambda: None)


def test_a_stale_note_names_nobody_wrongly(filled: Ground) -> None:
    """A note that a killed holder left means nothing to the next, who writes its own."""
    left_prepared(filled, "tx-killed-01")
    assert (filled.area / "lock.holder").exists()
    second = filled.begin(filled.open(), "tx-second-01")
    with pytest.raises(LockedError) as caught:
        filled.begin(filled.open(), "tx-third-001")
    assert caught.value.facts["txid"] == "tx-second-01"
    second.abort()
    assert not (filled.area / "lock.holder").exists()


@pytest.mark.parametrize("note", [b"", b"garbage", b"[]", b'{"txid": 5}', b'{"pid": "x"}', b"\xff" * 9000])
def test_a_damaged_note_is_only_a_poorer_message(filled: Ground, note: bytes) -> None:
    holder = filled.begin(filled.open())
    (filled.area / "lock.holder").write_bytes(note)
    lock_module_tries = lock_module._NOTE_TRIES
    try:
        lock_module._NOTE_TRIES = 1
        with pytest.raises(LockedError, match="another sync"):
            filled.begin(filled.open())
    finally:
        lock_module._NOTE_TRIES = lock_module_tries
        holder.abort()


def test_the_lock_is_let_go_when_begin_fails(filled: Ground) -> None:
    for step in (Step.REMOTE_LOCKED, Step.REMOTE_BEGUN):
        filled.failpoints = CallAt(step, lambda: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            filled.begin(filled.open())
    filled.failpoints = Ground(filled.folder).failpoints
    filled.begin(filled.open()).abort()


def test_a_child_that_inherited_the_lock_keeps_it(filled: Ground) -> None:
    import subprocess
    import sys

    holder = filled.begin(filled.open())
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[holder._held.fileno()]
    )
    holder.abort()
    with pytest.raises(LockedError):
        filled.begin(filled.open())
    child.communicate(b"\n")
    filled.begin(filled.open()).abort()


# Digests.


def test_without_the_digest_check_another_content_gets_in(
    filled: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with a hasher that always agrees, a wrong content of the right size is committed."""

    def commit_wrong(txid: str) -> None:
        repository = filled.open()
        transaction = filled.begin(repository, txid)
        try:
            reader = repository.reader(None)
            base = reader.manifest()
            reader.close()
            changes = changes_of({"a": b"good"}, [], {}, transaction.seq)
            transaction.change(changes)
            transaction.receive(upload_body(changes, {"a": b"evil"}))
            record = transaction.prepare(merged(base, changes).digest, "", "", "")
            transaction.commit(record.digest, lambda: None)
        finally:
            transaction.abort()

    with pytest.raises(IntegrityError, match="other content"):
        commit_wrong("tx-checked-1")
    assert tree_of(filled.folder)["a"] == b"one"

    class Agrees:
        def update(self, _: object) -> None: ...

        def digest(self) -> bytes:
            return file_entry("a", b"good").content

    monkeypatch.setattr(arrive, "hasher", lambda _: Agrees())
    commit_wrong("tx-unchecked")
    assert tree_of(filled.folder)["a"] == b"evil"


# Flushing.


class CountingTree(PosixTree):
    """Notes the order of flushes and of the renames that matter."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.log: list[str] = []

    def flush(self) -> None:
        self.log.append("flush")
        super().flush()

    def flush_folder(self, path: str) -> None:
        self.log.append(f"flush {path}")
        super().flush_folder(path)

    def move(self, source: str, target: str) -> None:
        self.log.append(f"move {target}")
        super().move(source, target)

    def place(self, source: str, target: str) -> None:
        self.log.append(f"place {target}")
        super().place(source, target)

    def unlink(self, path: str) -> None:
        self.log.append(f"unlink {path}")
        super().unlink(path)


@only_directory
def test_the_order_of_flushes(filled: Ground) -> None:
    """Staging is flushed before the journal, the journal before the decision, all of it before the reply."""
    tree = CountingTree(os.open(filled.folder, os.O_RDONLY | os.O_DIRECTORY))
    repository = filled.open(tree)
    transaction, record = filled.prepare(repository, {"a": b"new", "n": b"x"}, ["d/b"])
    transaction.commit(record.digest, lambda: None)
    log = tree.log
    prepared = log.index("place .dsg/journal.prepared")
    decided = log.index("move .dsg/journal.decided")
    head = log.index("move .dsg/head")
    flushes = [at for at, line in enumerate(log) if line == "flush"]
    assert any(at < prepared for at in flushes), "staging is flushed before the journal speaks of it"
    assert log[prepared + 1] == "flush .dsg"
    assert log[decided + 1] == "flush .dsg"
    assert decided < log.index("place n") < head
    assert log.index("move .dsg/records/00000002") < head
    assert log.index("move .dsg/manifests/00000002") < head
    gone = log.index("unlink .dsg/journal.decided")
    assert any(head < at < gone for at in flushes), "what was applied is flushed before the journal goes"
    assert log[gone + 1] == "flush .dsg"


@only_directory
def test_a_record_that_is_there_is_written_again(filled: Ground) -> None:
    """Who put it there may have died before it was flushed, and only what this process did is."""
    tree = CountingTree(os.open(filled.folder, os.O_RDONLY | os.O_DIRECTORY))
    repository = filled.open(tree)
    repository._place.chain.publish(repository.head()[1], durable=False)
    assert "move .dsg/records/00000001" in tree.log


class FailingTree(CountingTree):
    """A tree on which one kind of call fails from some moment on."""

    fail: Callable[[str], bool] = staticmethod(lambda _: False)

    def flush(self) -> None:
        if self.fail("flush"):
            raise OSError(5, "I/O error")
        super().flush()

    def flush_folder(self, path: str) -> None:
        if self.fail(f"flush {path}"):
            raise OSError(5, "I/O error")
        super().flush_folder(path)

    def move(self, source: str, target: str) -> None:
        if self.fail(f"move {target}"):
            raise OSError(5, "I/O error")
        super().move(source, target)

    def read_bytes(self, path: str, limit: int) -> bytes:
        if self.fail(f"read {path}"):
            raise OSError(5, "I/O error")
        return super().read_bytes(path, limit)


def failing(ground: Ground) -> FailingTree:
    return FailingTree(os.open(ground.folder, os.O_RDONLY | os.O_DIRECTORY))


@only_directory
def test_a_failed_flush_of_staging_aborts(filled: Ground) -> None:
    tree = failing(filled)
    tree.fail = lambda what: what == "flush"
    with pytest.raises(OSError, match="I/O"):
        filled.prepare(filled.open(tree), {"a": b"new"}, txid="tx-fails-001")
    tree.fail = lambda _: False
    assert not (filled.folder / ".dsg" / "journal.prepared").exists()


@only_directory
def test_a_decision_whose_flush_fails_is_in_doubt(filled: Ground) -> None:
    """The rename is done, its durability unknown: neither committed nor aborted may be said."""
    tree = failing(filled)
    transaction, record = filled.prepare(filled.open(tree), {"a": b"new"}, txid="tx-doubt-001")
    tree.fail = lambda what: what == "flush .dsg"
    with pytest.raises(RemoteStorageError) as caught:
        transaction.commit(record.digest, lambda: None)
    assert caught.value.outcome is DsgOutcome.IN_DOUBT
    assert tree_of(filled.folder)["a"] == b"one", "nothing is built on a decision that may not last"
    # The next agent flushes before it answers, and finishes.
    assert filled.open().outcome(claim("tx-doubt-001"), 2)[0] is Outcome.COMMITTED
    filled.open().recover(claim())
    assert tree_of(filled.folder)["a"] == b"new"


@only_directory
def test_a_decision_that_cannot_even_be_looked_at_is_in_doubt_and_keeps_what_it_stands_on(
    filled: Ground,
) -> None:
    tree = failing(filled)
    transaction, record = filled.prepare(filled.open(tree), {"a": b"new"}, txid="tx-doubt-002")
    tree.fail = lambda what: what in ("flush .dsg", "read .dsg/journal.decided")
    with pytest.raises(RemoteStorageError) as caught:
        transaction.commit(record.digest, lambda: None)
    assert caught.value.outcome is DsgOutcome.IN_DOUBT
    tree.fail = lambda _: False
    transaction.abort()
    assert filled.open().outcome(claim("tx-doubt-002"), 2)[0] is Outcome.COMMITTED
    filled.open().recover(claim())
    assert tree_of(filled.folder)["a"] == b"new"


@only_directory
def test_a_decision_that_cannot_be_made_aborts(filled: Ground) -> None:
    tree = failing(filled)
    transaction, record = filled.prepare(filled.open(tree), {"a": b"new"}, txid="tx-fails-001")
    tree.fail = lambda what: what == "move .dsg/journal.decided"
    with pytest.raises(RemoteStorageError, match="disk failed") as caught:
        transaction.commit(record.digest, lambda: None)
    assert caught.value.outcome is DsgOutcome.ABORTED
    assert transaction.state is RemoteState.PREPARED
    tree.fail = lambda _: False
    transaction.abort()
    assert filled.open().outcome(claim("tx-fails-001"), 2)[0] is Outcome.ABORTED
    assert tree_of(filled.folder)["a"] == b"one"


@only_directory
@pytest.mark.parametrize(
    "what", ["move .dsg/head", "move .dsg/manifests/00000002", "flush", "move .dsg/records/00000002"]
)
def test_a_failure_after_the_decision_is_finished_later(filled: Ground, what: str) -> None:
    tree = failing(filled)
    transaction, record = filled.prepare(filled.open(tree), {"a": b"new"}, txid="tx-later-001")
    tree.fail = lambda done: done == what
    done = transaction.commit(record.digest, lambda: None)
    assert any("committed" in note and "recover" in note for note in done.notes)
    assert filled.open().head()[1] == record
    filled.sync({"b": b"after"})
    assert tree_of(filled.folder) == {"a": b"new", "d/b": b"two", "b": b"after"}


@pytest.mark.parametrize("first", [True, False], ids=["decided", "undecided"])
@pytest.mark.parametrize("error", [MemoryError, RecursionError, Died])
def test_a_decision_cut_short_is_in_doubt_and_nothing_is_undone(
    filled: Ground, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], first: bool
) -> None:
    """Whatever ends it, and whether it was made or not: the abort at the session's end leaves it alone."""

    def cut_short(original: Callable[..., None]) -> Callable[..., None]:
        def decide(*given: Any) -> None:
            if first:
                original(*given)
            raise error

        return decide

    for module in (directory_transaction_module, zfs_transaction_module):
        monkeypatch.setattr(module, "decide", cut_short(module.decide))
    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-short-001")
    with pytest.raises((InternalError, Died)) as caught:
        transaction.commit(record.digest, lambda: None)
    if error is not Died:
        assert caught.value.outcome is DsgOutcome.IN_DOUBT  # type: ignore[union-attr]
    monkeypatch.undo()
    transaction.abort()
    told = filled.open().outcome(claim("tx-short-001"), 2)[0]
    assert told is (Outcome.COMMITTED if first else Outcome.ABORTED)
    filled.open().recover(claim())
    assert tree_of(filled.folder) == {"a": b"new" if first else b"one", "d/b": b"two"}
    filled.sync({"b": b"after"})
    assert tree_of(filled.folder)["b"] == b"after"


def test_whatever_stops_a_commit_before_its_decision_undoes_it_before_that_is_told(filled: Ground) -> None:
    """The client hears of a failure that it takes for nothing having come of the commit."""

    def fails() -> None:
        raise MemoryError

    filled.failpoints = CallAt(Step.REMOTE_CHECKED, fails)
    repository = filled.open()
    transaction, record = filled.prepare(repository, {"a": b"new"}, txid="tx-stops-001")
    opened = Opened(repository, "repo")
    opened.transaction = transaction
    agent = Agent(Policy(Role.WRITE, Roots(())), filled.clock, filled.failpoints, "machine")
    agent.opened[1] = opened
    call: Any = type("Call", (), {"method": "tx.commit", "proceed": die})
    with pytest.raises(MemoryError):
        commit(agent, call, Commit(repo=1, txid="tx-stops-001", record=record.digest))
    assert transaction.state is RemoteState.ABORTED
    filled.failpoints = NoFailpoints()
    assert filled.sync({"b": b"after"}).seq == 2


# Copies, and other folders.


@only_directory
def test_a_repository_copied_in_the_middle(filled: Ground, tmp_path: Path) -> None:
    import shutil

    filled.failpoints = CallAt(Step.REMOTE_DECIDED, die)
    transaction, record = filled.prepare(filled.open(), {"a": b"new"})
    with pytest.raises(Died):
        transaction.commit(record.digest, lambda: None)
    copy = Ground(tmp_path / "copy")
    shutil.copytree(filled.folder, copy.folder, symlinks=True)
    with pytest.raises(IntegrityError, match="copied"):
        copy.begin(copy.open())
    assert tree_of(copy.folder)["a"] == b"one"


@only_directory
def test_a_copied_repository_works(filled: Ground, tmp_path: Path) -> None:
    import shutil

    copy = Ground(tmp_path / "copy")
    shutil.copytree(filled.folder, copy.folder, symlinks=True)
    copy.sync({"a": b"in the copy"})
    assert tree_of(copy.folder)["a"] == b"in the copy"
    assert tree_of(filled.folder)["a"] == b"one"


@only_directory
def test_no_nesting(filled: Ground) -> None:
    inner = Ground(filled.folder / "d" / "inner")
    with pytest.raises(DsgError, match="lies inside"):
        inner.init()


def test_an_interrupted_init_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Ground(tmp_path / "repo")
    made.folder.mkdir()
    (made.folder / ".dsg-init-repo-of-a-killed-agent" / "records").mkdir(parents=True)
    made.init()
    made.sync({"a": b"1"})
    assert made.open().head()[1].seq == 1


# Contents that need not be sent.


@only_directory
def test_an_executable_bit_needs_no_content(filled: Ground) -> None:
    repository = filled.open()
    transaction = filled.begin(repository)
    reader = repository.reader(None)
    base = reader.manifest()
    reader.close()
    changes = [file_entry("a", b"one", seq=2, executable=True, mtime_ns=5_000_000_000)]
    transaction.change(changes)
    record = transaction.prepare(merged(base, changes).digest, "", "", "")
    transaction.commit(record.digest, lambda: None)
    path = filled.folder / "a"
    assert path.read_bytes() == b"one"
    assert os.access(path, os.X_OK)
    assert path.stat().st_mtime_ns == 5_000_000_000
    objects = [p for p in (filled.folder / ".dsg" / "history" / "objects").rglob("*") if p.is_file()]
    assert objects == [], "the content stays where it is; a second copy would only take space"
    reader = repository.reader(1)
    wanted = Wanted(0, "a", changes[0].content, 3)
    (source,) = reader.sources(iter([wanted]))
    assert source.file is not None and source.file.read(9) == b"one"
    reader.close()


def test_a_sparse_file_keeps_its_holes(filled: Ground) -> None:
    from protocol.filestream import Packer

    size = 1 << 30
    import hashlib

    sums = hashlib.sha256()
    block = bytes(1 << 24)
    for _ in range((size - 4) >> 24):
        sums.update(block)
    sums.update(bytes((size - 4) % (1 << 24)))
    sums.update(b"tail")
    repository = filled.open()
    transaction = filled.begin(repository)
    entry = file_entry("sparse", b"", seq=2)._replace(content=sums.digest(), size=size)
    transaction.change([entry])
    packer = Packer()
    body = [
        *packer.hole(0, 0, size - 4),
        *packer.chunk(0, size - 4, b"tail"),
        *packer.done(0, size),
        *packer.flush(),
    ]
    transaction.receive(body)
    reader = repository.reader(None)
    record = transaction.prepare(merged(reader.manifest(), [entry]).digest, "", "", "")
    reader.close()
    transaction.commit(record.digest, lambda: None)
    found = (filled.folder / "sparse").stat()
    assert found.st_size == size
    assert found.st_blocks * 512 < 1 << 20


# Readers beside a writer.


def test_a_reader_beside_a_running_sync(ground: Ground) -> None:
    """Commits replace everything again and again; readers of old and new snapshots get what they ask for."""
    names = [f"d{n % 3}/f{n:02d}" for n in range(40)]

    def version(seq: int) -> dict[str, bytes]:
        return {name: f"{name} in {seq}\n".encode() * 50 for name in names}

    ground.sync(version(1))
    over = threading.Event()
    trouble: list[BaseException] = []

    def write() -> None:
        try:
            for seq in range(2, 22):
                ground.sync(version(seq))
        except BaseException as error:
            trouble.append(error)
        finally:
            over.set()

    writer = threading.Thread(target=write)
    writer.start()
    rounds = 0
    began = time.monotonic()
    while not over.is_set() or rounds < 3:
        repository = ground.open()
        seq = repository.head()[1].seq
        reader = repository.reader(seq if rounds % 2 else max(1, seq // 2))
        manifest = reader.manifest()
        expected = version(reader.record.seq)
        wanted = [Wanted(n, entry.path, entry.content, entry.size) for n, entry in enumerate(manifest)]
        for source in reader.sources(iter(wanted)):
            assert source.file is not None, (source.wanted.path, reader.record.seq)
            assert source.file.read(1 << 20) == expected[source.wanted.path]
            source.file.close()
        reader.close()
        assert not repository.find_outside(lambda _: None), "a sync is not an outside change"
        repository.close()
        rounds += 1
        assert time.monotonic() - began < 120
    writer.join()
    assert trouble == []

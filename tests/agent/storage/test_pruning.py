"""Pruning and protecting on every backend: what stays can be read, what goes is gone, at any crash."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dsg_remote_agent.storage import pruning as directory_pruning
from dsg_remote_agent.storage.base import Wanted
from dsg_remote_agent.storage.stock import Fate, Verdict
from dsg_remote_agent.storage.zfs.command import Answer, Zfs
from protocol.digest import hasher
from protocol.errors import DsgError, IntegrityError, LockedError, UsageError, VersionError
from protocol.manifest import FILE
from protocol.records import SnapshotRecord, check_chain
from protocol.tree.posix import PosixTree
from tests.agent.client import tree_of
from tests.agent.storage.ground import Ground, ZfsGround, claim, only_directory
from tests.agent.storage.test_repository import Died
from tests.crash.scene import FULL
from tests.hosts.zfs_wrapper import forbidden

Tree = dict[str, bytes]
DAY = 86_400
SMALL = {"last": 2}


class History:
    """A repository and what each of its snapshots must hold."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.contents: list[Tree] = [{}]

    def sync(self, puts: Tree, deletes: list[str] | None = None) -> None:
        self.ground.clock.time += DAY
        self.ground.sync(puts, deletes)
        gone = set(deletes or ())
        self.contents.append({p: c for p, c in (self.contents[-1] | puts).items() if p not in gone})

    def prune(self, **rules: int) -> list[Fate]:
        repository = self.ground.open()
        try:
            return repository.prune(claim(), rules, dry_run=False, notice=lambda _: None)
        finally:
            repository.close()

    def protect(self, seq: int, on: bool = True) -> None:
        repository = self.ground.open()
        try:
            repository.protect(claim(), seq, on)
        finally:
            repository.close()

    def check(self, present: set[int] | None = None) -> set[int]:
        """Assert that every present snapshot reads as it was made, and every other says that it was pruned.

        Returns the numbers of those that are there; ``present``: they must be these.
        """
        repository = self.ground.open()
        try:
            found = set(repository.stock().present)
            assert present is None or found == present
            records = [SnapshotRecord.from_bytes(raw) for raw in repository.records(0, len(self.contents))]
            check_chain(records)
            assert [record.seq for record in records] == list(range(len(self.contents)))
            for seq, expected in enumerate(self.contents):
                if seq in found:
                    assert self._read(repository, seq) == expected, f"s{seq}"
                else:
                    with pytest.raises(IntegrityError, match=f"s{seq} any more.*pruned") as caught:
                        repository.reader(seq)
                    assert caught.value.hint.startswith("the nearest that are kept: s")
            return found
        finally:
            repository.close()

    @staticmethod
    def _read(repository: Any, seq: int) -> Tree:
        reader = repository.reader(seq)
        try:
            manifest = reader.manifest()
            wanted = [Wanted(n, e.path, e.content, e.size) for n, e in enumerate(manifest) if e.kind == FILE]
            read: Tree = {}
            for one, file in reader.sources(wanted):
                assert file is not None, f"s{seq} lacks {one.path}"
                content = b"".join(iter(lambda file=file: file.read(1 << 20), b""))
                file.close()
                sums = hasher("sha256")
                sums.update(content)
                assert sums.digest() == one.content
                read[one.path] = content
            return read
        finally:
            reader.close()

    def objects(self) -> set[str]:
        """The contents that the directory backend keeps for older snapshots, read from the disk."""
        folder = self.ground.folder / ".dsg" / "history" / "objects"
        return {path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def history(ground: Ground) -> History:
    """s0 to s6; ``f`` comes back to an older content, ``b`` goes in the middle, ``same`` never changes."""
    made = History(ground)
    made.sync({"same": b"same", "f": b"one", "b": b"b"})
    made.sync({"f": b"two", "d/x": b"x"})
    made.sync({"f": b"three"}, ["b"])
    made.sync({"f": b"one", "d/y": b"x"})
    made.sync({"f": b"five", "b": b"again"}, ["d/x"])
    made.sync({"f": b"six"})
    return made


def verdicts(fates: list[Fate]) -> dict[int, str]:
    return {fate.record.seq: fate.verdict.value for fate in fates}


def test_what_no_rule_keeps_is_pruned_and_the_rest_is_whole(history: History) -> None:
    fates = history.prune(last=2)
    assert verdicts(fates) == {
        6: "keep", 5: "keep", 4: "prune", 3: "prune", 2: "prune", 1: "prune", 0: "prune",
    }  # fmt: skip
    history.check({5, 6})
    # Again: nothing is left to do. And life goes on.
    assert verdicts(history.prune(last=2)) == {6: "keep", 5: "keep"}
    history.sync({"f": b"seven"}, ["same"])
    history.check({5, 6, 7})
    assert tree_of(history.ground.folder) == history.contents[-1]


def test_what_is_pruned_in_the_middle_leaves_both_sides_whole(history: History) -> None:
    for seq in (1, 3):
        history.protect(seq)
    assert verdicts(history.prune(last=1)) == {
        6: "keep", 5: "prune", 4: "prune", 3: "keep", 2: "prune", 1: "keep", 0: "prune",
    }  # fmt: skip
    history.check({1, 3, 6})


def test_a_dry_run_changes_nothing_and_needs_no_lock(history: History) -> None:
    repository = history.ground.open()
    transaction = history.ground.begin(history.ground.open())
    fates = repository.prune(claim(), {"last": 1}, dry_run=True, notice=lambda _: None)
    assert [fate.record.seq for fate in fates if fate.verdict is Verdict.PRUNE] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(LockedError):
        repository.prune(claim(), {"last": 1}, dry_run=False, notice=lambda _: None)
    transaction.abort()
    history.check(set(range(7)))


def test_days_are_those_of_the_records(history: History) -> None:
    assert verdicts(history.prune(daily=3)) == {
        6: "keep", 5: "keep", 4: "keep", 3: "prune", 2: "prune", 1: "prune", 0: "prune",
    }  # fmt: skip
    history.check({4, 5, 6})


def test_protection_can_be_repeated_and_removed(history: History) -> None:
    for _ in range(2):
        history.protect(2)
    repository = history.ground.open()
    assert "protected" in (repository.stock().kept(2) or "") or "held" in (repository.stock().kept(2) or "")
    assert repository.stock().kept(3) is None
    repository.close()
    history.prune(last=1)
    history.check({2, 6})
    for _ in range(2):
        history.protect(2, on=False)
    history.prune(last=1)
    history.check({6})


def test_only_what_is_there_can_be_protected(history: History) -> None:
    history.prune(last=2)
    with pytest.raises(UsageError, match="no snapshot s7; its newest is s6"):
        history.protect(7)
    with pytest.raises(UsageError, match="pruned") as caught:
        history.protect(3)
    assert caught.value.facts["nearest"] == [5]
    history.protect(6)
    history.sync({"f": b"seven"})
    history.sync({"f": b"eight"})
    history.prune(last=1)
    history.check({6, 8})


def test_a_sync_whose_base_was_pruned_is_only_out_of_date(history: History) -> None:
    base = history.ground.open().reader(3).record
    history.prune(last=1)
    assert history.ground.open().holds(base.digest)


# Crashes


class Crash:
    """Ends the process, as it were, before or after the Nth thing that changes anything."""

    def __init__(self, number: int, after: bool) -> None:
        self.number = number
        self.after = after
        self.count = 0
        self.words: list[tuple[str, ...]] = []

    def around(self, act: Any) -> Any:
        self.count += 1
        if self.count == self.number and not self.after:
            raise Died
        number = self.count
        try:
            return act()
        finally:
            if number == self.number:
                raise Died

    @contextmanager
    def armed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("unlink", "move", "write_bytes", "flush", "flush_folder", "rmdir", "make_folders"):
                original = getattr(PosixTree, name)

                def acting(tree: Any, *args: Any, _original: Any = original, **options: Any) -> Any:
                    return self.around(lambda: _original(tree, *args, **options))

                patch.setattr(PosixTree, name, acting)
            run = Zfs.run

            def running(zfs: Zfs, *words: str, **options: Any) -> Answer:
                self.words.append(words)
                if options.get("lock") is None:
                    return run(zfs, *words, **options)
                answer: Answer = self.around(lambda: run(zfs, *words, **options))
                return answer

            patch.setattr(Zfs, "run", running)
            yield


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_anywhere_leaves_each_snapshot_whole_or_pruned(
    history: History, after: bool, rng: random.Random
) -> None:
    """At each step with ``DSG_FULL=1``, else at every second one."""
    history.protect(2)
    seen = [history.check()]
    rounds = 0
    skipped = 0 if FULL else rng.randint(0, 1)
    while True:
        rounds += 1
        # There is always something left to prune: one more snapshot for each crash.
        history.sync(
            {"f": b"%d" % rounds, f"only{rounds}": os.urandom(8)}, [f"only{rounds - 1}"][: rounds - 1]
        )
        before = history.check()
        number = rounds if FULL else 2 * rounds - skipped
        crash = Crash(number, after)
        with crash.armed():
            try:
                history.prune(last=3)
            except Died:
                died = True
            else:
                died = False
        assert not [words for words in crash.words if forbidden(list(words))]
        newest = len(history.contents) - 1
        wanted = {2, newest, newest - 1, newest - 2}
        found = history.check()
        assert wanted <= found <= before, number
        seen.append(found)
        if not died:
            assert found == wanted
            break
        if rounds % 2:
            history.ground.open().recover(claim())
            history.check(found)
    assert number > 4
    history.prune(last=3)
    history.check(wanted)
    if not isinstance(history.ground, ZfsGround):
        contents = set().union(*(history.contents[seq].values() for seq in wanted))
        assert {text.encode("utf-8", "surrogateescape") for text in _objects(history)} <= contents


def _objects(history: History) -> set[str]:
    folder = history.ground.folder / ".dsg" / "history" / "objects"
    return {
        path.read_bytes().decode("utf-8", "surrogateescape") for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
def test_random_lives(ground: Ground, rng: random.Random) -> None:
    """Syncs, prunes and protections in any order; a model says what must be there."""
    history = History(ground)
    protected: set[int] = set()
    steps = 40 if isinstance(ground, ZfsGround) else 120
    for _ in range(steps):
        newest = len(history.contents) - 1
        act = rng.random()
        if act < 0.6:
            puts = {f"f{rng.randrange(5)}": b"%d" % rng.randrange(6) for _ in range(rng.randrange(1, 4))}
            puts = {p: c for p, c in puts.items() if history.contents[-1].get(p) != c}
            gone = [p for p in history.contents[-1] if p not in puts and rng.random() < 0.2]
            if puts or gone:
                history.sync(puts, gone)
        elif act < 0.75:
            seq = rng.choice(sorted(history.check()))
            on = rng.random() < 0.6
            history.protect(seq, on)
            protected = protected | {seq} if on else protected - {seq}
        else:
            before = history.check()
            last = rng.randrange(1, 6)
            history.prune(last=last)
            expected = set(sorted(before)[-last:]) | {newest} | protected
            if len(before) < last:
                expected = before
            history.check(expected)
    history.check()


# The directory backend's own


@only_directory
def test_only_what_a_kept_snapshot_needs_is_left(history: History) -> None:
    assert history.objects() == {"one", "two", "three", "five", "b", "x"}
    history.protect(2)
    history.prune(last=1)
    history.check({2, 6})
    assert history.objects() <= {"two", "b", "x"}
    manifests = os.listdir(history.ground.folder / ".dsg" / "manifests")
    assert sorted(manifests) == ["00000002", "00000006"]
    assert len(os.listdir(history.ground.folder / ".dsg" / "records")) == 7


@only_directory
def test_while_somebody_reads_nothing_is_pruned(history: History) -> None:
    repository = history.ground.open()
    reader = repository.reader(1)
    with pytest.raises(LockedError, match="reads"):
        history.prune(last=1)
    history.check(set(range(7)))
    reader.close()
    history.prune(last=1)
    history.check({6})


@only_directory
def test_without_the_readers_lock_one_is_left_without_its_files(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the lock is what that reader is safe by."""
    original = PosixTree.lock
    reader = history.ground.open().reader(1)
    wanted = [Wanted(0, "f", next(e.content for e in reader.manifest() if e.path == "f"), 3)]
    monkeypatch.setattr(
        PosixTree, "lock", lambda tree, path, *, shared=False: original(tree, path, shared=True)
    )
    history.prune(last=1)
    ((_, file),) = reader.sources(wanted)
    assert file is None
    reader.close()


@only_directory
def test_without_the_mark_a_crash_is_taken_for_damage(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the mark comes first, for what is half removed must not look damaged."""
    monkeypatch.setattr(directory_pruning, "_write_pruned", lambda *_, **__: None)
    monkeypatch.setattr(directory_pruning, "read_pruned", lambda _: (frozenset({1, 2}), False))
    history.prune(last=6)
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="damaged"):
        history.ground.open().reader(1).manifest()


@only_directory
def test_a_damaged_manifest_of_a_kept_snapshot_stops_it(history: History) -> None:
    path = history.ground.folder / ".dsg" / "manifests" / "00000005"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    before = history.objects()
    with pytest.raises(IntegrityError, match="damaged"):
        history.prune(last=2)
    assert history.objects() == before, "what it needs may be any of them"
    path.write_bytes(whole)
    history.ground.open().recover(claim())
    history.check({5, 6})
    assert history.objects() < before


@only_directory
@pytest.mark.parametrize("name", ["pruned", "protected"])
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", IntegrityError),
        ("[]", IntegrityError),
        ('{"format": 1, "pruned": 5, "protected": 5}', IntegrityError),
        ('{"format": 1, "pruned": [[3, 1]], "protected": ["x"]}', IntegrityError),
        ('{"format": 2}', VersionError),
    ],
)
def test_a_damaged_mark_is_never_taken_for_none(
    history: History, name: str, text: str, error: type[DsgError]
) -> None:
    (history.ground.folder / ".dsg" / name).write_text(text)
    with pytest.raises(error, match=name):
        history.prune(last=1)
    with pytest.raises(error, match=name):
        history.ground.open().reader(1)
    # The newest snapshot is nobody's to prune: syncs go on.
    history.ground.sync({"f": b"more"})
    assert history.objects() >= {"one", "two", "three", "five", "b", "x"}

"""A crash after every single operation: recovery ends all before or all after, and says which.

On a real file system a killed process loses nothing that it had written; the
model in :mod:`tests.protocol.tree.memory` also loses power.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.tree import apply as apply_module
from protocol.tree.actions import JOURNAL_DECIDED
from protocol.tree.change import Journal, Unexpected, apply, read_journal
from protocol.tree.posix import PosixTree
from protocol.tree.syscalls import Syscalls, system
from tests.protocol.tree.memory import MemoryTree
from tests.protocol.tree.recorder import Killed, Recorder
from tests.protocol.tree.scenario import AFTER, BEFORE, build, commit, contents, problems, recover, stage

POLICIES = list(Unexpected)
_SCRATCH = (".dsg/staging", ".dsg/trash", ".dsg/tmp")
PROC = pytest.mark.skipif(
    not os.path.exists("/proc/self/fd"), reason="no /proc here; to have it: make test, on Linux"
)


def operations(tree: Any, unexpected: Unexpected) -> int:
    """How many mutating operations the whole transaction has."""
    recorder = Recorder(tree, skip_flushes=True)
    commit(recorder, unexpected, [])
    return len(recorder.log)


def stopped_at(tree: Any, allowed: int, unexpected: Unexpected, **options: Any) -> list[str]:
    """Run the transaction and kill it after ``allowed`` operations; what it had finished."""
    progress: list[str] = []
    try:
        commit(Recorder(tree, allowed=allowed, **options), unexpected, progress)
    except Killed:
        pass
    return progress


@pytest.fixture
def fresh(scratch: Path) -> Iterator[Callable[[bool], PosixTree]]:
    """A new real tree with BEFORE in it; the last one is removed first."""
    root = scratch / "tree"
    old_calls = system().but(open_beneath=None, rename_exclusive=None, rename_swap=None)

    def make(modern: bool) -> PosixTree:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        tree = PosixTree.open_tree(str(root), syscalls=system() if modern else old_calls)
        build(Recorder(tree, skip_flushes=True))
        return tree

    yield make


@pytest.mark.parametrize("modern", [True, False], ids=["swap", "no-swap"])
@pytest.mark.parametrize("unexpected", POLICIES)
def test_killed_after_every_operation_and_again_during_recovery(
    fresh: Callable[[bool], PosixTree], unexpected: Unexpected, modern: bool, rng: random.Random
) -> None:
    total = operations(fresh(modern), unexpected)
    assert total > 60
    for allowed in range(total + 1):
        tree = fresh(modern)
        progress = stopped_at(tree, allowed, unexpected, skip_flushes=True)
        second = rng.randrange(12)
        try:
            recover(Recorder(tree, allowed=second, skip_flushes=True), unexpected)
        except Killed:
            pass
        applied = recover(Recorder(tree, skip_flushes=True), unexpected)
        found = problems(tree, unexpected, progress)
        assert not found, f"stopped after {allowed} of {total}, then after {second}: {found}"
        assert applied is None or (not applied.held and not applied.rescued)


@pytest.mark.slow
@pytest.mark.parametrize("can_swap", [True, False], ids=["swap", "no-swap"])
@pytest.mark.parametrize("unexpected", POLICIES)
def test_recovery_killed_after_every_operation(
    unexpected: Unexpected, can_swap: bool, rng: random.Random
) -> None:
    def fresh() -> MemoryTree:
        tree = MemoryTree(can_swap)
        build(tree)
        return tree

    total = operations(fresh(), unexpected)
    for allowed in range(total + 1):
        second = 0
        while True:
            tree = fresh()
            progress = stopped_at(tree, allowed, unexpected)
            try:
                recover(Recorder(tree, allowed=second), unexpected)
                done = True
            except Killed:
                done = False
                recover(tree, unexpected)
            found = problems(tree, unexpected, progress)
            assert not found, f"stopped after {allowed} of {total}, then after {second}: {found}"
            if done:
                break
            second += rng.randint(1, 9)


def power_losses(
    rng: random.Random, unexpected: Unexpected, tree_class: type[MemoryTree] = MemoryTree
) -> Iterator[str]:
    """What is wrong after losing power at every operation, and once more during recovery."""

    def fresh() -> MemoryTree:
        tree = tree_class()
        build(tree)
        # The model's own flush: a subclass may have none, and the start must be sound all the same.
        MemoryTree.flush(tree)
        return tree

    total = operations(fresh(), unexpected)
    for allowed in range(total + 1):
        for _ in range(4):
            tree = fresh()
            progress = stopped_at(tree, allowed, unexpected)
            tree = tree.power_loss(rng)
            try:
                recover(Recorder(tree, allowed=rng.randrange(60)), unexpected)
            except Killed:
                pass
            tree = tree.power_loss(rng)
            recover(tree, unexpected)
            for problem in problems(tree, unexpected, progress):
                yield f"power lost after {allowed} of {total} ({progress[-1:]}): {problem}"


@pytest.mark.slow
@pytest.mark.parametrize("unexpected", POLICIES)
def test_power_lost_after_every_operation(unexpected: Unexpected, rng: random.Random) -> None:
    assert list(power_losses(rng, unexpected)) == []


class _NeverFlushed(MemoryTree):
    def flush(self) -> None:
        return None


class _FoldersNeverFlushed(MemoryTree):
    def flush_folder(self, path: str) -> None:
        return None


class _JournalNeverFlushed(MemoryTree):
    def create(self, path: str) -> Any:
        made = super().create(path)
        finish = made.finish

        class Forgetful:
            write, skip, take, close = made.write, made.skip, made.take, made.close

            def finish(self, *, executable: bool, mtime_ns: int | None, durable: bool = False) -> Any:
                return finish(executable=executable, mtime_ns=mtime_ns)

        return Forgetful()


@pytest.mark.parametrize(
    ("broken", "symptom"),
    [
        (_NeverFlushed, "mixed tree"),  # staged files empty after the decision
        (_FoldersNeverFlushed, "although the decision was durable"),
        (_JournalNeverFlushed, "is damaged"),
    ],
)
def test_control_without_a_flush_the_suite_notices(
    broken: type[MemoryTree], symptom: str, rng: random.Random
) -> None:
    found: list[str] = []
    try:
        for problem in power_losses(rng, Unexpected.KEEP, broken):
            found.append(problem)
            if symptom in problem:
                break
    except Exception as error:
        found.append(str(error))
    assert any(symptom in problem for problem in found), found[:5]


def test_control_without_the_journal_the_suite_notices() -> None:
    mixed = 0
    tree = MemoryTree()
    build(tree)
    stage(tree)
    for allowed in range(40):
        tree = MemoryTree()
        build(tree)
        journal: Journal = stage(tree)
        try:
            apply(Recorder(tree, allowed=allowed), journal, Unexpected.KEEP)
        except Killed:
            pass
        assert read_journal(tree) is None
        recover(tree, Unexpected.KEEP)
        mixed += contents(tree) not in (BEFORE, AFTER)
    assert mixed > 5


def test_control_a_recovery_that_stops_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_module._Run, "_resume_replace", lambda *_: None)
    found: list[str] = []
    for allowed in range(operations(_built(), Unexpected.KEEP) + 1):
        tree = _built()
        progress = stopped_at(tree, allowed, Unexpected.KEEP)
        recover(tree, Unexpected.KEEP)
        found += problems(tree, Unexpected.KEEP, progress)
    assert found


def _built() -> MemoryTree:
    # Without swap: with it, finish would find and save what this recovery leaves in staging.
    tree = MemoryTree(can_swap=False)
    build(tree)
    return tree


@pytest.mark.parametrize("unexpected", POLICIES)
def test_applying_again_changes_nothing(fresh: Callable[[bool], PosixTree], unexpected: Unexpected) -> None:
    tree = fresh(True)
    journal = stage(tree, unexpected)
    first = apply(tree, journal, unexpected)
    assert {path for path, _ in first.stats} == {a.path for a in journal.actions if a.after is not None}
    assert not first.unsure and not first.held and not first.rescued
    for path, stat in first.stats:
        assert tree.stat(path) == stat
    recorder = Recorder(tree)
    second = apply(recorder, journal, unexpected)
    assert contents(tree) == AFTER
    assert not second.held and not second.rescued and not second.stats
    assert sorted(second.unsure) == sorted(path for path, _ in first.stats)
    assert [line for line in recorder.log if not line.startswith(("rmdir", "flush_folder"))] == []


def names(root: Path) -> dict[str, dict[str, int]]:
    """The folders below ``root``, each with its names and their inodes."""
    found = {}
    for folder, folders, files in os.walk(root):
        path = os.path.relpath(folder, root)
        found[path] = {name: os.lstat(os.path.join(folder, name)).st_ino for name in [*folders, *files]}
    return found


def never_flushed(fresh: Callable[[bool], PosixTree], root: Path, unexpected: Unexpected) -> list[str]:
    """Folders whose names changed, and that nobody had flushed when recovery removed the journal.

    The transaction is killed at many points behind its decision, each time in
    a tree of its own whose file system has no syncfs.
    """
    total = operations(fresh(True), unexpected)
    flushed: set[str] = set()
    at_end: list[set[str]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        flushed.add(os.path.realpath(f"/proc/self/fd/{fd}"))
        real(fd)

    def journal_goes(_: int, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "unlink" and arguments == (JOURNAL_DECIDED,):
            at_end.append(set(flushed))

    found = []
    for allowed in range(0, total + 1, 3):
        fresh(True).close()
        before = names(root)
        tree = PosixTree.open_tree(str(root), syscalls=Syscalls())
        progress = stopped_at(tree, allowed, unexpected, skip_flushes=True)
        tree.close()
        if "decided" not in progress or "applied" in progress:
            continue
        successor = PosixTree.open_tree(str(root), syscalls=Syscalls())
        flushed.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            recover(Recorder(successor, before=journal_goes), unexpected)
        successor.close()
        after = names(root)
        # What is in DSG's own scratch folders is never read again.
        changed = [
            path for path in after if after[path] != before.get(path) and not path.startswith(_SCRATCH)
        ]
        missing = [path for path in changed if os.path.realpath(root / path) not in at_end[-1]]
        found += [f"stopped after {allowed} of {total}: {path}" for path in missing]
    assert len(at_end) > 10
    return found


@PROC
@pytest.mark.parametrize("unexpected", POLICIES)
def test_without_syncfs_recovery_flushes_what_the_dead_process_had_renamed(
    fresh: Callable[[bool], PosixTree], scratch: Path, unexpected: Unexpected
) -> None:
    """It must be on the disk before the journal is gone from which it could be done again."""
    assert never_flushed(fresh, scratch / "tree", unexpected) == []


@PROC
@pytest.mark.parametrize("unexpected", POLICIES)
def test_control_without_the_note_it_flushes_its_own_renames_only(
    fresh: Callable[[bool], PosixTree],
    scratch: Path,
    unexpected: Unexpected,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apply_module, "_note_changed", lambda *_: None)
    assert never_flushed(fresh, scratch / "tree", unexpected)

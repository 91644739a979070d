"""The journal on disk: read back as written, refused when damaged, never overwritten."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import IntegrityError, VersionError
from protocol.tree.change import (
    JOURNAL_DECIDED,
    JOURNAL_PREPARED,
    Action,
    Expected,
    Journal,
    JournalState,
    Staged,
    Staging,
    Unexpected,
    apply,
    decide,
    discard_prepared,
    finish,
    read_journal,
    remove_all,
    sweep,
    write_prepared,
)
from protocol.tree.fs import Kind
from protocol.tree.posix import PosixTree
from tests.protocol.tree.memory import MemoryTree
from tests.protocol.tree.scenario import build, stage

FILE = Expected(Kind.FILE, 3, 10**18, 10**18 + 5, 1 << 60)
LINK = Expected(Kind.LINK, 6, -1, 7, 12, "target é")
NEW = Staged(7, Kind.FILE, 1 << 50, 1, 2, True)
KEEP = ".dsg/trash/tx/0"


def journal(*actions: Action, meta: dict[str, Any] | None = None) -> Journal:
    return Journal("tx", "machine", (5, 6), meta or {}, actions)


@pytest.fixture
def tree(tmp_path: Path) -> PosixTree:
    made = PosixTree.open_tree(str(tmp_path))
    made.make_folders(".dsg/tmp")
    return made


def test_what_was_written_is_read_back(tree: PosixTree) -> None:
    actions = (
        Action("a b/\u00e9", None, NEW),
        Action("a b/\udce9", FILE, None, KEEP),  # not UTF-8 on disk
        Action("l", LINK, Staged(8, Kind.LINK, 3, 4, 5, False, "else"), ".dsg/replaced/tx/l"),
        *(Action(f"many/{i:05}", None, NEW._replace(number=i)) for i in range(3000)),
    )
    meta = {"record": b"\0\xff", "rules": {"x": [1, None, True]}, "empty": ""}
    assert read_journal(tree) is None
    write_prepared(tree, journal(*actions, meta=meta))
    for state in JournalState:
        found = read_journal(tree)
        assert found is not None
        assert found[0] is state
        read = found[1]
        assert (read.txid, read.machine, read.root) == ("tx", "machine", (5, 6))
        assert dict(read.meta) == {**meta, "rules": {"x": (1, None, True)}}
        for _ in range(2):
            assert tuple(read.actions) == actions
        if state is JournalState.PREPARED:
            decide(tree)
    assert tree.names(".dsg/tmp") == set()


def test_an_empty_change(tree: PosixTree) -> None:
    write_prepared(tree, journal(meta={"only": "the cache"}))
    decide(tree)
    found = read_journal(tree)
    assert found is not None
    assert tuple(found[1].actions) == ()
    assert not apply(tree, found[1], Unexpected.KEEP).held
    finish(tree, found[1])
    assert read_journal(tree) is None
    assert tree.names(".dsg") == {"tmp", "staging"}


@pytest.mark.parametrize("name", [JOURNAL_PREPARED, JOURNAL_DECIDED])
def test_a_journal_is_never_overwritten(tree: PosixTree, name: str) -> None:
    tree.write_bytes(name, b"another transaction's")
    with pytest.raises(FileExistsError):
        write_prepared(tree, journal())
    assert tree.read_bytes(name, 100) == b"another transaction's"


def test_any_damage_is_noticed_and_nothing_is_changed(rng: random.Random) -> None:
    tree = MemoryTree()
    tree.make_folders(".dsg/tmp")
    write_prepared(tree, journal(Action("a", None, NEW), Action("b", FILE, None, KEEP), meta={"x": 1}))
    good = tree.read_bytes(JOURNAL_PREPARED, 1 << 20)
    damaged = [good[:cut] for cut in range(len(good))]
    for _ in range(300):
        at = rng.randrange(len(good))
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        damaged.append(bytes(changed))
    damaged += [good + b"\0", good + good, b"\0" * len(good)]
    for name in (JOURNAL_PREPARED, JOURNAL_DECIDED):
        if name == JOURNAL_PREPARED:
            tree.unlink(name)
        for content in damaged:
            tree.write_bytes(name, content)
            with pytest.raises((IntegrityError, VersionError)) as caught:
                read_journal(tree)
            assert name in caught.value.message
            assert caught.value.hint
            assert tree.read_bytes(name, 1 << 20) == content
            tree.unlink(name)


def test_a_newer_format_is_told_from_damage(tree: PosixTree) -> None:
    tree.write_bytes(JOURNAL_DECIDED, b"DSGJ2\nwho knows")
    with pytest.raises(VersionError, match="newer version"):
        read_journal(tree)


@pytest.mark.parametrize(
    "actions",
    [
        [Action("b", None, NEW), Action("a", None, NEW)],
        [Action("a", None, NEW), Action("a", None, NEW)],
        [Action("a/b", None, NEW), Action("a", None, NEW)],
        [Action("../a", None, NEW)],
        [Action("/a", None, NEW)],
        [Action("a//b", None, NEW)],
        [Action("", None, NEW)],
        [Action(".dsg/lock", FILE, None, KEEP)],
        [Action(".DSG/lock", FILE, None, KEEP)],
        [Action("a", FILE, None, None)],
        [Action("a", None, NEW, KEEP)],
        [Action("a", FILE, None, "elsewhere/0")],
        [Action("a", FILE, None, ".dsg/../a")],
        [Action("a", None, None)],
    ],
)
def test_actions_that_must_not_be(tree: PosixTree, actions: list[Action]) -> None:
    with pytest.raises(ValueError):
        write_prepared(tree, journal(*actions))
    assert read_journal(tree) is None
    assert tree.names(".dsg/tmp") == set()


@pytest.mark.parametrize("txid", ["", "..", "a/b", "-x", "a" * 65, "tx\n", "é"])
def test_transaction_ids_that_are_no_names(tree: PosixTree, txid: str) -> None:
    with pytest.raises(ValueError):
        Staging(tree, txid)
    with pytest.raises(ValueError):
        write_prepared(tree, Journal(txid, "m", (0, 0), {}, []))


def test_a_full_disk_leaves_no_journal(tree: PosixTree, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError) as caught:
            write_prepared(tree, journal(Action("a", None, NEW)))
    assert caught.value.errno == errno.ENOSPC
    assert read_journal(tree) is None
    assert tree.names(".dsg/tmp") == set()
    write_prepared(tree, journal(Action("a", None, NEW)))


def test_undoing_what_was_prepared() -> None:
    tree = MemoryTree()
    build(tree)
    prepared = stage(tree)
    discard_prepared(tree)  # nothing there yet
    write_prepared(tree, prepared)
    other = Staging(tree, "other")
    other.open()
    discard_prepared(tree)
    assert read_journal(tree) is None
    assert tree.names(".dsg/staging") == {"other"}
    discard_prepared(tree)


def test_a_damaged_prepared_journal_can_be_discarded() -> None:
    tree = MemoryTree()
    build(tree)
    tree.write_bytes(JOURNAL_PREPARED, b"DSGJ1\ngarbage")
    discard_prepared(tree)
    assert read_journal(tree) is None


def test_sweeping_spares_the_living_and_follows_no_link(tree: PosixTree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"x")
    for path in (".dsg/staging/old/1", ".dsg/staging/live/1", ".dsg/trash/old/a", ".dsg/tmp/half"):
        tree.make_folders(path.rpartition("/")[0])
        tree.write_bytes(path, b"")
    tree.symlink(str(outside), ".dsg/staging/old/link")
    tree.symlink(str(outside), ".dsg/tmp/link")
    removed = sweep(tree, keep={"live"})
    assert sorted(removed) == [".dsg/staging/old", ".dsg/tmp/half", ".dsg/tmp/link", ".dsg/trash/old"]
    assert tree.names(".dsg/staging") == {"live"}
    assert tree.names(".dsg/tmp") == tree.names(".dsg/trash") == set()
    assert (outside / "victim").exists()
    assert sweep(PosixTree.open_tree(str(outside))) == []
    remove_all(tree, ".dsg/staging/live")
    remove_all(tree, ".dsg/staging/live")

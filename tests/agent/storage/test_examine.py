"""The look at a whole tree, against one that takes each path for itself; over random trees and edits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsg_remote_agent.storage import comparing, outside
from dsg_remote_agent.storage.beside import Beside
from dsg_remote_agent.storage.outside import examine
from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex, row_of
from protocol.manifest import Entry, Manifest
from protocol.paths import sort_key
from protocol.tree import posix
from protocol.tree.fs import Kind
from protocol.tree.posix import PosixTree
from tests.agent.client import file_entry, link_entry

ROOM = 2  # names in a glance
FOLDERS = ("", "", "d/", "d/", "d/e/", "d.x/", ".dsg.d/", "z/y/x/")


def random_path(rng: random.Random) -> str:
    return rng.choice(FOLDERS) + rng.choice(("a", "b", "c", "d0", "m", "m.csv", "y", "z0"))


def put(folder: Path, path: str, rng: random.Random) -> None:
    """Something at ``path``, unless that needs a folder where a file is."""
    at = folder / path
    try:
        at.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return
    if at.is_dir() and not at.is_symlink():
        shutil.rmtree(at)
    elif os.path.lexists(at):
        at.unlink()
    kind = rng.randrange(8)
    if kind == 0:
        at.symlink_to(rng.choice("ab"))
    elif kind == 1:
        os.mkfifo(at)
    elif kind == 2:
        at.mkdir()
    else:
        at.write_bytes(rng.choice((b"", b"one", b"two")))


def entries_of(folder: Path) -> Manifest:
    made: list[Entry] = []
    for at in folder.rglob("*"):
        path = at.relative_to(folder).as_posix()
        if path.split("/")[0] in (".dsg", ".dsg-init-x"):
            continue
        if at.is_symlink():
            made.append(link_entry(path, os.readlink(at)))
        elif at.is_file():
            made.append(file_entry(path, at.read_bytes()))
    return Manifest.from_entries(sorted(made, key=lambda entry: sort_key(entry.path)))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_same_as_path_by_path(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(outside, "WORTH_TWO", 1 if processes == 2 else 1 << 30)
    monkeypatch.setattr(posix, "GLANCE_NAMES", ROOM)
    monkeypatch.setattr(comparing, "GLANCE_NAMES", ROOM)
    for attempt in range(150):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        (folder / ".dsg").mkdir()
        (folder / ".dsg-init-x").write_bytes(b"")
        for _ in range(rng.randrange(30)):
            put(folder, random_path(rng), rng)
        tree = PosixTree.open_tree(str(folder))
        manifest = entries_of(folder)
        index = StatIndex()
        known: dict[str, IndexRow] = {}
        for entry in manifest:
            known[entry.path] = row = UNKNOWN if rng.random() < 0.05 else row_of(tree.stat(entry.path))
            index.append(row)
        for _ in range(rng.choice((0, 0, 1, 1, 2, 10))):
            put(folder, random_path(rng), rng)
        passed_over = {random_path(rng) for _ in range(rng.choice((0, 0, 5)))}

        modified, deleted, rows = [], [], []
        entries = {entry.path: entry for entry in manifest}
        now = {entry.path: entry for entry in entries_of(folder)}
        for path, entry in entries.items():
            stat = tree.stat(path) if os.path.lexists(folder / path) else None
            if stat is None or stat.kind is Kind.FOLDER:
                deleted.append(path)
                row = UNKNOWN
            elif row_of(stat) == known[path] != UNKNOWN:
                row = known[path]
            elif path in passed_over:
                row = UNKNOWN
            elif path in now and now[path].version == entry.version:
                row = row_of(stat)
            else:
                modified.append(path)
                row = UNKNOWN
            rows.append(row)
        added = [path for path in sorted(now, key=sort_key) if path not in entries]

        before = index.copy()
        seen = examine(tree, manifest, index, note=lambda _: None, passed_over=passed_over.__contains__)
        assert list(seen.outside.modified) == modified
        assert list(seen.outside.deleted) == [path for path in deleted if path not in passed_over]
        assert list(seen.outside.added) == [path for path in added if path not in passed_over]
        assert list(seen.index) == rows
        assert list(index) == list(before), "the stored one is not changed in place"
        more = examine(
            tree, manifest, index, note=lambda _: None, passed_over=passed_over.__contains__, skip=1
        )
        assert more.outside.added == seen.outside.added[1:]
        tree.close()


def test_rows_of_zeros_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that tells nothing of a file does not make it known."""
    (tmp_path / "a").write_bytes(b"edited")
    tree = PosixTree.open_tree(str(tmp_path))
    blind = [glance._replace(numbers=[(0, 0, 0, 0)]) for glance in tree.glance("")]
    monkeypatch.setattr(tree, "glance", lambda _: iter(blind))
    manifest = Manifest.from_entries([file_entry("a", b"content")])
    seen = examine(tree, manifest, StatIndex.unknown(1), note=lambda _: None)
    assert seen.outside.modified == ("a",)


def test_without_a_change_time_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    stat = PosixTree.open_tree(str(tmp_path)).stat("a")
    assert row_of(stat) != UNKNOWN
    assert row_of(stat._replace(ctime_ns=0)) == UNKNOWN


def test_a_file_that_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    tree = PosixTree.open_tree(str(tmp_path))
    manifest = Manifest.from_entries([file_entry("a", b"content")])
    seen = examine(tree, manifest, StatIndex.unknown(1), note=lambda _: (tmp_path / "a").unlink())
    assert seen.outside.deleted == ("a",)
    assert list(seen.index) == [UNKNOWN]


class Answers:
    """The real second process, and what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[bool] = []
        said = self.said

        class Noted(Beside):
            def yes(self, tick: Callable[[], None], limit_s: float) -> bool:
                said.append(super().yes(tick, limit_s))
                return said[-1]

        monkeypatch.setattr(outside, "Beside", Noted)
        monkeypatch.setattr(outside, "WORTH_TWO", 1)


def grown(folder: Path, count: int = 40) -> tuple[PosixTree, Manifest, StatIndex]:
    """Files in four folders and at the top, all known."""
    (folder / ".dsg").mkdir()
    for number in range(count):
        at = folder / "abcd"[number * 4 // count] / f"f{number:03}"
        at.parent.mkdir(exist_ok=True)
        at.write_text(str(number))
    (folder / "top").write_text("t")
    tree = PosixTree.open_tree(str(folder))
    manifest = entries_of(folder)
    index = StatIndex()
    for entry in manifest:
        index.append(row_of(tree.stat(entry.path)))
    return tree, manifest, index


@pytest.mark.parametrize("near", [0, 1, 5, 1024])
@pytest.mark.parametrize(
    "edit", ["", "a/f000", "c/f020", "d/f039", "top", "-b", "-c", "-d", "+c/new", "+new/x"]
)
def test_the_second_half_is_vouched_for_by_another_process_or_looked_at_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str, near: int
) -> None:
    monkeypatch.setattr(comparing, "_NEAR", near)
    answers = Answers(monkeypatch)
    tree, manifest, index = grown(tmp_path)
    if edit.startswith("-"):
        shutil.rmtree(tmp_path / edit[1:])
    elif edit:
        at = tmp_path / edit.lstrip("+")
        at.parent.mkdir(exist_ok=True)
        at.write_text("edited")
    seen = examine(tree, manifest, index, note=lambda _: None)
    found = seen.outside
    changed = [*found.modified, *found.deleted, *found.added]
    # The middle entry is one of c's first: what stands before c is ours to look at.
    assert answers.said == [edit in ("", "a/f000", "-b")]
    if edit.startswith("-"):
        assert found.deleted
        assert all(path.startswith(edit[1:] + "/") for path in changed)
    else:
        assert changed == ([edit.lstrip("+")] if edit else [])
    tree.close()


def test_a_second_process_that_is_killed_vouches_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, manifest, index = grown(tmp_path)
    (tmp_path / "d" / "f039").write_text("edited")
    said: list[bool] = []

    class Killed(Beside):
        def yes(self, tick: Callable[[], None], limit_s: float) -> bool:
            os.kill(self._pid, signal.SIGKILL)
            said.append(super().yes(tick, limit_s))
            return said[-1]

    monkeypatch.setattr(outside, "WORTH_TWO", 1)
    monkeypatch.setattr(outside, "Beside", Killed)
    monkeypatch.setattr(outside, "is_same", lambda *_: time.sleep(60))
    assert list(examine(tree, manifest, index, note=lambda _: None).outside.modified) == ["d/f039"]
    assert said == [False]
    tree.close()


def test_who_believes_the_second_process_blindly_misses_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the answer is what the second half hangs on."""
    tree, manifest, index = grown(tmp_path)
    (tmp_path / "d" / "f039").write_text("edited")
    monkeypatch.setattr(outside, "WORTH_TWO", 1)
    monkeypatch.setattr(outside, "is_same", lambda *_: True)
    assert not examine(tree, manifest, index, note=lambda _: None).outside.modified
    tree.close()

"""Users who edit while a change is applied: whatever they do, and whenever, nothing of theirs is lost."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from protocol.tree.change import (
    Action,
    Applied,
    Expected,
    Journal,
    Staging,
    Unexpected,
    apply,
    decide,
    finish,
    sweep,
    write_prepared,
)
from protocol.tree.fs import Kind
from protocol.tree.posix import PosixTree
from protocol.tree.syscalls import system
from tests.protocol.tree.accounts import as_account, reachable
from tests.protocol.tree.memory import MemoryTree
from tests.protocol.tree.recorder import Killed, Recorder
from tests.protocol.tree.scenario import (
    AFTER,
    BEFORE,
    TXID,
    Content,
    build,
    contents,
    recover,
    stage,
    write,
)

PATHS = sorted(
    {p for p in {*BEFORE, *AFTER} if BEFORE.get(p) != AFTER.get(p)} | {"created", "file-to-folder/inside"}
)
EDITS = ["append", "replace", "delete", "folder", "link", "chmod", "unnoticeable"]
MINE = b"by the user, at the wrong moment"


@define
class User:
    """Somebody else in the same tree."""

    tree: Any
    root: Path | None  # of a real tree

    def content(self, path: str) -> Content | None:
        try:
            stat = self.tree.stat(path)
        except OSError:
            return None
        if stat.kind is Kind.LINK:
            return str(self.tree.readlink(path))
        return (self.tree.read_bytes(path, 1 << 20), stat.executable) if stat.kind is Kind.FILE else None

    def rewrite(self, path: str, content: bytes, mtime_ns: int | None = None) -> None:
        """In place: the inode stays."""
        if self.root is None:
            node = self.tree._find(path)[2]
            node.data = content
            node.ctime_ns = self.tree.tick()
            node.mtime_ns = node.ctime_ns if mtime_ns is None else mtime_ns
        else:
            with open(self.root / path, "r+b") as file:
                file.truncate(0)
                file.write(content)
            if mtime_ns is not None:
                os.utime(self.root / path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def edit(self, how: str, path: str) -> tuple[str, Content | None] | None:
        """(path, what must survive) or None when this edit is not possible now."""
        now = self.content(path)
        try:
            if how in ("append", "unnoticeable", "chmod"):
                if not isinstance(now, tuple):
                    return None
                if how == "chmod":
                    self.tree.set_executable(path, not now[1])
                    return path, self.content(path)
                if how == "append":
                    self.rewrite(path, now[0] + MINE)
                else:
                    if not now[0]:
                        return None
                    self.rewrite(path, now[0].swapcase(), self.tree.stat(path).mtime_ns)
                return path, self.content(path)
            if now is None and how == "delete":
                return None
            if now is not None:
                self.tree.unlink(path)
            if how == "delete":
                return path, None
            if how == "folder":
                path = f"{path}/user.txt"
            made: Content = "where the user points" if how == "link" else (MINE, False)
            write(self.tree, path, made)
            return path, made
        except OSError:
            return None  # a folder or a file in the way: this user gives up


def everything(tree: Any, folder: str = "") -> dict[str, Content]:
    """All files and links, DSG's own area too."""
    found: dict[str, Content] = {}
    for name, stat in list(tree.scan(folder)):
        path = f"{folder}/{name}" if folder else name
        if stat.kind is Kind.FOLDER:
            found.update(everything(tree, path))
        else:
            found[path] = User(tree, None).content(path) or ""
    return found


def related(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}/") or b.startswith(f"{a}/")


def run(
    tree: Any, root: Path | None, unexpected: Unexpected, how: str, path: str, moment: int, crash: bool
) -> list[str]:
    """One transaction with one edit before operation ``moment`` of its apply; what is wrong afterwards."""
    build(Recorder(tree, skip_flushes=True))
    quiet = Recorder(tree, skip_flushes=True)
    journal = stage(quiet, unexpected)
    write_prepared(quiet, journal)
    decide(quiet)
    user = User(tree, root)
    done: list[tuple[str, Content | None, str]] = []

    def interfere(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number != moment or done:
            return
        # Between the last look and the rename only the ctime could tell, and the rename sets it anew.
        if how in ("unnoticeable", "chmod") and path in arguments:
            return
        edited = user.edit(how, path)
        if edited is not None:
            done.append((*edited, f"{name} {arguments}"))
            if crash:
                recorder.dead = True
                raise Killed

    recorder = Recorder(tree, before=interfere, skip_flushes=True)
    saved: list[tuple[str, str]] = []
    applied = Applied([], [], [], [])
    try:
        applied = apply(recorder, journal, unexpected)
        saved = finish(recorder, journal, unexpected)
        sweep(recorder)
    except Killed:
        applied = recover(Recorder(tree, skip_flushes=True), unexpected) or applied
    if not done:
        return []
    where, mine, when = done[0]
    return [
        f"{how} {where} before {when}{', then killed' if crash else ''}: {problem}"
        for problem in judge(tree, unexpected, how, applied, saved, where, mine)
    ]


def judge(
    tree: Any,
    unexpected: Unexpected,
    how: str,
    applied: Applied,
    saved: list[tuple[str, str]],
    where: str,
    mine: Content | None,
) -> list[str]:
    found = []
    now, all_now = contents(tree), everything(tree)
    held = {item.path for item in applied.held}
    if mine is not None:
        places = [p for p, content in all_now.items() if content == mine]
        if not places:
            found.append("the user's version is lost")
        elif unexpected is Unexpected.KEEP and where not in places:
            found.append(f"the user's version was moved to {places}")
        elif where not in places and not any(
            related(w, p) for _, w in (*applied.rescued, *saved) for p in places
        ):
            found.append("the user's version was moved and nobody told")
    found += [
        f"{other!r} has nothing to do with it and is {now.get(other)!r}"
        for other in {*BEFORE, *AFTER, *now}
        if not related(other.rstrip("/"), where) and now.get(other) != AFTER.get(other)
    ]
    if any(not related(p, where) for p in held):
        found.append(f"held: {held}")
    stats = dict(applied.stats)
    for placed, stat in stats.items():
        try:
            same = tree.stat(placed) == stat
        except OSError:
            same = False
        if same and how != "chmod" and now.get(placed) != AFTER[placed]:
            found.append(f"the stat of {placed} is promised to be of what was placed")
    if applied.stats or applied.unsure:
        found += [
            f"{target} is neither placed, nor unsure, nor held"
            for target in {*AFTER} - held - {p for p in BEFORE if BEFORE[p] == AFTER.get(p)}
            if target not in stats and target not in applied.unsure
        ]
    for name, content in all_now.items():
        if name.startswith(".dsg/history/objects/") and content[0].hex() != name.rpartition("/")[2]:  # type: ignore[union-attr]
            found.append(f"history holds something else under the name {name}")
        if name.startswith((".dsg/staging", ".dsg/trash", ".dsg/tmp", ".dsg/journal")):
            found.append(f"{name} is left")
    return found


@pytest.mark.parametrize("can_swap", [True, False], ids=["swap", "no-swap"])
@pytest.mark.parametrize("unexpected", list(Unexpected))
def test_any_edit_at_any_moment(unexpected: Unexpected, can_swap: bool, rng: random.Random) -> None:
    for _ in range(400):
        found = run(
            MemoryTree(can_swap),
            None,
            unexpected,
            rng.choice(EDITS),
            rng.choice(PATHS),
            rng.randrange(70),
            rng.random() < 0.4,
        )
        assert not found, found


@pytest.mark.parametrize("modern", [True, False], ids=["swap", "no-swap"])
@pytest.mark.parametrize("unexpected", list(Unexpected))
def test_any_edit_at_any_moment_on_disk(
    scratch: Path, unexpected: Unexpected, modern: bool, rng: random.Random
) -> None:
    old_calls = system().but(open_beneath=None, rename_exclusive=None, rename_swap=None)
    root = scratch / "tree"
    for _ in range(60):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        tree = PosixTree.open_tree(str(root), syscalls=system() if modern else old_calls)
        found = run(
            tree,
            root,
            unexpected,
            # In place twice within one tick of the clock is not told apart by any stat.
            rng.choice([how for how in EDITS if how != "unnoticeable"]),
            rng.choice(PATHS),
            rng.randrange(70),
            rng.random() < 0.4,
        )
        assert not found, found


@pytest.mark.parametrize("unexpected", list(Unexpected))
def test_control_without_judging_what_came_out_edits_are_lost(
    unexpected: Unexpected, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = [("append", p, m) for p in ("changed.csv", "deleted.csv") for m in range(60)]

    def lost() -> list[str]:
        return [
            problem
            for how, path, moment in moments
            for problem in run(MemoryTree(), None, unexpected, how, path, moment, False)
        ]

    assert not lost()
    monkeypatch.setattr(Expected, "came_out", lambda self, stat: True)
    assert any("lost" in p or "something else" in p for p in lost())


@pytest.fixture
def tree(tmp_path: Path) -> PosixTree:
    made = PosixTree.open_tree(str(tmp_path))
    made.make_folders(".dsg/tmp")
    return made


def change(
    tree: Any, actions: list[Action], unexpected: Unexpected, between: Callable[[], object] = lambda: None
) -> Applied:
    journal = Journal(TXID, "m", (0, 0), {}, actions)
    write_prepared(tree, journal)
    between()
    decide(tree)
    applied = apply(tree, journal, unexpected)
    finish(tree, journal, unexpected)
    return applied


def staged(tree: Any, number: int, content: bytes) -> Any:
    staging = Staging(tree, TXID)
    staging.open()
    made = staging.create(number)
    made.write(content)
    return staging.staged(number, made.finish(executable=False, mtime_ns=None))


def test_an_open_file_written_after_it_was_trashed_is_saved(tree: PosixTree, tmp_path: Path) -> None:
    write(tree, "a.csv", (b"one", False))
    journal = Journal(
        TXID,
        "m",
        (0, 0),
        {},
        [Action("a.csv", Expected.of(tree.stat("a.csv")), None, f".dsg/trash/{TXID}/0")],
    )
    tree.make_folders(f".dsg/staging/{TXID}")
    write_prepared(tree, journal)
    decide(tree)
    with open(tmp_path / "a.csv", "ab") as still_open:
        assert not apply(tree, journal, Unexpected.KEEP).held
        still_open.write(b", two")
        still_open.flush()
        assert finish(tree, journal) == [("a.csv", f".dsg/replaced/{TXID}/a.csv")]
    assert (tmp_path / f".dsg/replaced/{TXID}/a.csv").read_bytes() == b"one, two"


def test_a_file_where_a_folder_was_expected(tree: PosixTree, tmp_path: Path) -> None:
    new = staged(tree, 0, b"new")
    applied = change(
        tree, [Action("a/b/c", None, new)], Unexpected.KEEP, lambda: write(tree, "a", (b"me", False))
    )
    assert [(h.path, h.reason) for h in applied.held] == [("a/b/c", "'a' is not a folder")]
    assert (tmp_path / "a").read_bytes() == b"me"


def test_a_link_in_a_path_is_never_followed(
    tree: PosixTree, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    for unexpected in Unexpected:
        new = staged(tree, 0, b"new")
        folder = tmp_path / unexpected.value
        path = f"{unexpected.value}/x"
        applied = change(tree, [Action(path, None, new)], unexpected, partial(os.symlink, outside, folder))
        assert list(outside.iterdir()) == []
        if unexpected is Unexpected.KEEP:
            assert [h.path for h in applied.held] == [path]
        else:
            assert applied.rescued == [("rescue", f".dsg/rescued/{TXID}/rescue")]
            assert (tmp_path / path).read_bytes() == b"new"
            assert os.readlink(tmp_path / f".dsg/rescued/{TXID}/rescue") == str(outside)


def test_ignored_files_keep_a_folder_and_hollow_folders_do_not(tree: PosixTree, tmp_path: Path) -> None:
    for name in ("full", "hollow"):
        write(tree, f"{name}/tracked", (b"x", False))
    write(tree, "full/deep/ignored.tmp", (b"mine", False))
    tree.make_folders("hollow/a/b")
    actions = []
    for number, name in enumerate(("full", "hollow")):
        actions.append(Action(name, None, staged(tree, number, b"a file now")))
        actions.append(
            Action(
                f"{name}/tracked",
                Expected.of(tree.stat(f"{name}/tracked")),
                None,
                f".dsg/trash/{TXID}/{number}",
            )
        )
    applied = change(tree, actions, Unexpected.KEEP)
    assert [h.path for h in applied.held] == ["full"]
    assert contents(tree) == {"full/deep/ignored.tmp": (b"mine", False), "hollow": (b"a file now", False)}


def test_a_folder_that_must_go_is_rescued_whole(tree: PosixTree, tmp_path: Path) -> None:
    write(tree, "full/deep/unknown", (b"theirs", False))
    applied = change(tree, [Action("full", None, staged(tree, 0, b"new"))], Unexpected.RESCUE)
    assert applied.rescued == [("full", f".dsg/rescued/{TXID}/full")]
    assert contents(tree) == {"full": (b"new", False)}
    assert (tmp_path / f".dsg/rescued/{TXID}/full/deep/unknown").read_bytes() == b"theirs"


def test_two_rescues_of_one_name_do_not_meet(tree: PosixTree, tmp_path: Path) -> None:
    write(tree, f".dsg/rescued/{TXID}/a", (b"earlier", False))
    write(tree, f".dsg/rescued/{TXID}~2/a/b", (b"earlier still", False))
    write(tree, "a", (b"unexpected", False))
    applied = change(tree, [Action("a", None, staged(tree, 0, b"new"))], Unexpected.RESCUE)
    assert ("a", f".dsg/rescued/{TXID}~3/a") in applied.rescued
    assert (tmp_path / f".dsg/rescued/{TXID}~3/a").read_bytes() == b"unexpected"
    assert (tmp_path / f".dsg/rescued/{TXID}/a").read_bytes() == b"earlier"
    # What interrupted runs of this transaction rescued is told again.
    assert ("a", f".dsg/rescued/{TXID}/a") in applied.rescued


@pytest.mark.parametrize("unexpected", list(Unexpected))
def test_case_only_renames_on_a_file_system_that_folds_case(unexpected: Unexpected) -> None:
    tree = MemoryTree(folds_case=True)
    build(tree, {"Data/A.csv": (b"old", False), "b.csv": (b"b", False)})
    actions = [
        Action("Data/A.csv", Expected.of(tree.stat("Data/A.csv")), None, f".dsg/trash/{TXID}/0"),
        Action("Data/a.csv", None, staged(tree, 0, b"new")),
    ]
    for _ in range(2):
        journal = Journal(TXID, "m", (0, 0), {}, actions)
        applied = apply(tree, journal, unexpected)
        assert not applied.held and not applied.rescued
        assert contents(tree) == {"Data/a.csv": (b"new", False), "b.csv": (b"b", False)}


def test_only_the_exact_name_is_deleted_where_case_is_folded() -> None:
    tree = MemoryTree(folds_case=True)
    build(tree, {"A.csv": (b"old", False)})
    action = Action("A.csv", Expected.of(tree.stat("A.csv")), None, f".dsg/trash/{TXID}/0")
    node = tree._find("A.csv")[2]
    tree.move("A.csv", "a.csv")  # the user renames it; on disk it is found by both names
    evolved = action._replace(before=action.before._replace(ctime_ns=node.ctime_ns))  # type: ignore[union-attr]
    apply(tree, Journal(TXID, "m", (0, 0), {}, [evolved]), Unexpected.KEEP)
    assert contents(tree) == {"a.csv": (b"old", False)}


def unwritable(tree: PosixTree, root: Path) -> None:
    """A folder that cannot be written holds its paths; the others go on. Not for root, who may do all."""
    write(tree, "locked/a", (b"a", False))
    write(tree, "open/a", (b"a", False))
    actions = [
        Action(p, Expected.of(tree.stat(p)), None, f".dsg/trash/{TXID}/{i}")
        for i, p in enumerate(("locked/a", "open/a"))
    ]
    (root / "locked").chmod(0o555)
    applied = change(tree, actions, Unexpected.KEEP)
    (root / "locked").chmod(0o755)
    assert [h.path for h in applied.held] == ["locked/a"]
    assert contents(tree) == {"locked/a": (b"a", False)}


def test_a_folder_that_cannot_be_written_holds_its_paths(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        unwritable(PosixTree.open_tree(str(tmp_path)), tmp_path)
        return
    reachable(tmp_path)
    os.chown(tmp_path, 61001, 61001)
    as_account(61001, 61001, [], 0o022, lambda: unwritable(PosixTree.open_tree(str(tmp_path)), tmp_path))

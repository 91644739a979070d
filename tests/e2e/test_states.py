"""Each of the 15 states of the sync matrix, made with real folders and real syncs over SSH.

A state is written with one letter for each of L, C and R: X, Y and Z are
versions, ``-`` is nothing. C comes about by a sync of both persons, R by what
bob then syncs, L by what ann then does. Everything expected is typed out by
hand from the design's table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import frozen

from tests.e2e.oracle import File, Link, Tree, Version, digests, photograph
from tests.e2e.world import Client, World

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

ANCHOR: Tree = {"input/anchor": File(b"nobody touches this\n")}
INDEX = {".dsg/index", ".dsg/index.late"}

# path -> its versions X, Y and Z
VARIANTS: dict[str, dict[str, Version]] = {
    "input/plain.csv": {"X": File(b"x1"), "Y": File(b"y1"), "Z": File(b"z1")},
    "input/deep/er/empty": {"X": File(b"something"), "Y": File(b""), "Z": File(b"else")},
    "input/bit.sh": {"X": File(b"go"), "Y": File(b"go", True), "Z": File(b"stop", True)},
    "input/link": {"X": Link("anchor"), "Y": Link("deep/nowhere"), "Z": Link("../notes.txt")},
    "input/file to link": {"X": File(b"f"), "Y": Link("plain.csv"), "Z": File(b"ff")},
    "input/-link \U0001f517 'to' \"file\"": {"X": Link("a"), "Y": File(b"was a link", True), "Z": Link("b")},
    "input/é/" + 63 * "\U0001f4be": {"X": File(200_000 * b"x"), "Y": File(200_000 * b"y"), "Z": File(b"")},
}


@frozen
class State:
    """One row of the table. ``after`` is what L, C and R then are; where it is missing, it is a conflict."""

    name: str
    before: str
    action: str
    after: str | None
    snapshot: bool = False
    if_local: tuple[str, bool] | None = None  # after, and whether a snapshot is made
    if_remote: tuple[str, bool] | None = None
    kept: str = ""  # the version of L that goes to .dsg/replaced when remote is preferred


STATES = [
    State("L=C=R", "XXX", "none", "XXX"),
    State("L=C≠R", "XXY", "download", "YYY"),
    State("L=R≠C", "YXY", "none", "YYY"),
    State("C=R≠L", "YXX", "upload", "YYY", True),
    State("all differ", "YXZ", "conflict", None, False, ("YYY", True), ("ZZZ", False), "Y"),
    State("C=R, no L", "-XX", "delete_remote", "---", True),
    State("C≠R, no L", "-XY", "conflict", None, False, ("---", True), ("YYY", False)),
    State("L=R, no C", "X-X", "none", "XXX"),
    State("L≠R, no C", "X-Y", "conflict", None, False, ("XXX", True), ("YYY", False), "X"),
    State("L=C, no R", "XX-", "delete_local", "---"),
    State("L≠C, no R", "YX-", "conflict", None, False, ("YYY", True), ("---", False), "Y"),
    State("only R", "--X", "download", "XXX"),
    State("only C", "-X-", "none", "---"),
    State("only L", "X--", "upload", "XXX", True),
    State("none", "---", "none", "---"),
]
# At these paths L's version that loses differs from one that a snapshot holds by the executable bit alone.
HELD_ANYWAY = {"input/bit.sh"}


def all_at(letter: str) -> dict[str, Version | None]:
    """Every path of VARIANTS at one version, or absent."""
    return {path: None if letter == "-" else versions[letter] for path, versions in VARIANTS.items()}


def tree_at(letter: str) -> Tree:
    return ANCHOR | {path: version for path, version in all_at(letter).items() if version is not None}


@pytest.fixture(scope="module")
def bases(either_world: Callable[[], World]) -> dict[str, World]:
    """Ann and bob in step: with every path at X, and with none of them."""
    world = either_world()
    ann = world.init("ann")
    ann.put_all(ANCHOR)
    ann.put("notes.txt", File(b"not in scope"))
    ann.must("sync")
    bob = world.clone("bob")
    empty = world.copy(world.folder / "empty")
    ann.put_all(all_at("X"))
    ann.must("sync")
    bob.must("sync")
    return {"X": world, "-": empty}


@pytest.fixture(scope="module")
def made(bases: dict[str, World]) -> Callable[[State], World]:
    """The world in a state, up to ann's own sync; made once for each state."""
    known: dict[str, World] = {}

    def make(state: State) -> World:
        if state.name not in known:
            local, cache, remote = tuple(state.before)
            world = bases[cache].copy(bases[cache].folder / f"state {len(known)}")
            if remote != cache:
                world.clients["bob"].put_all(all_at(remote))
                world.clients["bob"].must("sync")
            if local != cache:
                world.clients["ann"].put_all(all_at(local))
            known[state.name] = world
        return known[state.name]

    return make


@pytest.mark.parametrize("prefer", [None, "local", "remote"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_state(state: State, prefer: str | None, made: Callable[[State], World], tmp_path: Path) -> None:
    world = made(state).copy(tmp_path)
    ann = world.clients["ann"]
    local, cache, remote = map(tree_at, state.before)
    # The state is what it is called.
    before = world.remote().check()
    assert ann.local() == local | {"notes.txt": File(b"not in scope")}
    assert ann.cache().tree == digests(cache)
    assert before.live == remote
    pictures = photograph(ann.folder, without=INDEX), photograph(world.repository)

    ended = ann.sync(*(["--prefer", prefer] if prefer else []))

    after, snapshot = state.after, state.snapshot
    if after is None and prefer == "local":
        assert state.if_local is not None
        after, snapshot = state.if_local
    if after is None and prefer == "remote":
        assert state.if_remote is not None
        after, snapshot = state.if_remote
    if after is None:
        assert ended.status == 3, ended
        told = ended.document["error"]
        assert told["code"] == "conflict" and told["outcome"] == "aborted"
        assert {c["path"] for c in told["facts"]["conflicts"]} == set(VARIANTS)
        assert pictures == (photograph(ann.folder, without=INDEX), photograph(world.repository))
        return
    assert ended.status == 0, ended
    assert ann.local() == tree_at(after[0]) | {"notes.txt": File(b"not in scope")}
    assert ann.cache().tree == digests(tree_at(after[1]))
    now = world.remote().check()
    assert now.live == tree_at(after[2])
    assert len(now.records) == len(before.records) + snapshot
    assert (ann.cache().record, ann.cache().seq) == (now.head.digest, now.head.seq)
    if state.after is not None:
        moved = {
            action: set(paths)
            for action, paths in ended.document["changes"].items()
            if isinstance(paths, list)
        }
        expected: dict[str, set[str]] = {key: set() for key in moved}
        if state.action != "none":
            expected[state.action] = set(VARIANTS)
        assert moved == expected
    kept = state.kept if prefer == "remote" else ""
    assert ann.replaced() == {p: v[kept] for p, v in VARIANTS.items() if kept and p not in HELD_ANYWAY}


# Files, folders and links in one another's place


LETTERS: dict[str, Version] = {"X": File(b"x"), "Y": File(b"y", True), "Z": File(b"z")}


def tree_of(text: str) -> Tree:
    """``a/b=X c->d``: the file ``a/b`` at version X, and a link."""
    links = {path: Link(target) for path, arrow, target in (w.partition("->") for w in text.split()) if arrow}
    files = {path: LETTERS[v] for path, equals, v in (w.partition("=") for w in text.split()) if equals}
    return files | links


@frozen
class Shape:
    """Something that is one thing here and another there. ``before`` is C, ``here`` is L, ``there`` is R.

    ``after`` is what both sides then are. Where it is a conflict:
    ``if_local`` and ``if_remote`` are what each preference makes of it, and
    ``kept`` what of L then goes to ``.dsg/replaced``.
    """

    name: str
    before: str
    here: str
    there: str
    after: str = ""
    if_local: str = ""
    if_remote: str = ""
    kept: str = ""


PEACEFUL = [
    Shape("file becomes folder there", "a=X", "a=X", "a/b=X a/c/d=Y", "a/b=X a/c/d=Y"),
    Shape("folder becomes file there", "a/b=X a/c/d=Y", "a/b=X a/c/d=Y", "a=Z", "a=Z"),
    Shape("file becomes folder here", "a=X", "a/b=Y", "a=X", "a/b=Y"),
    Shape("folder becomes file here", "a/b=X a/c=X", "a=Y", "a/b=X a/c=X", "a=Y"),
    Shape("folder becomes link there", "a/b=X d/e=X", "a/b=X d/e=X", "a->d d/e=X", "a->d d/e=X"),
    Shape("folder becomes link here", "a/b=X d/e=X", "a->d d/e=X", "a/b=X d/e=X", "a->d d/e=X"),
    Shape("link becomes folder there", "a->d d/e=X", "a->d d/e=X", "a/b=X d/e=X", "a/b=X d/e=X"),
    Shape("file becomes the same folder on both sides", "a=X", "a/b=Y", "a/b=Y", "a/b=Y"),
    Shape("folder becomes the same link on both sides", "a/b=X", "a->c", "a->c", "a->c"),
    Shape("folder moves into a file's place", "a/b=X c=Y", "c/b=X", "a/b=X c=Y", "c/b=X"),
    Shape("a name's case changes there", "a/B.csv=X", "a/B.csv=X", "a/b.csv=X", "a/b.csv=X"),
    Shape("a folder's case changes here", "A/b=X", "a/b=X", "A/b=X", "a/b=X"),
]
# before, here, there; no outcome; if local, if remote, kept
DISPUTED = [
    Shape("file changes there, is a folder here", "a=X", "a/b=Y", "a=Z", "", "a/b=Y", "a=Z", "a/b=Y"),
    Shape("file changes here, is a folder there", "a=X", "a=Z", "a/b=Y", "", "a=Z", "a/b=Y", "a=Z"),
    Shape("new file, new folder", "", "a=X", "a/b=Y a/c/d=Z", "", "a=X", "a/b=Y a/c/d=Z", "a=X"),
    Shape("new folder, new link", "", "a/b=X a/c=Y", "a->d", "", "a/b=X a/c=Y", "a->d", "a/b=X a/c=Y"),
    Shape("folder becomes file and link", "a/b=X", "a=Y", "a->b", "", "a=Y", "a->b", "a=Y"),
    Shape("file below changes, folder becomes file", "a/b=X", "a/b=Y", "a=Z", "", "a/b=Y", "a=Z", "a/b=Y"),
    Shape("folder becomes file, grows there", "a/b=X", "a=Y", "a/b=X a/c=Z", "", "a=Y", "a/c=Z", "a=Y"),
    Shape("names differ in case", "", "Data=X", "data=Y", "", "Data=X", "data=Y", "Data=X"),
    Shape("folders differ in case", "", "Raw/a=X", "raw/b=Y", "", "Raw/a=X", "raw/b=Y", "Raw/a=X"),
]


def gathered(shapes: list[Shape], part: str) -> Tree:
    """One part of all shapes, each in a folder of its own, beside anchors that stay."""
    found: Tree = {}
    if part != "kept":
        found |= {f"input/anchors/{number:02}": File(b"%d" % number) for number in range(20)}
    for number, shape in enumerate(shapes):
        tree = tree_of(getattr(shape, part))
        found |= {f"input/{number}/{path}": version for path, version in tree.items()}
    return found


def brought_to(client: Client, tree: Tree) -> None:
    """Make a working folder this tree."""
    client.put_all({path: None for path in client.local() if path not in tree})
    client.put_all(tree)
    assert client.local() == tree


@pytest.fixture(scope="module", params=["peaceful", "disputed"])
def shaped(request: pytest.FixtureRequest, either_world: Callable[[], World]) -> tuple[list[Shape], World]:
    """All shapes of one kind in one world, up to ann's own sync."""
    shapes = PEACEFUL if request.param == "peaceful" else DISPUTED
    world = either_world()
    ann = world.init("ann")
    brought_to(ann, gathered(shapes, "before"))
    ann.must("sync")
    bob = world.clone("bob")
    brought_to(bob, gathered(shapes, "there"))
    bob.must("sync")
    brought_to(ann, gathered(shapes, "here"))
    return shapes, world


@pytest.mark.parametrize("prefer", [None, "local", "remote"])
def test_shapes(shaped: tuple[list[Shape], World], prefer: str | None, tmp_path: Path) -> None:
    shapes, world = shaped
    world = world.copy(tmp_path)
    ann, bob = world.clients["ann"], world.clients["bob"]
    assert ann.cache().tree == digests(gathered(shapes, "before"))
    assert world.remote().check().live == gathered(shapes, "there")
    pictures = photograph(ann.folder, without=INDEX), photograph(world.repository)

    ended = ann.sync(*(["--prefer", prefer] if prefer else []))

    if shapes is DISPUTED and prefer is None:
        assert ended.status == 3, ended
        told = {c["path"] for c in ended.document["error"]["facts"]["conflicts"]}
        for number, shape in enumerate(shapes):
            assert any(path.startswith(f"input/{number}/") for path in told), shape.name
        assert pictures == (photograph(ann.folder, without=INDEX), photograph(world.repository))
        return
    assert ended.status == 0, ended
    after = gathered(shapes, "after" if shapes is PEACEFUL else f"if_{prefer}")
    assert ann.local() == after
    assert ann.cache().tree == digests(after)
    assert world.remote().check().live == after
    kept = gathered(shapes, "kept") if prefer == "remote" and shapes is DISPUTED else {}
    assert ann.replaced() == kept
    # What came out can also be taken by somebody who has the state before.
    assert bob.sync().status == 0
    assert bob.local() == after


# What is not synced, in the way of what is


def test_unsynced_files_stay_where_a_folder_goes(world: World) -> None:
    ann = world.init("ann", "--ignore", "*.tmp")
    ann.put_all(
        ANCHOR | {"input/a/b": LETTERS["X"], "input/gone/c": LETTERS["Y"], "input/empty": LETTERS["X"]}
    )
    ann.must("sync")
    bob = world.clone("bob")
    ann.put("input/a/mine.tmp", File(b"mine"))
    bob.put_all({"input/a/b": None, "input/gone/c": None, "input/gone": Link("a")})
    bob.must("sync")
    (ann.folder / "input/gone/also/empty").mkdir(parents=True)
    assert ann.sync().status == 0
    assert ann.local() == ANCHOR | {
        "input/a/mine.tmp": File(b"mine"),
        "input/empty": LETTERS["X"],
        "input/gone": Link("a"),
    }
    # And a file that is to stand where an ignored one keeps its folder alive is refused.
    bob.put_all({"input/a": LETTERS["Z"], "input/empty": LETTERS["Y"]})
    bob.must("sync")
    pictures = photograph(ann.folder, without=INDEX), photograph(world.repository)
    ended = ann.sync()
    assert ended.status == 12 and "input/a/mine.tmp" in ended.out, ended
    assert pictures == (photograph(ann.folder, without=INDEX), photograph(world.repository))


def test_an_edit_that_hides_is_seen(world: World) -> None:
    ann = world.init("ann")
    ann.put_all(ANCHOR | {"input/a": File(b"one"), "input/b": File(b"one")})
    times = (10**18 + 123_456_789, 10**18 + 123_456_789)
    os.utime(ann.path("input/a"), ns=times)
    ann.must("sync")
    bob = world.clone("bob")
    assert bob.path("input/a").stat().st_mtime_ns == times[1]
    ann.write("input/a", b"two")  # the same size
    os.utime(ann.path("input/a"), ns=times)  # and the same time
    assert ann.sync().document["changes"]["upload"] == ["input/a"]
    os.utime(bob.path("input/b"), ns=(0, 0))
    assert bob.sync().document["changes"]["download"] == ["input/a"]
    assert bob.path("input/a").stat().st_mtime_ns == times[1]
    assert ann.local() == bob.local() == world.remote().check().live
    # A new time alone is no change, and a download changes nobody's attribution.
    assert len(world.remote().records) == 3
    entries = bob.cache().entries
    by_ann = {
        path for path, entry in entries.items() if (entry.who, entry.seq) == ("ann <ann@lab.example>", 1)
    }
    assert by_ann == {"input/anchor", "input/b"}

"""Random worlds of a realistic shape: a common past, edits on both sides, and clashes among them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from protocol.manifest import Entry

from .oracle import folded, places
from .trees import Tree, file, link
from .world import World

NAMES = ["a", "b", "c", "A", "data", "Data", "é", "É", "x.csv", "X.csv", "a-b", "a b"]

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
versions = st.one_of(
    st.tuples(st.just("file"), st.sampled_from("UVWXYZ"), st.booleans()),
    st.tuples(st.just("file"), st.sampled_from("UVWXYZ"), st.just(False)),
    st.tuples(st.just("link"), st.sampled_from(["a", "b/c", "x.csv"]), st.just(False)),
)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("delete"), st.integers(0, 99), versions),
        st.tuples(st.just("change"), st.integers(0, 99), versions),
        st.tuples(st.just("flip"), st.integers(0, 99), versions),
        st.tuples(st.just("put"), paths, versions),
    ),
    max_size=8,
)


def entry(path: str, version: tuple[str, str, bool]) -> Entry:
    kind, text, executable = version
    return file(path, text, executable=executable) if kind == "file" else link(path, text)


def put(tree: Tree, new: Entry) -> None:
    """Write a path as a person does: what is in its way goes first (file for folder, other case)."""
    mine = {folded(name): (name, folder) for name, folder in places(new.path)}
    for path in list(tree):
        if any(mine.get(folded(name), (name, folder)) != (name, folder) for name, folder in places(path)):
            del tree[path]
    tree[new.path] = new


def edit(tree: Tree, script: Sequence[tuple[str, int | str, tuple[str, str, bool]]]) -> Tree:
    tree = dict(tree)
    for verb, where, version in script:
        if isinstance(where, str):
            put(tree, entry(where, version))
        elif tree:
            path = sorted(tree)[where % len(tree)]
            if verb == "delete":
                del tree[path]
            elif verb == "change":
                tree[path] = entry(path, version)
            elif tree[path].kind == 0:
                tree[path] = tree[path]._replace(executable=not tree[path].executable)
    return tree


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """L, C and R with at least 8 paths among them: C, then what both did, then what each did."""
    past: Tree = {}
    for path, version in draw(st.lists(st.tuples(paths, versions), min_size=12, max_size=24)):
        put(past, entry(path, version))
    both = edit(past, draw(edits))
    local = edit(both, draw(edits))
    remote = edit(both, draw(edits))
    cache = edit(past, draw(edits)) if draw(st.booleans()) else past
    if draw(st.integers(0, 9)) == 0:
        cache = {}
    for n in range(8 - len({*local, *cache, *remote})):
        path = f"rest/{n}"
        local[path] = remote[path] = file(path, "r")
    return World(
        local,
        {p: e._replace(who="ann", seq=1) for p, e in cache.items()},
        {p: e._replace(who="bob", seq=2) for p, e in remote.items()},
    )

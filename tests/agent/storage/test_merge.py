"""The merge of base and changes: the same manifest as the simple way, and everything checked."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsg_remote_agent.storage import merge as merge_module
from dsg_remote_agent.storage.merge import ChangeRows, Merged, Step, merge
from dsg_remote_agent.storage.place import next_index
from dsg_remote_agent.storage.statindex import IndexRow, StatIndex
from protocol import splice as splice_module
from protocol.errors import PathsRefusedError, RemoteProtocolError
from protocol.manifest import FILE, Entry, Manifest
from protocol.paths import sort_key
from tests.agent.client import file_entry, link_entry, merged

NAMES = st.sampled_from(["a", "b", "c", "a-b", "a.b", "zz", "\u00e9"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def manifest_of(entries: Iterable[Entry]) -> Manifest:
    return Manifest.from_entries(sorted(entries, key=lambda e: sort_key(e.path)))


def rows_for(manifest: Manifest) -> StatIndex:
    index = StatIndex()
    for number, _ in enumerate(manifest):
        index.append(IndexRow(number, number + 1, number + 2, number + 3))
    return index


def run(base: Manifest, changes: list[Entry | str]) -> tuple[Merged, list[Step]]:
    seen: list[Step] = []
    ordered = sorted(changes, key=lambda c: sort_key(c if isinstance(c, str) else c.path))
    size = sum(entry.size for entry in base)
    return merge(base, rows_for(base), enumerate(ordered), seen.append, size=size), seen


def manifest_from(found: Merged) -> Manifest:
    return Manifest.from_bytes(b"".join([found.head, *found.parts]), found.digest).validate()


def is_tree(paths: Iterable[str]) -> bool:
    known = {sort_key(path) + "\0" for path in paths}
    return not any(a != b and a.startswith(b) for a in known for b in known)


@given(st.sets(PATHS), st.dictionaries(PATHS, st.binary(max_size=3)), st.sets(PATHS))
def test_the_same_as_the_simple_way(base_paths: set[str], puts: dict[str, bytes], gone: set[str]) -> None:
    kept = [path for path in sorted(base_paths) if is_tree([*base_paths])]
    base = manifest_of(file_entry(path, path.encode(), seq=3) for path in kept)
    deletes = [path for path in gone if path in kept and path not in puts]
    changes: list[Entry | str] = [*(file_entry(p, c, seq=4) for p, c in puts.items()), *deletes]
    expected = merged(base, sorted(changes, key=lambda c: sort_key(c if isinstance(c, str) else c.path)))
    if not is_tree(entry.path for entry in expected):
        with pytest.raises(RemoteProtocolError, match="both a file and a folder"):
            run(base, changes)
        return
    found, seen = run(base, changes)
    assert b"".join([found.head, *found.parts]) == expected.to_bytes()
    assert found.digest == expected.digest
    assert found.entries == len(expected)
    assert found.size == sum(entry.size for entry in expected)
    assert (found.added, found.changed, found.deleted) == (
        len([p for p in puts if p not in kept]),
        len([p for p in puts if p in kept]),
        len(deletes),
    )
    assert [step.path for step in seen] == sorted([*puts, *deletes], key=sort_key)
    rows = dict(zip((entry.path for entry in base), rows_for(base), strict=True))
    for step in seen:
        assert step.row == rows.get(step.path)
        assert (step.was is not None) == (step.path in rows)


@pytest.mark.parametrize(("leap", "long", "part"), [(1, 1, 1), (300, 200, 500), (10_000, 2_000, 5_000)])
def test_long_runs_and_short_ones(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, leap: int, long: int, part: int
) -> None:
    """The parts hold whole entries, whatever is copied and whatever stays where it lies."""
    monkeypatch.setattr(splice_module, "_LEAP_BYTES", leap)
    monkeypatch.setattr(splice_module, "_LONG_BYTES", long)
    monkeypatch.setattr(splice_module, "PART_BYTES", part)
    monkeypatch.setattr(merge_module, "PART_BYTES", part)
    paths = [f"{folder}/{name}" for folder in ("a", "a.b", "b/c", "d/é") for name in range(100)]
    for _ in range(40):
        share = rng.choice((0.0, 0.01, 0.1, 1.0))
        base = manifest_of(
            link_entry(path, "x" * rng.randrange(1, 300), seq=rng.randrange(4))
            if rng.random() < 0.1
            else file_entry(path, rng.randbytes(rng.randrange(300)), seq=rng.randrange(4))
            for path in paths
            if rng.random() < rng.choice((0.5, 0.99))
        )
        had = {entry.path for entry in base}
        changes: list[Entry | str] = []
        for path in paths:
            if rng.random() < share:
                delete = path in had and rng.random() < 0.4
                changes.append(path if delete else file_entry(path, rng.randbytes(9), seq=4))
        changes.sort(key=lambda change: sort_key(change if isinstance(change, str) else change.path))
        expected = merged(base, changes)
        found, _ = run(base, changes)
        assert manifest_from(found).to_bytes() == expected.to_bytes()
        assert (found.entries, found.size) == (
            len(expected),
            sum(entry.size for entry in expected if entry.kind == FILE),
        )
        for one in found.parts:
            unpacker = msgpack.Unpacker(use_list=False)
            unpacker.feed(one)
            assert all(len(row) == 8 for row in unpacker) and unpacker.tell() == len(one)
        assert list(found.index) == list(next_index(base, rows_for(base), expected, 4))
        brought = [entry.path for entry in changes if isinstance(entry, Entry)]
        assert [list(expected)[at].path for at in found.brought] == brought


def test_a_delete_of_nothing() -> None:
    with pytest.raises(RemoteProtocolError, match="does not have it"):
        run(manifest_of([file_entry("a", b"")]), ["b"])


@pytest.mark.parametrize(
    ("base", "changes", "pairs"),
    [
        (["a/x"], [file_entry("A/y", b"")], [["A", "a"]]),
        (["a/x"], [file_entry("a/X", b"")], [["a/X", "a/x"]]),
        (["d/e/f"], [file_entry("d/E", b"")], [["d/E", "d/e"]]),
        ([], [file_entry("B", b""), file_entry("b/c", b"")], [["B", "b"]]),
        (["b"], [link_entry("B", "b")], [["B", "b"]]),
        # A pair that the head has already is not this transaction's fault ...
        (["a/x", "A/y"], [file_entry("a/z", b""), file_entry("A/w", b"")], []),
        # ... and what leaves does not collide.
        (["a"], ["a", file_entry("A", b"")], []),
        (["a/x", "b"], ["a/x", file_entry("A/x", b"")], []),
        # The same names in different folders are different.
        (["p/x", "q/X"], [file_entry("r/x", b"")], []),
    ],
)
def test_collisions(base: list[str], changes: list[Entry | str], pairs: list[list[str]]) -> None:
    before = manifest_of(file_entry(path, b"") for path in base)
    if pairs:
        with pytest.raises(PathsRefusedError) as caught:
            run(before, changes)
        assert caught.value.facts["collisions"] == pairs
    else:
        run(before, changes)


def prefixes(paths: Iterable[str]) -> set[str]:
    return {path[: at + 1].rstrip("/") for path in paths for at, c in enumerate(path + "/") if c == "/"}


def test_collisions_among_random_names(rng: random.Random) -> None:
    refused = 0
    for _ in range(400):
        base_paths, new_paths = (
            {"/".join(rng.choices("aAbBéÉcdefgh", k=rng.randrange(1, 4))) for _ in range(count)}
            for count in (rng.randrange(12), rng.randrange(1, 4))
        )
        if not is_tree(base_paths | new_paths):
            continue
        known = prefixes(base_paths)
        everything = prefixes(base_paths | new_paths)
        wrong = {
            frozenset((a, b))
            for a in everything
            for b in everything - {a}
            if a.casefold() == b.casefold()
            and a.rpartition("/")[0] == b.rpartition("/")[0]
            and not {a, b} <= known
        }
        base = manifest_of(file_entry(path, b"", seq=3) for path in base_paths)
        changes: list[Entry | str] = [file_entry(path, b"new", seq=4) for path in new_paths]
        if not wrong:
            run(base, changes)
            continue
        refused += 1
        with pytest.raises(PathsRefusedError) as caught:
            run(base, changes)
        told = {frozenset(pair) for pair in caught.value.facts["collisions"]}
        # Of a path that makes several, the outermost is told.
        assert told and told <= wrong
    assert refused > 20


def test_change_rows_by_number() -> None:
    rows = ChangeRows()
    changes: list[Entry | str] = ["a", file_entry("b", b"1"), link_entry("c", "b"), "d/e"]
    for change in changes:
        rows.append(change)
    assert len(rows) == 4
    assert list(rows) == changes
    assert [rows[n] for n in (3, 0, 2, 1)] == [changes[n] for n in (3, 0, 2, 1)]
    with pytest.raises(RemoteProtocolError, match="order"):
        rows.append("d/a")

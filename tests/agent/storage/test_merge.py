"""The merge of base and changes: the same manifest as the simple way, and everything checked."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsg_remote_agent.storage.merge import ChangeRows, Merged, Step, merge
from dsg_remote_agent.storage.statindex import IndexRow, StatIndex
from protocol.errors import PathsRefusedError, RemoteProtocolError
from protocol.manifest import Entry, Manifest
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
    return merge(base, rows_for(base), enumerate(ordered), seen.append), seen


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
    assert b"".join(found.parts) == expected.to_bytes()
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

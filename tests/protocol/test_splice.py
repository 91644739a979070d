"""Splicing: the same manifest as from all the entries, and never into another tree."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from protocol import splice as module
from protocol.errors import InternalError
from protocol.manifest import FILE, Entry, Manifest
from protocol.paths import sort_key
from protocol.splice import splice


def file(path: str, content: str, who: str = "") -> Entry:
    return Entry(path, FILE, content.encode().ljust(32), False, len(content), 1, who, 0)


def manifest(*entries: Entry) -> Manifest:
    return Manifest.from_entries(sorted(entries, key=lambda entry: sort_key(entry.path)))


def test_the_same_as_from_all_entries(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRETCH", 3)
    monkeypatch.setattr(module, "_LONG_BYTES", 150)
    names = [f"{folder}{name}" for folder in ("", "d/", "d.x/", "e/f/") for name in ("a", "b", "b b", "c")]
    for _ in range(300):
        base = {name: file(name, "old") for name in names if rng.random() < 0.6}
        made, edits = dict(base), []
        for name in sorted(names, key=sort_key):
            if rng.random() < 0.3:
                after = file(name, "new") if name not in base or rng.random() < 0.5 else None
                edits.append((name, base.get(name), after))
                made.pop(name, None)
                if after is not None:
                    made[name] = after
        found = splice(manifest(*base.values()), edits)
        assert found == manifest(*made.values())
        assert list(found.validate()) == list(found)


def test_another_tree_is_refused() -> None:
    a, b = file("a", "1"), file("b", "1")
    for base, edit in (
        ([b], ("a", a, None)),  # gone
        ([a], ("a", None, a)),  # there already
        ([file("a", "2")], ("a", a, None)),  # another version
        ([a._replace(who="x")], ("a", a, None)),  # another attribution
        ([], ("a", a, b)),
    ):
        with pytest.raises(InternalError, match="as it was when the plan was made"):
            splice(manifest(*base), [edit])


def test_no_object_is_made_of_what_stays() -> None:
    count = 50_000
    base = Manifest.from_entries(file(f"d/{n:07}", "x") for n in range(count))
    size = len(base.to_bytes())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert len(splice(base, [("e", None, file("e", "y"))])) == count + 1
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # The result and the pieces that are read; a list of the entries would take more than 10 MB.
    assert peak < size + 3_000_000

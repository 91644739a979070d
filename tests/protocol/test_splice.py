"""Splicing: the same manifest as from all the entries, and never into another tree."""

from __future__ import annotations

import random
import tracemalloc

import msgpack
import pytest

from protocol import splice as module
from protocol.errors import InternalError
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.paths import sort_key
from protocol.splice import Ahead, splice


def file(path: str, content: str, who: str = "") -> Entry:
    return Entry(path, FILE, content.encode().ljust(32), False, len(content), 1, who, 0)


def manifest(*entries: Entry) -> Manifest:
    return Manifest.from_entries(sorted(entries, key=lambda entry: sort_key(entry.path)))


def test_the_same_as_from_all_entries(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAP_BYTES", rng.choice([0, 300, 10_000]))
    monkeypatch.setattr(module, "_LONG_BYTES", 150)
    monkeypatch.setattr(module, "_CLOSE", rng.choice([2, 16]))
    monkeypatch.setattr(module, "_STRIDE", rng.choice([1, 2, 3, 32]))
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


@pytest.mark.parametrize("stride", [1, 3, 32])
@pytest.mark.parametrize("leap", [0, 200, 1 << 16])
def test_a_walk_passes_everything_once(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, leap: int, stride: int
) -> None:
    """Also where an entry holds what another one begins with: a link can point anywhere."""
    monkeypatch.setattr(module, "_LEAP_BYTES", leap)
    monkeypatch.setattr(module, "_CLOSE", 2)
    monkeypatch.setattr(module, "_STRIDE", stride)
    paths = [
        f"{folder}{name}" for folder in ("", "d/", "d.x/", "e/f/") for name in ("a", "b", "b b", "c" * 40)
    ]
    for _ in range(300):
        there = {path for path in paths if rng.random() < 0.6}
        base = manifest(
            *(
                Entry(path, LINK, b"\x98" + msgpack.packb(rng.choice(paths)), False, 0, 0, "", 3)
                if rng.random() < 0.5
                else file(path, "x" * rng.randrange(30))
                for path in there
            )
        )
        entries = list(base)
        ahead, seen = Ahead(base), b""
        for path in sorted(rng.sample(paths, rng.randrange(len(paths))), key=sort_key):
            passed, found = ahead.go_to(path)
            assert found == next((entry for entry in entries if entry.path == path), None)
            seen += passed
            seen += b"" if found is None else msgpack.packb(found)
            assert ahead.number == sum(sort_key(p) <= sort_key(path) for p in there)
        seen += ahead.rest()
        assert seen == b"".join(map(msgpack.packb, entries))


@pytest.mark.parametrize(
    ("paths", "most"),
    [
        ([f"d/{number:05}" for number in range(0, 20_000, 100)], 4),
        ([f"d/{number:05} new" for number in range(0, 20_000, 100)], 60),
        ([f"d/{number:05} new" for number in range(0, 20_000, 4)], 8),
        (["d/19990"], 700),
        (["d/19990 new"], 700),
        (["a", "d/10001", "e"], 1400),
    ],
    ids=["changed", "new", "close", "far", "far and new", "some"],
)
def test_few_of_the_entries_on_the_way_are_decoded(
    paths: list[str], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``most``: for each path, on the average."""
    base = Manifest.from_entries(file(f"d/{n:05}", "x") for n in range(20_000))
    looked = []
    monkeypatch.setattr(module, "sort_key", lambda path: looked.append(path) or sort_key(path))
    ahead = Ahead(base)
    for path in paths:
        assert (ahead.go_to(path)[1] is None) == (not path[-1].isdigit())
    assert len(looked) <= most * len(paths) + 10


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

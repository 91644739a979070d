"""Where L differs from C, worked out ahead: a plan made of it is the plan that is made of L and C."""

from __future__ import annotations

import io
import marshal
import random
from array import array

import pytest

from dsg_client.core.reconcile import reconcile
from dsg_client.sync import since as since_module
from dsg_client.sync.localtree import LocalTree
from dsg_client.sync.since import Since
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.paths import sort_key

NAMES = ("a", "b", "a.x", "d/a", "d/b", "d/e/f", "d.x", "z/a", "z/b", "z0")


def entry(rng: random.Random, path: str) -> Entry:
    if rng.random() < 0.2:
        return Entry(path, LINK, rng.choice((b"a", b"b")), False, 0, 0)
    return Entry(
        path, FILE, rng.choice((b"1", b"2")) * 32, rng.random() < 0.3, rng.randrange(9), rng.randrange(9)
    )


def tree(rng: random.Random, of: Manifest | None = None) -> Manifest:
    """A random tree; made of another, most of it is that one's."""
    old = {} if of is None else {one.path: one for one in of}
    made = []
    for path in sorted(NAMES, key=sort_key):
        if path in old and rng.random() < 0.7:
            made.append(old[path])
        elif rng.random() < 0.5:
            made.append(entry(rng, path))
    return Manifest.from_entries(made)


def scanned(manifest: Manifest, since: Since | None) -> LocalTree:
    numbers, times = array("Q"), array("q")
    for number, one in enumerate(manifest):
        numbers.extend((one.size, number))
        times.extend((one.mtime_ns, -number))
    return LocalTree(manifest, numbers, times, since)


def test_the_same_plan_and_the_same_expectations(rng: random.Random) -> None:
    for _ in range(500):
        cache = tree(rng)
        local = tree(rng, cache)
        found = Since.of(local, cache)
        assert found is not None
        since = Since.received(marshal.loads(marshal.dumps(found.sent())))
        assert since == found
        plain, quick = scanned(local, None), scanned(local, since)

        def in_scope(path: str) -> bool:
            return not path.startswith("z/")

        assert reconcile(
            local, cache, cache, who="ann", seq=2, in_scope=in_scope, known=since.differences
        ) == reconcile(local, cache, cache, who="ann", seq=2, in_scope=in_scope)
        paths = rng.sample(NAMES, 4)
        assert quick.expected(paths) == plain.expected(paths)
        head, parts = quick.sent()
        pipe = io.BytesIO(b"".join(parts))
        assert LocalTree.received(marshal.loads(marshal.dumps(head)), pipe.read) == quick


def test_too_many_are_not_worth_it(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(since_module, "_MOST", 2)
    local = Manifest.from_entries([entry(rng, path) for path in ("a", "b", "c")])
    assert Since.of(local, Manifest.from_entries([])) is None

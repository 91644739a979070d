"""L kept as its differences from C: the same entries, differences, plan and numbers as from L itself."""

from __future__ import annotations

import io
import marshal
import random
from collections.abc import Iterator
from itertools import groupby

import pytest

from dsg_client.core.merge import differences
from dsg_client.core.reconcile import reconcile
from dsg_client.local.stretch import Identity, Stretch
from dsg_client.sync.localtree import LocalTree
from protocol.errors import InternalError
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.paths import sort_key
from protocol.tree.change import Expected
from protocol.tree.fs import Kind

NAMES = ("a", "b", "a.x", "d/a", "d/b", "d/e/f", "d.x", "z/a", "z/b", "z0")


def entry(rng: random.Random, path: str) -> Entry:
    if rng.random() < 0.2:
        return Entry(path, LINK, rng.choice((b"a", b"b")), False, 0, 0)
    content = rng.choice((b"1", b"2")) * 32
    return Entry(path, FILE, content, rng.random() < 0.3, rng.randrange(9), rng.randrange(-9, 9))


def tree(rng: random.Random, of: list[Entry] | None = None) -> list[Entry]:
    """A random tree; made of another, most of it is that one's, touched perhaps."""
    old = {one.path: one for one in of or ()}
    made = []
    for path in sorted(NAMES, key=sort_key):
        if path in old and rng.random() < 0.8:
            touched = rng.random() < 0.5 and old[path].kind == FILE
            made.append(old[path]._replace(who="", seq=0, mtime_ns=77) if touched else old[path])
        elif rng.random() < 0.5:
            made.append(entry(rng, path))
    return [one._replace(who="", seq=0) for one in made] if of is not None else made


def identity(one: Entry, number: int) -> Identity:
    """What the file system said of it: of links it knows sizes and times, too."""
    size, mtime_ns = (one.size, one.mtime_ns) if one.kind == FILE else (7, -5)
    return size, mtime_ns, -number, 1 << 63 | number


def expected(one: Entry, number: int) -> Expected:
    size, mtime_ns, ctime_ns, inode = identity(one, number)
    if one.kind == LINK:
        return Expected(Kind.LINK, size, mtime_ns, ctime_ns, inode, one.content.decode())
    return Expected(Kind.FILE, size, mtime_ns, ctime_ns, inode)


def stretches(rng: random.Random, local: list[Entry]) -> Iterator[Stretch]:
    """L in neighbours of one kind, as a scan might group them."""
    grouping = iter(lambda: rng.random() < 0.4, None)
    turn = 0
    groups = []
    for one in local:
        turn += next(grouping)
        groups.append((one.kind, turn))
    for _, found in groupby(enumerate(local), key=lambda pair: groups[pair[0]]):
        singles = [Stretch.of_one(one, identity(one, number)) for number, one in found]
        columns = ([value for one in singles for value in one[at]] for at in range(1, 8))  # type: ignore[union-attr]
        yield Stretch(singles[0].kind, *columns)  # type: ignore[arg-type]


def test_it_is_what_was_scanned_and_where_that_differs(rng: random.Random) -> None:
    for _ in range(300):
        before = [one._replace(who="bob", seq=1) for one in tree(rng)]
        local = tree(rng, before)
        cache = Manifest.from_entries(before)
        found = LocalTree.read(stretches(rng, local), cache, lambda count: None)
        assert (list(found), len(found)) == (local, len(local))
        assert list(found.differences()) == list(differences(local, cache, cache))

        def in_scope(path: str) -> bool:
            return not path.startswith("z/")

        known = found.differences()
        assert reconcile((), (), cache, who="ann", seq=2, in_scope=in_scope, known=known) == reconcile(
            local, cache, cache, who="ann", seq=2, in_scope=in_scope
        )
        paths = rng.sample(NAMES, 4)
        assert found.expected(paths) == {
            one.path: expected(one, number) for number, one in enumerate(local) if one.path in paths
        }
        head, parts = found.sent()
        sent = marshal.dumps(head), b"".join(parts)
        assert LocalTree.received(marshal.loads(sent[0]), io.BytesIO(sent[1]).read, cache) == found
        with pytest.raises(EOFError):
            LocalTree.received(marshal.loads(sent[0]), io.BytesIO(sent[1][:-1]).read, cache)
        other = Manifest.from_entries([*before, Entry("zz", LINK, b"a", False, 0, 0)])
        with pytest.raises(ValueError, match="another C"):
            LocalTree.received(marshal.loads(sent[0]), io.BytesIO(sent[1]).read, other)


@pytest.mark.parametrize("late", ["in L", "in C", "at the end of C"])
def test_what_is_out_of_order_is_not_taken_for_deleted(late: str) -> None:
    a, b, c = (Entry(name, FILE, b"1" * 32, False, 1, 2) for name in "abc")
    local, cache = {
        "in L": ([b, a, c], [a, b, c]),
        "in C": ([b, c], [c, a]),
        "at the end of C": ([b], [b, a]),
    }[late]
    for size in (1, 3):
        parts = [local[at : at + size] for at in range(0, len(local), size)]
        columns = [list(zip(*part, strict=True)) for part in parts]
        scan = [
            Stretch(FILE, *map(list, (paths, contents, bits, sizes, times, times, sizes)))
            for paths, _, contents, bits, sizes, times, _, _ in columns
        ]
        with pytest.raises(InternalError, match="not in order"):
            LocalTree.read(scan, Manifest.from_entries(cache), lambda count: None)


def test_it_tells_how_far_it_is(rng: random.Random) -> None:
    told: list[int] = []
    many = [Entry(f"{n:05d}", FILE, b"1" * 32, False, 1, 2) for n in range(3000)]
    LocalTree.read(
        (Stretch.of_one(one, (1, 2, 3, 4)) for one in many), Manifest.from_entries(()), told.append
    )
    assert told == [512, 1024, 1536, 2048, 2560, 3000]

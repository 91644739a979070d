"""Manifests: the canonical encoding byte for byte, and what hostile ones are refused for."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import IntegrityError
from protocol.manifest import FILE, LINK, Entry, Manifest, check_entry, same
from protocol.paths import sort_key

DIGEST = bytes(range(32))
MAGIC = b"DSGM1\n"


def encoded(rows: list[Any], algorithm: Any = "sha256", count: Any = None, tail: bytes = b"") -> bytes:
    """An encoding made without the code under test."""
    head = msgpack.packb([algorithm, len(rows) if count is None else count])
    return MAGIC + head + b"".join(msgpack.packb(row) for row in rows) + tail


def row(path: Any = "a", **changes: Any) -> list[Any]:
    fields = {
        "path": path,
        "kind": FILE,
        "content": DIGEST,
        "executable": False,
        "size": 5,
        "mtime_ns": 7,
        "who": "ada",
        "seq": 1,
    }
    return list({**fields, **changes}.values())


names = st.text("ab.-é ", min_size=1, max_size=4).filter(lambda n: n not in (".", ".."))


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    paths = draw(st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), unique=True, max_size=12))
    paths = [p for p in paths if not any(other.startswith(p + "/") for other in paths)]
    made = []
    for path in sorted(paths, key=sort_key):
        if draw(st.integers(0, 4)):
            content, executable, kind = draw(st.binary(min_size=32, max_size=32)), draw(st.booleans()), FILE
        else:
            content, executable, kind = b"target", False, LINK
        size, mtime = draw(st.integers(0, 1 << 60)), draw(st.integers(-(1 << 62), 1 << 62))
        made.append(Entry(path, kind, content, executable, size, mtime, draw(st.text("aü", max_size=5)), 3))
    return made


def test_known_bytes() -> None:
    entries = [
        Entry("a", FILE, DIGEST, True, 300, -1, "ada", 2),
        Entry("a/b", LINK, b"../c", False, 4, 0),
    ]
    manifest = Manifest.from_entries(entries)
    expected = (
        b"DSGM1\n"
         b"\x92\xa6sha256\x02"
         b"\x98\xa1a\x00\xc4\x20" + DIGEST + b"\xc3\xcd\x01\x2c\xff\xa3ada\x02"
        + b"\x98\xa3a/b\x01\xc4\x04../c\xc2\x04\x00\xa0\x00"
    )  # fmt: skip
    assert manifest.to_bytes() == expected
    assert manifest.digest == "sha256:" + hashlib.sha256(expected).hexdigest()
    assert Manifest.from_entries([]).to_bytes() == b"DSGM1\n\x92\xa6sha256\x00"


@given(trees())
def test_entries_come_back(entries: list[Entry]) -> None:
    made = Manifest.from_entries(entries)
    assert list(made) == entries
    assert len(made) == made.count == len(entries)
    again = Manifest.from_bytes(made.to_bytes(), made.digest).validate()
    assert again == made
    assert [type(e) for e in again] == [Entry] * len(entries)
    assert made.to_bytes() == encoded([list(e) for e in entries])


@given(trees(), st.data())
@settings(max_examples=200)
def test_any_changed_byte_changes_the_digest_and_never_crashes(
    entries: list[Entry], data: st.DataObject
) -> None:
    made = Manifest.from_entries(entries)
    damaged = bytearray(made.to_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(bytes(damaged), made.digest)
    try:
        taken = Manifest.from_bytes(bytes(damaged)).validate()
    except IntegrityError:
        return
    assert Manifest.from_entries(taken, taken.algorithm).count == taken.count


@given(trees(), st.data())
def test_any_cut_is_noticed(entries: list[Entry], data: st.DataObject) -> None:
    whole = Manifest.from_entries(entries).to_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(whole[:cut]).validate()


def test_a_cut_at_every_byte_is_noticed() -> None:
    whole = encoded([row("a"), row("b")])
    for cut in range(len(whole)):
        with pytest.raises(IntegrityError):
            Manifest.from_bytes(whole[:cut]).validate()


HEADERS = {
    "nothing": b"",
    "other magic": b"DSGM2\n\x92\xa6sha256\x00",
    "no header": MAGIC,
    "a number": MAGIC + b"\x01",
    "a text of two": MAGIC + b"\xa2ab",
    "a map of two": MAGIC + b"\x82\xa1a\x01\xa1b\x02",
    "three items": MAGIC + b"\x93\xa6sha256\x00\x00",
    "unknown algorithm": encoded([], "md5"),
    "algorithm as bytes": encoded([], b"sha256"),
    "count is true": encoded([row()], count=True),
    "count is text": encoded([], count="0"),
    "count is negative": encoded([], count=-1),
    "count is a fraction": encoded([], count=0.0),
    "count beyond the bytes": encoded([], count=1 << 63),
    "list that claims much": MAGIC + b"\xdd\xff\xff\xff\xff",
    "text that claims much": MAGIC + b"\x92\xdb\xff\xff\xff\xff",
    "extension": MAGIC + b"\x92\xd4\x01\x00\x00",
    "nested": MAGIC + b"\x91" * 60,
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(name: str) -> None:
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(HEADERS[name])


BODIES = {
    "fewer than said": encoded([row()], count=2),
    "more than said": encoded([row("a"), row("b")], count=1),
    "bytes behind": encoded([row()], tail=b"\xc0"),
    "half an entry behind": encoded([row()], tail=msgpack.packb(row("b"))[:-3]),
    "out of order": encoded([row("b"), row("a")]),
    "twice": encoded([row("a"), row("a")]),
    "order of bytes, not of components": encoded([row("a b"), row("a/b")]),
    "file and folder": encoded([row("a"), row("a/b")]),
    "file and folder, deeper": encoded([row("x/a"), row("x/a/b/c")]),
    "link and folder": encoded([row("a", kind=LINK, content=b"x"), row("a/b")]),
    "7 fields": encoded([row()[:7]]),
    "9 fields": encoded([[*row(), 0]]),
    "a map": encoded([{}]),
    "nil": encoded([None]),
    "path as bytes": encoded([row(b"a")]),
    "absolute path": encoded([row("/a")]),
    "path upwards": encoded([row("../a")]),
    "path into .dsg": encoded([row(".dsg/head")]),
    "path with escape": encoded([row("a\x1b")]),
    "path not in NFC": encoded([row("e\u0301")]),
    "kind 2": encoded([row(kind=2)]),
    "kind true": encoded([row(kind=True, content=b"x")]),
    "kind 0.0": encoded([row(kind=0.0)]),
    "content as text": encoded([row(content="x" * 32)]),
    "short digest": encoded([row(content=DIGEST[:31])]),
    "executable 1": encoded([row(executable=1)]),
    "negative size": encoded([row(size=-1)]),
    "size of 2^64-1": encoded([row(size=(1 << 64) - 1)]),
    "size true": encoded([row(size=True)]),
    "size 1.0": encoded([row(size=1.0)]),
    "mtime beyond": encoded([row(mtime_ns=-(1 << 63))]),
    "seq beyond": encoded([row(seq=1 << 41)]),
    "negative seq": encoded([row(seq=-1)]),
    "long who": encoded([row(who="x" * 201)]),
    "who as bytes": encoded([row(who=b"ada")]),
    "link outside": encoded([row(kind=LINK, content=b"../x")]),
    "absolute link": encoded([row(kind=LINK, content=b"/etc/passwd")]),
    "link not UTF-8": encoded([row(kind=LINK, content=b"\xff")]),
    "empty link": encoded([row(kind=LINK, content=b"")]),
    "executable link": encoded([row(kind=LINK, content=b"x", executable=True)]),
    "path not UTF-8": MAGIC + b"\x92\xa6sha256\x01\x98\xa1\xff" + msgpack.packb(row())[3:],
    "timestamp for a number": MAGIC + b"\x92\xa6sha256\x01\x98\xa1a\xd6\xff\x00\x00\x00\x01" + bytes(6),
    "list that claims much": encoded([], count=1, tail=b"\xdd\xff\xff\xff\xff"),
    "text that claims much": encoded([], count=1, tail=b"\x98\xdb\xff\xff\xff\xff"),
    "bytes that claim much": encoded([], count=1, tail=b"\x98\xa1a\x00\xc6\xff\xff\xff\xff"),
    "lists without end": encoded([], count=1, tail=b"\x98" * 100_000),
    "very long text": encoded([row("a/" * 500_000 + "b")]),
}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_bodies(name: str) -> None:
    manifest = Manifest.from_bytes(BODIES[name])
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError) as caught:
            manifest.validate()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert peak < 8 << 20


def test_a_digest_of_another_encoding_is_refused() -> None:
    manifest = Manifest.from_entries([])
    with pytest.raises(IntegrityError, match="damaged"):
        Manifest.from_bytes(manifest.to_bytes(), "sha256:" + "0" * 64)


def test_what_makes_two_versions_the_same() -> None:
    one = Entry("a", FILE, DIGEST, False, 5, 7, "ada", 1)
    assert same(one, one._replace(mtime_ns=9, who="bob", seq=4))
    assert not same(one, one._replace(content=DIGEST[::-1]))
    assert not same(one, one._replace(executable=True))
    assert not same(one, one._replace(kind=LINK))
    assert same(None, None)
    assert not same(one, None)
    assert not same(None, one)
    assert one.version == (FILE, DIGEST, False)


def test_check_entry_takes_tuples_only() -> None:
    assert check_entry(tuple(row())) == tuple(row())
    with pytest.raises(ValueError, match="8 fields"):
        check_entry(row())


def test_many_entries_are_not_live_objects() -> None:
    manifest = Manifest.from_entries(
        Entry(f"input/{n:08}.csv", FILE, DIGEST, False, n, n) for n in range(50_000)
    )
    tracemalloc.start()
    assert sum(entry.size for entry in manifest) == sum(range(50_000))
    manifest.validate()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20

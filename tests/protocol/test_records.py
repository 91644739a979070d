"""Snapshot records: the canonical encoding byte for byte, hostile ones, and the chain."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.digest import parse_tagged, tagged
from protocol.errors import IntegrityError
from protocol.records import SnapshotRecord, check_chain

MANIFEST = "sha256:" + "ab" * 32
FIRST = SnapshotRecord(
    repo_id="0123456789abcdef",
    seq=0,
    manifest=MANIFEST,
    parent="",
    txid="f" * 16,
    user="Ada",
    host="lab",
    time=1_700_000_000,
    message="",
    entries=0,
    size=0,
    added=0,
    changed=0,
    deleted=0,
)


def after(record: SnapshotRecord, **changes: Any) -> SnapshotRecord:
    return record.but(seq=record.seq + 1, parent=record.digest, **changes)


def fields(**changes: Any) -> dict[str, Any]:
    found = after(FIRST).to_map()
    found.update(changes)
    return dict(sorted(found.items()))


def test_known_bytes() -> None:
    expected = (
        b"\x8f\xa5added\x00\xa7changed\x00\xa7deleted\x00\xa7entries\x00\xa6format\x01\xa4host\xa3lab"
        b"\xa8manifest\xd9\x47" + MANIFEST.encode() + b"\xa7message\xa0\xa6parent\xa0"
        b"\xa7repo_id\xb00123456789abcdef\xa3seq\x00\xa4size\x00\xa4time\xce\x65\x53\xf1\x00"
        b"\xa4txid\xb0ffffffffffffffff\xa4user\xa3Ada"
    )
    assert FIRST.to_bytes() == expected
    assert FIRST.digest == "sha256:" + hashlib.sha256(expected).hexdigest()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 1 << 60)


@given(texts, texts, texts, numbers, numbers)
def test_records_come_back(user: str, host: str, message: str, time: int, size: int) -> None:
    record = after(FIRST, user=user, host=host, message=message, time=time, size=size)
    again = SnapshotRecord.from_bytes(record.to_bytes(), record.digest)
    assert again == record
    assert again.to_bytes() == record.to_bytes()


HOSTILE = {
    "nothing": b"",
    "a list": b"\x90",
    "a number": b"\x01",
    "nested": b"\x81\xa1a" * 10_000,
    "claims much": b"\xdf\xff\xff\xff\xff",
    "too long": msgpack.packb(fields(message="x" * 70_000)),
    "bytes behind": msgpack.packb(fields()) + b"\xc0",
    "format 2": msgpack.packb(fields(format=2)),
    "format true": msgpack.packb(fields(format=True)),
    "no format": msgpack.packb({k: v for k, v in fields().items() if k != "format"}),
    "a field more": msgpack.packb({**fields(), "zz": 1}),
    "a field less": msgpack.packb({k: v for k, v in fields().items() if k != "user"}),
    "other order": msgpack.packb(dict(reversed(fields().items()))),
    "longer numbers": msgpack.packb(fields()).replace(b"\xa5added\x00", b"\xa5added\xcc\x00"),
    "a key twice": b"\xde\x00\x10" + msgpack.packb(fields())[1:] + b"\xa4user\xa3Eve",
    "seq true": msgpack.packb(fields(seq=True)),
    "seq text": msgpack.packb(fields(seq="1")),
    "seq 1.0": msgpack.packb(fields(seq=1.0)),
    "negative seq": msgpack.packb(fields(seq=-1)),
    "negative time": msgpack.packb(fields(time=-1)),
    "negative size": msgpack.packb(fields(size=-1)),
    "huge size": msgpack.packb(fields(size=(1 << 64) - 1)),
    "user as bytes": msgpack.packb(fields(user=b"ada")),
    "user nil": msgpack.packb(fields(user=None)),
    "no digest": msgpack.packb(fields(manifest="")),
    "digest of blanks": msgpack.packb(fields(manifest="sha256:" + " " * 64)),
    "unknown algorithm": msgpack.packb(fields(manifest="md5:" + "0" * 64)),
    "no parent": msgpack.packb(fields(parent="")),
    "first with a parent": msgpack.packb(fields(seq=0)),
    "not UTF-8": msgpack.packb(fields(user="ab")).replace(b"\xa2ab", b"\xa2\xff\xfe"),
    "extension": msgpack.packb(fields(user=msgpack.ExtType(5, b"x"))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records(name: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        SnapshotRecord.from_bytes(HOSTILE[name])
    assert str(caught.value).isprintable()


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        SnapshotRecord.from_bytes(data)


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    record = after(FIRST)
    damaged = bytearray(record.to_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IntegrityError):
        SnapshotRecord.from_bytes(bytes(damaged), record.digest)


def chain(length: int) -> list[SnapshotRecord]:
    records = [FIRST]
    while len(records) < length:
        records.append(after(records[-1], message=f"number {len(records)}"))
    return records


def test_a_chain_holds() -> None:
    check_chain(chain(20))
    check_chain(chain(20)[5:])
    check_chain([])
    check_chain([FIRST])


@pytest.mark.parametrize(
    "change",
    [{"message": "other"}, {"user": "Eve"}, {"time": 1}, {"manifest": "sha256:" + "cd" * 32}, {"size": 9}],
)
def test_a_record_rewritten_in_the_past_breaks_the_chain(change: dict[str, Any]) -> None:
    records = chain(6)
    records[2] = records[2].but(**change)
    with pytest.raises(IntegrityError, match="s2 and s3"):
        check_chain(records)


def test_gaps_swaps_and_other_repositories_break_the_chain() -> None:
    records = chain(6)
    for broken in (
        [*records[:2], *records[3:]],
        [*records[:2], records[3], records[2], *records[4:]],
        [*records[:3], records[2], *records[3:]],
        [*records[:3], records[3].but(repo_id="fedcba9876543210")],
        [records[0], records[1].but(seq=2)],
    ):
        with pytest.raises(IntegrityError, match="broken"):
            check_chain(broken)


NO_DIGESTS = ["", "sha256", "sha256:", ":" + "0" * 64, "SHA256:" + "0" * 64, "sha256:" + "0" * 63 + "\n"]
NO_DIGESTS += [
    "sha256:" + digits for digits in ("0" * 63, "0" * 65, "A" * 64, "g" * 64, " " * 64, "0 " * 32, "٠" * 64)
]


@pytest.mark.parametrize("text", NO_DIGESTS)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        parse_tagged(text)


@given(st.binary(max_size=50))
def test_digests_come_back(data: bytes) -> None:
    text = tagged("sha256", data)
    assert parse_tagged(text) == ("sha256", hashlib.sha256(data).digest())

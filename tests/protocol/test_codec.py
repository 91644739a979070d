"""Control payloads and rows: what is taken, what is refused, and at what cost."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.codec import MAX_ITEMS, MAX_NESTING, MAX_PAYLOAD, pack, pack_rows, unpack, unpack_rows
from protocol.errors import LocalProtocolError, RemoteProtocolError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**63), 2**64 - 1)
scalars = st.none() | st.booleans() | numbers | texts | st.binary(max_size=20)
values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
maps = st.dictionaries(texts, values, max_size=5)


def nested(depth: int) -> dict[str, Any]:
    value: Any = {}
    for _ in range(depth - 1):
        value = {"a": value}
    assert isinstance(value, dict)
    return value


def test_known_encodings() -> None:
    assert pack({}) == b"\x80"
    assert pack({"bytes": 4194304}) == bytes.fromhex("81a56279746573ce00400000")
    assert pack({"a": [True, None, -1, b"\x00"]}) == bytes.fromhex("81a16194c3c0ffc40100")
    assert unpack(bytes.fromhex("81a16194c3c0ffc40100")) == {"a": [True, None, -1, b"\x00"]}


@given(maps)
def test_what_is_packed_is_unpacked(fields: dict[str, Any]) -> None:
    assert unpack(pack(fields)) == fields
    assert unpack(memoryview(pack(fields))) == fields


@given(st.binary(max_size=60))
def test_any_bytes_are_a_map_or_refused(payload: bytes) -> None:
    try:
        found = unpack(payload)
    except RemoteProtocolError:
        return
    assert type(found) is dict
    assert unpack(pack(found)) == found  # what is read could have been sent


@given(maps, st.data())
def test_a_cut_or_prolonged_map_is_refused(fields: dict[str, Any], data: st.DataObject) -> None:
    payload = pack(fields)
    cut = data.draw(st.integers(0, len(payload) - 1))
    for damaged in (payload[:cut], payload + b"\x80", payload + payload):
        with pytest.raises(RemoteProtocolError):
            unpack(damaged)


HOSTILE = {
    "nothing": b"",
    "a list": b"\x90",
    "a number": b"\x01",
    "nil": b"\xc0",
    "reserved byte": b"\xc1",
    "bytes as key": b"\x81\xc4\x01a\x01",
    "number as key": b"\x81\x01\x01",
    "nil as key": b"\x81\xc0\x01",
    "key twice": b"\x82\xa1a\x01\xa1a\x02",
    "key twice, deeper": b"\x81\xa1x\x82\xa1a\x01\xa1a\x02",
    "extension": b"\x81\xa1a\xd4\x05\x00",
    "timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x01",
    "not a number": b"\x81\xa1a\xcb" + struct.pack(">d", float("nan")),
    "infinity": b"\x81\xa1a\xca" + struct.pack(">f", float("inf")),
    "not UTF-8": b"\x81\xa1a\xa1\xff",
    "lone surrogate": b"\x81\xa1a\xa3\xed\xa0\x80",
    "map that claims 4 G items": b"\xdf\xff\xff\xff\xff",
    "list that claims 4 G items": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "text that claims 4 GB": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "bytes that claim 4 GB": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "extension that claims 4 GB": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "lists without end": b"\x81\xa1a" + b"\x91" * (MAX_PAYLOAD - 3),
    "maps without end": b"\x81\xa1a" * (MAX_PAYLOAD // 3),
    "lists that each claim much": b"\x81\xa1a" + (b"\xdd" + struct.pack(">I", 1 << 20)) * 200_000,
    "a million empty lists": b"\x81\xa1a\xdd\x00\x0f\x00\x00" + b"\x90" * 0xF0000,
    "many lists of empty maps": b"\x81\xa1a\xdc\x01\x00" + (b"\xdc\x0f\xff" + b"\x80" * 0xFFF) * 256,
    "too many items": b"\x81\xa1a\xdc\x10\x01" + b"\xc0" * 4097,
    "one level too deep": msgpack.packb(nested(MAX_NESTING + 1)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_payloads_are_refused_cheaply(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            unpack(HOSTILE[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20, f"{name}: {peak >> 20} MiB for {len(HOSTILE[name])} bytes"


def test_without_the_limits_a_small_payload_takes_much_memory() -> None:
    """Negative control of the test above."""
    tracemalloc.start()
    found = msgpack.unpackb(HOSTILE["a million empty lists"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found["a"]) == 0xF0000
    assert peak > 48 << 20


def test_limits_are_inclusive() -> None:
    assert unpack(pack(nested(MAX_NESTING))) == nested(MAX_NESTING)
    fields = {"a": [None] * MAX_ITEMS}
    assert unpack(pack(fields)) == fields


@pytest.mark.parametrize(
    "fields",
    [
        nested(MAX_NESTING + 1),
        {"a": [None] * (MAX_ITEMS + 1)},
        {"a": [[]] * MAX_ITEMS},
        {1: 2},
        {"a": {b"k": 1}},
        {"a": 1 << 64},
        {"a": -(1 << 63) - 1},
        {"a": float("nan")},
        {"a": "\udcff"},
        {"\ud800": 1},
        {"a": {1, 2}},
        {"a": object()},
        {"a": bytearray(b"x")},
    ],
    ids=lambda fields: repr(fields).partition(" at 0x")[0][:30],
)
def test_what_would_be_refused_is_not_sent(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        pack(fields)


def test_a_value_that_holds_itself_is_not_sent() -> None:
    fields: dict[str, Any] = {}
    fields["a"] = fields
    with pytest.raises(LocalProtocolError):
        pack(fields)


def test_an_error_does_not_quote_the_payload() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(b"\x81\xa1a\xa6\x1b[31m\x07" + b"\x1b]0;owned\x07")
    assert "owned" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_after_an_error_the_next_payload_is_read_afresh() -> None:
    for payload in HOSTILE.values():
        if len(payload) < 100:
            with pytest.raises(RemoteProtocolError):
                unpack(payload)
            assert unpack(b"\x81\xa1a\x01") == {"a": 1}


# Rows

rows = st.lists(st.lists(scalars, min_size=1, max_size=16).map(tuple), max_size=30)


@given(rows, st.integers(1, 200))
def test_rows_come_back_in_whole_payloads(given_rows: list[Any], target: int) -> None:
    payloads = list(pack_rows(given_rows, target))
    assert [row for payload in payloads for row in unpack_rows(payload)] == given_rows
    assert all(payloads)


def test_rows_fill_payloads_to_about_the_target() -> None:
    payloads = list(pack_rows(((f"path{n:06}", b"d" * 32, n) for n in range(20_000)), 64 * 1024))
    assert all(64 * 1024 <= len(p) < 64 * 1024 + 100 for p in payloads[:-1])


def test_large_rows_never_pass_the_payload_limit() -> None:
    big = ("x" * (MAX_PAYLOAD - 100),)
    payloads = list(pack_rows([("a",), big, ("b",), big], MAX_PAYLOAD))
    assert all(len(p) <= MAX_PAYLOAD for p in payloads)
    assert [row for p in payloads for row in unpack_rows(p)] == [("a",), big, ("b",), big]
    with pytest.raises(LocalProtocolError):
        list(pack_rows([("x" * MAX_PAYLOAD,)]))
    with pytest.raises(LocalProtocolError):
        list(pack_rows([("\udcff",)]))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x90",
        b"\x01",
        b"\x80",
        b"\x91\x80",
        b"\x91\x90",
        b"\x91\x91\x01",
        b"\x91\x81\xa1a\x01",
        b"\x91\xcb" + bytes(8),
        b"\x91\xd4\x01\x00",
        b"\x91",
        b"\x91\x01\x92\x01",
        b"\x91\x01\xc1",
        b"\xdc\x00\x11" + b"\x01" * 17,
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xdb\xff\xff\xff\xff",
        b"\x91\xa1\xff",
        b"\x91" * 5000,
        bytes(MAX_PAYLOAD + 1),
    ],
    ids=lambda payload: payload[:12].hex() or "empty",
)
def test_hostile_rows_are_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        list(unpack_rows(payload))


@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_refused(payload: bytes) -> None:
    try:
        found = list(unpack_rows(payload))
    except RemoteProtocolError:
        return
    assert found
    assert all(type(row) is tuple and row for row in found)


# The server may have nothing but the pure-Python msgpack.

_SCRIPT = """
import sys
from protocol.codec import unpack, unpack_rows
from protocol.errors import RemoteProtocolError
import msgpack
assert msgpack.Unpacker.__module__ == "msgpack.fallback", msgpack.Unpacker
for line in sys.stdin:
    payload = bytes.fromhex(line)
    for read in (unpack, lambda p: list(unpack_rows(p))):
        try:
            print(ascii(read(payload)))
        except RemoteProtocolError:
            print("refused")
"""


def test_pure_python_msgpack_reads_alike() -> None:
    payloads = [p for p in HOSTILE.values() if len(p) < 10_000]
    good = [
        pack({"a": {"b": [1, -5, "é", b"\xff", None, True, 1.5]}}),
        b"".join(pack_rows([("a", 1), ("b", 2)])),
    ]
    for payload in good:
        for at in range(len(payload)):
            payloads.append(payload[:at])
            payloads += [
                payload[:at] + bytes([byte]) + payload[at + 1 :] for byte in (0, 0x81, 0x91, 0xC1, 0xDF)
            ]
    payloads += good
    env = {**os.environ, "MSGPACK_PUREPYTHON": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    text = "".join(p.hex() + "\n" for p in payloads)
    found = subprocess.run(
        [sys.executable, "-c", _SCRIPT], input=text, env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    expected = []
    for payload in payloads:
        for read in (unpack, lambda p: list(unpack_rows(p))):
            try:
                expected.append(ascii(read(payload)))
            except RemoteProtocolError:
                expected.append("refused")
    assert found == expected
    assert len({*found}) > 20


def test_the_limits_are_what_the_document_says() -> None:
    assert (codec.MAX_NESTING, codec.MAX_CONTAINERS, codec.MAX_ITEMS, codec.MAX_ROW_FIELDS) == (
        12,
        4096,
        4096,
        16,
    )

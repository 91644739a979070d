"""File streams: known bytes, whole operations in every payload, hostile numbers, order."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.filestream import OP_BYTES, PAYLOAD_TARGET, Op, OpKind, Order, Packer, unpack
from protocol.framing import MAX_PAYLOAD


def op(kind: int, file: int, offset: int, length: int, content: bytes = b"") -> bytes:
    """An operation, from the document."""
    return struct.pack(">BIQQ", kind, file, offset, length) + content


def read(payloads: list[bytes]) -> list[tuple[int, int, int, int, bytes]]:
    return [(o.kind, o.file, o.offset, o.length, bytes(o.content)) for p in payloads for o in unpack(p)]


def test_known_bytes() -> None:
    packer = Packer()
    assert packer.chunk(1, 0, b"abc") == []
    assert packer.hole(1, 3, 4096) == []
    assert packer.done(1, 4099) == []
    assert packer.changed(2) == []
    assert packer.flush() == [
        bytes.fromhex("01 00000001 0000000000000000 0000000000000003 616263")
        + bytes.fromhex("02 00000001 0000000000000003 0000000000001000")
        + bytes.fromhex("03 00000001 0000000000000000 0000000000001003")
        + bytes.fromhex("04 00000002 0000000000000000 0000000000000000")
    ]
    assert packer.flush() == []
    assert OP_BYTES == 21
    assert PAYLOAD_TARGET == 512 * 1024


files = st.lists(st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 9)), max_size=5), max_size=8)


@given(files, st.integers(1, 400))
def test_files_come_back_from_whole_payloads(contents: list[list[Any]], target: int) -> None:
    packer, payloads = Packer(target), []
    for number, pieces in enumerate(contents):
        at = 0
        for piece in pieces:
            size = piece if isinstance(piece, int) else len(piece)
            payloads += (
                packer.hole(number, at, size) if isinstance(piece, int) else packer.chunk(number, at, piece)
            )
            at += size
        payloads += packer.done(number, at)
    payloads += packer.flush()
    wanted = [b"".join(bytes(p) if isinstance(p, int) else p for p in pieces) for pieces in contents]
    built = [bytearray() for _ in contents]
    order = Order([len(w) for w in wanted])
    for payload in payloads:
        assert 0 < len(payload) <= MAX_PAYLOAD
        for operation in unpack(payload):
            order.check(operation)
            built[operation.file] += operation.content or bytes(
                operation.length if operation.kind is OpKind.HOLE else 0
            )
    order.end()
    assert built == wanted


def test_many_small_files_fill_a_payload() -> None:
    packer, payloads = Packer(), []
    for number in range(1000):
        payloads += packer.chunk(number, 0, bytes(4096)) + packer.done(number, 4096)
    payloads += packer.flush()
    assert all(PAYLOAD_TARGET <= len(p) < PAYLOAD_TARGET + 5000 for p in payloads[:-1])
    assert len(payloads) == 8


def test_a_large_chunk_is_cut_to_payloads() -> None:
    packer = Packer()
    payloads = packer.chunk(0, 0, b"x") + packer.chunk(0, 1, bytes(3 << 20)) + packer.done(0, (3 << 20) + 1)
    payloads += packer.flush()
    assert max(map(len, payloads)) <= MAX_PAYLOAD
    assert [o[0] for o in read(payloads)] == [1] * 7 + [3]


def test_a_payload_never_passes_the_limit() -> None:
    target = MAX_PAYLOAD - OP_BYTES
    packer = Packer(target)
    payloads = packer.chunk(0, 0, bytes(target - OP_BYTES - 1)) + packer.chunk(1, 0, bytes(target))
    payloads += packer.flush()
    assert [len(p) for p in payloads] == [target - 1, MAX_PAYLOAD]


def test_content_is_a_view() -> None:
    payload = Packer().chunk(0, 0, b"x" * 1000) or []
    payload = op(1, 0, 0, 5, b"hello")
    (found,) = unpack(payload)
    assert found.content.obj is payload
    assert found.content.readonly


@pytest.mark.parametrize(
    ("file", "offset", "length"), [(-1, 0, 1), (1 << 32, 0, 1), (0, -1, 1), (0, 1 << 64, 1)]
)
def test_local_numbers_out_of_range(file: int, offset: int, length: int) -> None:
    with pytest.raises(LocalProtocolError):
        Packer().hole(file, offset, length)


@pytest.mark.parametrize("target", [0, -1, MAX_PAYLOAD])
def test_local_targets_out_of_range(target: int) -> None:
    with pytest.raises(ValueError, match="target"):
        Packer(target)


HOSTILE = {
    "nothing": b"",
    "half a head": op(3, 0, 0, 0)[:-1],
    "half a second head": op(3, 0, 0, 0) + b"\x03",
    "kind 0": op(0, 0, 0, 0),
    "kind 5": op(5, 0, 0, 1),
    "kind 255": op(255, 0, 0, 0),
    "no bytes": op(1, 0, 0, 0),
    "fewer bytes than said": op(1, 0, 0, 5, b"four"),
    "2^64-1 bytes": op(1, 0, 0, (1 << 64) - 1, b"x"),
    "bytes at 2^64-1": op(1, 0, (1 << 64) - 1, 1, b"x"),
    "bytes beyond the largest file": op(1, 0, 1 << 60, 1, b"x"),
    "an empty hole": op(2, 0, 5, 0),
    "a hole of 2^64-1": op(2, 0, 0, (1 << 64) - 1),
    "a hole whose end overflows": op(2, 0, (1 << 64) - 1, 2),
    "a hole beyond the largest file": op(2, 0, 1 << 59, (1 << 59) + 1),
    "done at an offset": op(3, 0, 1, 1),
    "done, larger than the largest file": op(3, 0, 0, (1 << 60) + 1),
    "changed with a length": op(4, 0, 0, 1),
    "changed at an offset": op(4, 0, 1, 0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_operations_are_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        list(unpack(HOSTILE[name]))
    if name != "nothing":
        found = unpack(op(3, 7, 0, 0) + HOSTILE[name])
        assert next(found) == Op(OpKind.DONE, 7, 0, 0, memoryview(b""))
        with pytest.raises(RemoteProtocolError):
            list(found)


@given(st.binary(max_size=100))
@settings(max_examples=300)
def test_any_bytes_are_operations_or_refused(payload: bytes) -> None:
    try:
        found = read([payload])
    except RemoteProtocolError:
        return
    assert b"".join(op(*o) for o in found) == payload  # one encoding for one meaning


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ([op(1, 2, 0, 1, b"x")], "not asked for"),
        ([op(1, 0xFFFFFFFF, 0, 1, b"x")], "not asked for"),
        ([op(3, 1, 0, 0)], "not asked for"),
        ([op(1, 0, 1, 1, b"x")], "at 1, expected at 0"),
        ([op(1, 0, 0, 2, b"xy"), op(1, 0, 1, 1, b"x")], "at 1, expected at 2"),
        ([op(1, 0, 0, 2, b"xy"), op(2, 0, 3, 1)], "at 3, expected at 2"),
        ([op(1, 0, 0, 6, b"123456")], "more than its 5"),
        ([op(2, 0, 0, 1 << 59)], "more than its 5"),
        ([op(1, 0, 0, 5, b"12345"), op(2, 0, 5, 1)], "more than its 5"),
        ([op(3, 0, 0, 0)], "ended at 0 after 0 of its 5"),
        ([op(3, 0, 0, 5)], "ended at 5 after 0 of its 5"),
        ([op(2, 0, 0, 5), op(3, 0, 0, 4)], "ended at 4 after 5 of its 5"),
        ([op(2, 0, 0, 5), op(3, 0, 0, 5), op(3, 0, 0, 5)], "has ended"),
        ([op(2, 0, 0, 5), op(3, 0, 0, 5), op(1, 0, 0, 1, b"x")], "has ended"),
        ([op(4, 0, 0, 0), op(2, 0, 0, 1)], "has ended"),
    ],
)
def test_operations_out_of_order_are_refused(operations: list[bytes], message: str) -> None:
    order = Order([5, -1])
    *before, last = [o for payload in operations for o in unpack(payload)]
    for operation in before:
        order.check(operation)
    with pytest.raises(RemoteProtocolError, match=message):
        order.check(last)


def test_files_may_take_turns_and_must_all_end() -> None:
    order = Order([2, 0, -1, 2])
    for payload in (op(1, 0, 0, 1, b"a"), op(1, 3, 0, 1, b"b"), op(1, 0, 1, 1, b"c"), op(3, 0, 0, 2)):
        for operation in unpack(payload):
            order.check(operation)
    assert order.missing == 2
    with pytest.raises(RemoteProtocolError, match="2 missing"):
        order.end()
    for payload in (op(3, 1, 0, 0), op(4, 3, 0, 0)):
        for operation in unpack(payload):
            order.check(operation)
    order.end()


def test_small_files_are_fast() -> None:
    start = time.process_time()
    packer, order = Packer(), Order([4096] * 20_000)
    content = bytes(4096)
    payloads = []
    for number in range(20_000):
        payloads += packer.chunk(number, 0, content)
        payloads += packer.done(number, 4096)
    payloads += packer.flush()
    for payload in payloads:
        for operation in unpack(payload):
            order.check(operation)
    order.end()
    took = time.process_time() - start
    assert took < 2, f"{took:.2f} s for 20,000 files"

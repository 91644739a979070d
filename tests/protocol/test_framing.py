"""Frames: known bytes, hostile headers, and that pieces do not matter."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.framing import (
    HEADER_BYTES,
    LONGEST,
    MAX_PAYLOAD,
    Flag,
    Frame,
    FrameReader,
    FrameType,
    frame_header,
)

MAGIC = b"\xd5G"


def header(kind: int, flags: int, stream: int, length: int, magic: bytes = MAGIC) -> bytes:
    """A header made without the code under test."""
    start = magic + struct.pack(">BBII", kind, flags, stream, length)
    return start + struct.pack(">I", zlib.crc32(start))


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def read(pieces: list[bytes]) -> tuple[list[tuple[int, int, int, bytes]], str]:
    reader = FrameReader()
    frames = [frame for piece in pieces for frame in reader.receive(piece)]
    return [(f.type, f.flags, f.stream, bytes(f.payload)) for f in frames], str(reader.failure or "")


def test_a_known_header() -> None:
    assert frame_header(FrameType.DATA, Flag.ZSTD, 3, 5) == bytes.fromhex("d54705040000000300000005ccb69ce8")
    assert header(5, 4, 3, 5) == frame_header(FrameType.DATA, Flag.ZSTD, 3, 5)


def test_the_numbers_are_what_the_document_says() -> None:
    assert {kind.name: kind.value for kind in FrameType} == {
        "HELLO": 1,
        "REQUEST": 2,
        "RESPONSE": 3,
        "ERROR": 4,
        "DATA": 5,
        "END": 6,
        "RESET": 7,
        "CREDIT": 8,
        "HEARTBEAT": 9,
        "GOODBYE": 10,
        "EVENT": 11,
    }
    assert {flag.name: flag.value for flag in Flag} == {"HAS_BODY": 1, "ZLIB": 2, "ZSTD": 4, "CHANGED": 8}
    assert MAX_PAYLOAD == 1 << 20


kinds = st.sampled_from(
    [
        (FrameType.HEARTBEAT, 0, 0, 0, 0),
        (FrameType.REQUEST, 1, 1, 1, 300),
        (FrameType.DATA, 2, 7, 1, 5000),
        (FrameType.END, 8, 9, 0, 0),
        (FrameType.GOODBYE, 0, 0, 1, 100),
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int, int, bytes]]]:
    frames = []
    for kind, flags, stream, low, high in draw(st.lists(kinds, max_size=6)):
        payload = draw(st.binary(min_size=low, max_size=min(high, 60)))
        if draw(st.booleans()) and high > 60:
            payload = payload * (high // max(len(payload), 1))
        frames.append((int(kind), flags, stream, payload))
    return b"".join(header(k, f, s, len(p)) + p for k, f, s, p in frames), frames


@given(streams(), st.lists(st.integers(0, 700), max_size=40))
def test_frames_come_out_however_they_are_cut(
    made: tuple[bytes, list[tuple[int, int, int, bytes]]], sizes: list[int]
) -> None:
    data, frames = made
    assert read(cut(data, sizes)) == (frames, "")
    assert read([data]) == (frames, "")


def test_byte_by_byte() -> None:
    data = header(5, 0, 1, 70_000) + bytes(range(250)) * 280 + header(6, 0, 1, 0)
    frames, failure = read([data[i : i + 1] for i in range(len(data))])
    assert [(f[0], len(f[3])) for f in frames] == [(5, 70_000), (6, 0)]
    assert not failure


@given(streams(), st.binary(min_size=1, max_size=40), st.lists(st.integers(0, 300), max_size=20))
def test_what_follows_is_a_frame_or_refused_alike(
    made: tuple[bytes, list[tuple[int, int, int, bytes]]], noise: bytes, sizes: list[int]
) -> None:
    data, frames = made
    whole = read([data + noise])
    assert whole[0] == frames  # 40 bytes of noise with a right check sum do not happen
    in_pieces = read(cut(data + noise, sizes))
    assert in_pieces[0] == frames
    assert bool(in_pieces[1]) == bool(whole[1])


HOSTILE = {
    "magic": header(5, 0, 1, 5, magic=b"\xd5H"),
    "text": b"Welcome to the server!\n",
    "check sum": header(5, 0, 1, 5)[:-1] + b"\x00",
    "type 0": header(0, 0, 1, 5),
    "type 12": header(12, 0, 1, 5),
    "type 255": header(255, 0, 1, 5),
    "unknown flag": header(5, 0x80, 1, 5),
    "flag of another type": header(5, Flag.HAS_BODY, 1, 5),
    "two compressions": header(5, Flag.ZLIB | Flag.ZSTD, 1, 5),
    "empty DATA": header(5, 0, 1, 0),
    "long DATA": header(5, 0, 1, MAX_PAYLOAD + 1),
    "longest DATA": header(5, 0, 1, 0xFFFFFFFF),
    "negative as unsigned": header(5, 0, 1, 0x80000000),
    "END with payload": header(6, 0, 1, 1),
    "RESET with payload": header(7, 0, 1, 1),
    "HEARTBEAT with payload": header(9, 0, 0, 1),
    "empty REQUEST": header(2, 0, 1, 0),
    "long REQUEST": header(2, 0, 1, 64 * 1024 + 1),
    "long HELLO": header(1, 0, 0, 4097),
    "long CREDIT": header(8, 0, 1, 65),
    "long GOODBYE": header(10, 0, 0, 64 * 1024 + 1),
    "DATA on stream 0": header(5, 0, 0, 5),
    "HEARTBEAT on a stream": header(9, 0, 1, 0),
    "HELLO on a stream": header(1, 0, 1, 5),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_before_their_payload(name: str) -> None:
    bad = HOSTILE[name]
    good = header(5, 0, 1, 3) + b"abc"
    for pieces in ([good + bad], [good, bad], [bytes([b]) for b in good + bad]):
        reader = FrameReader()
        frames = [frame for piece in pieces for frame in reader.receive(piece)]
        assert [bytes(f.payload) for f in frames] == [b"abc"]
        assert reader.failure is not None
        assert reader.failure.message.isprintable()
        assert reader.receive(good) == []  # out of step for good


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    good = header(5, 0, 1, 8)
    for bit in range(8 * HEADER_BYTES):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        reader = FrameReader()
        assert reader.receive(bytes(bad) + bytes(8)) == []
        assert reader.failure is not None


def test_every_type_has_its_longest_payload() -> None:
    for kind, longest in LONGEST.items():
        stream = 0 if kind in (FrameType.HELLO, FrameType.HEARTBEAT, FrameType.GOODBYE) else 1
        assert read([header(kind, 0, stream, longest) + bytes(longest)])[1] == ""
        assert read([header(kind, 0, stream, longest + 1)])[1] != ""


def test_a_wrong_first_byte_is_not_waited_for() -> None:
    reader = FrameReader()
    assert reader.receive(b"$ ") == []
    assert reader.failure is not None


def test_memory_is_taken_for_bytes_that_came_only() -> None:
    tracemalloc.start()
    readers = [FrameReader() for _ in range(100)]
    for reader in readers:
        reader.receive(header(5, 0, 1, MAX_PAYLOAD) + b"x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_small_payload_does_not_keep_its_chunk_alive() -> None:
    kept: list[Frame] = []
    tracemalloc.start()
    reader = FrameReader()
    for _ in range(50):
        chunk = b"".join([header(3, 0, 1, MAX_PAYLOAD), bytes(MAX_PAYLOAD), header(5, 0, 1, 1), b"x"])
        kept += [frame for frame in reader.receive(chunk) if frame.type == FrameType.DATA]
    del chunk
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 50
    assert held < 2 << 20


def test_a_large_payload_is_not_copied() -> None:
    chunk = header(5, 0, 1, 512 * 1024) + bytes(512 * 1024)
    (frame,) = FrameReader().receive(chunk)
    assert frame.payload.obj is chunk


def test_what_the_caller_may_change_is_copied() -> None:
    chunk = bytearray(header(5, 0, 1, 3) + b"abc")
    (frame,) = FrameReader().receive(chunk)
    chunk[-3:] = b"xyz"
    assert bytes(frame.payload) == b"abc"
    assert frame.payload.readonly


def test_payloads_cannot_be_written_to() -> None:
    reader = FrameReader()
    data = header(5, 0, 1, 300) + bytes(300)
    frames = reader.receive(data[:100]) + reader.receive(data[100:]) + reader.receive(data)
    assert [f.payload.readonly for f in frames] == [True, True]


def test_between_frames() -> None:
    reader = FrameReader()
    assert reader.between_frames
    data = header(5, 0, 1, 3) + b"abc"
    for at in range(len(data)):
        reader.receive(data[at : at + 1])
        assert reader.between_frames == (at == len(data) - 1)

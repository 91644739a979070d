"""Frames: the unit of the wire DSG/1.

A frame is a 16-byte header and a payload::

    magic 2 | type 1 | flags 1 | stream 4 | length 4 | crc32 4     (big-endian)

The CRC is over the header's first 12 bytes. It is there to notice a stream
out of step or spoken to by something else; SSH vouches for the bytes.
Everything in a header is checked before a byte of its payload is taken, and
memory is used only for bytes that have come, never for bytes announced.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple
from zlib import crc32

from protocol.codec import MAX_PAYLOAD, Buffer
from protocol.errors import RemoteProtocolError

__all__ = ["HEADER_BYTES", "MAX_PAYLOAD", "Flag", "Frame", "FrameReader", "FrameType", "frame_header"]

MAGIC = b"\xd5\x47"
HEADER_BYTES = 16
_NO_MAGIC = f"it does not begin with {MAGIC.hex()}"
_START = struct.Struct(">2sBBII")
_HEADER = struct.Struct(">2sBBIII")


class FrameType(IntEnum):
    """What a frame is. HELLO, HEARTBEAT and GOODBYE stand on stream 0, all others on a request's."""

    HELLO = 1
    REQUEST = 2
    RESPONSE = 3
    ERROR = 4
    DATA = 5
    END = 6
    RESET = 7
    CREDIT = 8
    HEARTBEAT = 9
    GOODBYE = 10
    EVENT = 11


class Flag(IntFlag):
    """The bits of a header's flags."""

    NONE = 0
    HAS_BODY = 1  # REQUEST, RESPONSE: DATA frames follow, until END
    ZLIB = 2  # DATA: the payload is one zlib stream
    ZSTD = 4  # DATA: the payload is one zstd frame
    CHANGED = 8  # END, RESET: the sender found that its file changed


class _Rule(NamedTuple):
    allowed: int  # flags
    shortest: int
    longest: int
    on_stream: bool


_RULES: dict[int, _Rule] = {
    FrameType.HELLO: _Rule(0, 1, 4096, False),
    FrameType.REQUEST: _Rule(Flag.HAS_BODY, 1, 64 * 1024, True),
    FrameType.RESPONSE: _Rule(Flag.HAS_BODY, 1, MAX_PAYLOAD, True),
    FrameType.ERROR: _Rule(0, 1, MAX_PAYLOAD, True),
    FrameType.DATA: _Rule(Flag.ZLIB | Flag.ZSTD, 1, MAX_PAYLOAD, True),
    FrameType.END: _Rule(Flag.CHANGED, 0, 0, True),
    FrameType.RESET: _Rule(Flag.CHANGED, 0, 0, True),
    FrameType.CREDIT: _Rule(0, 1, 64, True),
    FrameType.HEARTBEAT: _Rule(0, 0, 0, False),
    FrameType.GOODBYE: _Rule(0, 1, 64 * 1024, False),
    FrameType.EVENT: _Rule(0, 1, 64 * 1024, True),
}
LONGEST: dict[int, int] = {kind: rule.longest for kind, rule in _RULES.items()}


class Frame(NamedTuple):
    """One frame as it came. The payload is a read-only view that owns its bytes or shares those fed in."""

    type: int
    flags: int
    stream: int
    payload: memoryview


def frame_header(kind: int, flags: int, stream: int, length: int) -> bytes:
    """The header of a frame; the caller vouches for the values."""
    start = _START.pack(MAGIC, kind, flags, stream, length)
    return start + crc32(start).to_bytes(4, "big")


def _check_header(header: bytes | memoryview) -> tuple[int, int, int, int]:
    """(type, flags, stream, length); ValueError when the frame is not one that DSG/1 knows."""
    magic, kind, flags, stream, length, check = _HEADER.unpack(header)
    if magic != MAGIC:
        raise ValueError(_NO_MAGIC)
    if crc32(header[:12]) != check:
        raise ValueError("its check sum is wrong")
    rule = _RULES.get(kind)
    if rule is None:
        raise ValueError(f"its type {kind} is unknown")
    if flags | rule.allowed != rule.allowed or flags == Flag.ZLIB | Flag.ZSTD:
        raise ValueError(f"a {FrameType(kind).name} frame has the flags {flags:#x}")
    if not rule.shortest <= length <= rule.longest:
        raise ValueError(f"a {FrameType(kind).name} frame of {length} bytes")
    if (stream != 0) != rule.on_stream:
        raise ValueError(f"a {FrameType(kind).name} frame on stream {stream}")
    return kind, flags, stream, length


class FrameReader:
    """Cuts a byte stream into frames, however it comes in pieces.

    A payload that is a good part of one piece is not copied; a small one, and
    one that comes in several pieces, is copied once. After the first bad header ``failure`` is set and
    nothing more is read: the stream is out of step for good.
    """

    __slots__ = ("_header", "_partial", "_payload", "failure")

    def __init__(self) -> None:
        self.failure: RemoteProtocolError | None = None
        self._partial = bytearray()  # of a header
        self._header: tuple[int, int, int, int] | None = None
        self._payload = bytearray()  # of the frame whose header is _header

    @property
    def between_frames(self) -> bool:
        """Whether the bytes so far end with a whole frame."""
        return self._header is None and not self._partial

    def receive(self, data: Buffer) -> list[Frame]:
        """The frames that ``data`` completes, up to the first bad one.

        ``bytes`` are shared with the frames given out; anything else is
        copied first, since its owner may change it.
        """
        if self.failure is not None:
            return []
        view = memoryview(data if isinstance(data, bytes) else bytes(data))
        at, end = 0, len(view)
        frames: list[Frame] = []
        try:
            while True:
                if self._header is None:
                    if not self._partial and end - at >= HEADER_BYTES:
                        kind, flags, stream, length = _check_header(view[at : at + HEADER_BYTES])
                        at += HEADER_BYTES
                        if end - at >= length:
                            payload = view[at : at + length]
                            if kind == FrameType.DATA and length * 4 < end:
                                # Kept by its consumer, a view would keep all that came with it.
                                payload = memoryview(bytes(payload))
                            frames.append(Frame(kind, flags, stream, payload))
                            at += length
                            continue
                        self._header = (kind, flags, stream, length)
                    else:
                        if at == end:
                            break
                        missing = HEADER_BYTES - len(self._partial)
                        self._partial += view[at : at + missing]
                        at = min(at + missing, end)
                        if len(self._partial) < HEADER_BYTES:
                            # What has come may already be wrong: a peer that speaks something else
                            # and then waits would otherwise be waited for.
                            if not MAGIC.startswith(self._partial[:2]):
                                raise ValueError(_NO_MAGIC)
                            break
                        header = bytes(self._partial)
                        self._partial.clear()
                        self._header = _check_header(header)
                kind, flags, stream, length = self._header
                missing = length - len(self._payload)
                self._payload += view[at : at + missing]
                at = min(at + missing, end)
                if len(self._payload) < length:
                    break
                frames.append(Frame(kind, flags, stream, memoryview(self._payload).toreadonly()))
                self._payload = bytearray()
                self._header = None
        except ValueError as error:
            self.failure = RemoteProtocolError(f"the other side sent a bad frame: {error}")
        return frames

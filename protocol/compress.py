"""Compression of DATA payloads, one by one, skipped where it does not pay.

zstd when both sides have it (the feature ``zstd``), else zlib; and zlib for
what is small, where importing zstd would take longer on both sides than it
saves. Whether the next payload is worth a try is decided from what came before
it, never from a clock: the same bytes always give the same frames.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

from protocol.codec import MAX_PAYLOAD, Buffer
from protocol.errors import RemoteProtocolError
from protocol.framing import Flag

__all__ = ["Compressor", "blocks", "inflate"]

_SAMPLE = 16 * 1024
_LEAST = 256  # below it, the frame's header outweighs what could be saved
_MOST_SKIPPED = 32
_SMALL = 128 * 1024  # of a body are compressed by zlib, whichever was agreed on


def blocks(content: Buffer, size: int = 512 * 1024) -> Iterator[memoryview]:
    """``content`` in payload-sized pieces, not copied."""
    view = memoryview(content)
    for at in range(0, len(view), size):
        yield view[at : at + size]


class Compressor:
    """Compresses the payloads of one body. ``algorithm``: ``zstd``, ``zlib`` or ``none``.

    A payload is sent compressed when that saves at least an eighth. Of a
    larger one a sample is tried first; after one that did not shrink, the
    next are sent as they are, twice as many after each such finding, up to 32.
    With ``zstd``, the first 128 KiB that are tried or compressed are so by zlib.
    """

    def __init__(self, algorithm: str, level: int = 1) -> None:
        if algorithm not in ("zstd", "zlib", "none"):
            raise ValueError(f"unknown compression {algorithm!r}")
        self._level = level
        self._packer: Callable[[Buffer], bytes] | None = None
        self._flag = Flag.NONE
        self._until_zstd = _SMALL if algorithm == "zstd" else -1
        if algorithm != "none":
            self._packer = lambda payload: zlib.compress(payload, level)
            self._flag = Flag.ZLIB
        self._skip = 0  # payloads to pass over before the next try
        self._penalty = 0

    def compress(self, payload: Buffer) -> tuple[Buffer, Flag]:
        """What to send for ``payload``, and the flag to send it with. An incompressible one is not copied."""
        size = len(payload)
        if self._packer is None or size < _LEAST:
            return payload, Flag.NONE
        if self._skip:
            self._skip -= 1
            return payload, Flag.NONE
        if size >= 4 * _SAMPLE:
            middle = (size - _SAMPLE) // 2
            sample = memoryview(payload)[middle : middle + _SAMPLE]
            if not _pays(_SAMPLE, len(self._pack(sample))):
                return self._passed(payload)
        deflated = self._pack(payload)
        if not _pays(size, len(deflated)):
            return self._passed(payload)
        self._penalty = 0
        return deflated, self._flag

    def _pack(self, payload: Buffer) -> bytes:
        assert self._packer is not None
        if self._until_zstd >= 0:
            self._until_zstd -= len(payload)
            if self._until_zstd < 0:
                import zstandard

                self._packer = zstandard.ZstdCompressor(level=self._level, write_content_size=True).compress
                self._flag = Flag.ZSTD
        return self._packer(payload)

    def _passed(self, payload: Buffer) -> tuple[Buffer, Flag]:
        self._penalty = min(max(1, 2 * self._penalty), _MOST_SKIPPED)
        self._skip = self._penalty
        return payload, Flag.NONE


def _pays(before: int, after: int) -> bool:
    return after <= before - before // 8


def inflate(payload: Buffer, flags: Flag, cap: int = MAX_PAYLOAD) -> Buffer:
    """A DATA payload as its sender had it: at least 1, at most ``cap`` bytes.

    RemoteProtocolError when it is damaged, larger, or not exactly one
    compressed block; no more than about ``cap`` bytes are ever produced.
    """
    if cap < 1:
        raise ValueError(f"a cap of {cap} bytes")  # zlib and zstd take 0 for "no limit"
    if flags & Flag.ZLIB:
        inflated = _inflate_zlib(payload, cap)
    elif flags & Flag.ZSTD:
        inflated = _inflate_zstd(payload, cap)
    else:
        return payload
    if not inflated:
        raise RemoteProtocolError("a compressed payload holds nothing")
    return inflated


def _inflate_zlib(payload: Buffer, cap: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(payload, cap)
        # At the cap, the end of the stream may not have been read yet: one more byte tells.
        more = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise RemoteProtocolError(f"a compressed payload is damaged: {error}") from None
    if more or not stream.eof or stream.unused_data:
        raise RemoteProtocolError(f"a compressed payload is cut short, or holds more than {cap} bytes")
    return inflated


def _inflate_zstd(payload: Buffer, cap: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise RemoteProtocolError("a payload is compressed by zstd, which was not agreed on") from None
    try:
        head: Any = zstandard.get_frame_parameters(payload)
        # A size in the frame is what the library allocates, whatever maximum it is given.
        if head.content_size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
            raise RemoteProtocolError("a compressed payload does not say its size")
        if head.content_size > cap or head.window_size > max(cap, 1 << 20) or head.dict_id:
            raise RemoteProtocolError(f"a compressed payload holds more than {cap} bytes")
        inflater = zstandard.ZstdDecompressor()
        return inflater.decompress(payload, max_output_size=cap, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RemoteProtocolError(f"a compressed payload is damaged: {error}") from None

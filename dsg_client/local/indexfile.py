"""The files of the stat index: a header, then blocks of rows, each with a checksum of its own.

They are read as a stream, and a damaged block costs what follows it and no
more. What a header holds (the *seed*: what the index is bound to, and a salt)
is part of every block's checksum.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import msgpack

from protocol.tree.fs import ReadFile

__all__ = ["ROWS_PER_BLOCK", "read_blocks", "read_seed", "write_rows"]

FORMAT = 1
ROWS_PER_BLOCK = 512

_MAGIC = b"DSGI"
_HEADER = struct.Struct(">4sHI")  # magic, format, length of the seed
_BLOCK = struct.Struct(">II")  # length, CRC-32 over seed, block number and payload
_MAX_BLOCK = 8 << 20
_MAX_SEED = 4096


def read_seed(file: ReadFile, expected: Callable[[bytes], bytes]) -> bytes | None:
    """The seed at the beginning; None when it is not what ``expected`` makes of its salt, or damaged."""
    fixed = _read_exactly(file, _HEADER.size)
    if fixed is None:
        return None
    magic, number, length = _HEADER.unpack(fixed)
    if magic != _MAGIC or number != FORMAT or length > _MAX_SEED:
        return None
    seed = _read_exactly(file, length)
    if seed is None:
        return None
    try:
        salt = msgpack.unpackb(seed)[-1]
        return seed if seed == expected(salt) else None
    except (ValueError, TypeError, LookupError, msgpack.UnpackException):
        return None


def read_blocks(file: ReadFile, seed: bytes) -> Iterator[tuple[tuple[Any, ...], ...]]:
    """The rows of one block after the other; it ends with the file, or before a damaged block."""
    number = 0
    while rows := _read_block(file, seed, number):
        yield rows
        number += 1


def _read_block(file: ReadFile, seed: bytes, number: int) -> tuple[tuple[Any, ...], ...]:
    head = _read_exactly(file, _BLOCK.size)
    if head is None:
        return ()
    length, checksum = _BLOCK.unpack(head)
    if not 0 < length <= _MAX_BLOCK:
        return ()
    payload = _read_exactly(file, length)
    if payload is None or _checksum(seed, number, payload) != checksum:
        return ()
    try:
        rows: tuple[tuple[Any, ...], ...] = msgpack.unpackb(payload, use_list=False)
        return rows if set(map(type, rows)) == {tuple} else ()
    except (ValueError, TypeError, msgpack.UnpackException):
        return ()


def _read_exactly(file: ReadFile, size: int) -> bytes | None:
    parts = []
    while size:
        try:
            part = file.read(size)
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _checksum(seed: bytes, number: int, payload: bytes) -> int:
    # Salt and number keep a block of an older index, left in the file by a crash, from being taken for ours.
    return zlib.crc32(payload, zlib.crc32(seed + number.to_bytes(8, "big")))


def write_rows(write: Callable[[bytes], object], seed: bytes, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write a whole file."""
    write(_HEADER.pack(_MAGIC, FORMAT, len(seed)) + seed)
    rest = iter(rows)
    number = 0
    while batch := list(islice(rest, ROWS_PER_BLOCK)):
        payload: bytes = msgpack.packb(batch)
        write(_BLOCK.pack(len(payload), _checksum(seed, number, payload)) + payload)
        number += 1

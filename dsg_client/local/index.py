"""The stat index: which content a file had when it was last read, so that it need not be read again.

A row ``(path, size, mtime_ns, ctime_ns, inode, digest)`` says: the file with
exactly these numbers holds this content. The kernel sets ctime on every write
and nobody can set it back, so an edit that keeps size and mtime is still seen.

What makes it safe to trust:

* It is a cache. Missing, damaged, of another machine, folder or digest
  algorithm: the rows are not there, and the files are read again.
* *Racy* rows are never written. Time stamps advance in steps (the grain); a
  write in the same step as the read leaves no trace, so a row is kept only
  for a file whose times lie more than a grain before the moment it was read,
  both by the file system's own clock (:class:`FileClock`).

The file is ``.dsg/index`` (``docs/formats.md``): a header, then blocks of
rows in canonical order, each with its own checksum, so that it is read as a
stream and a damaged block costs what follows it and no more. It is replaced
by rename and not flushed: after a power cut a checksum fails, and files are
read again.
"""

from __future__ import annotations

import secrets
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgpack

from protocol.paths import sort_key
from protocol.tree.fs import ReadFile, Stat, TreeFS
from protocol.value import Value

__all__ = ["INDEX_PATH", "Binding", "FileClock", "IndexChanges", "IndexRow", "read_index", "save_index"]

INDEX_PATH = ".dsg/index"
FORMAT = 1

IndexRow = tuple[str, int, int, int, int, bytes]

_MAGIC = b"DSGI"
_HEADER = struct.Struct(">4sHI")  # magic, format, length of the binding
_BLOCK = struct.Struct(">II")  # length, CRC-32 over salt, block number and payload
_ROWS_PER_BLOCK = 512
_MAX_BLOCK = 8 << 20
_MAX_BINDING = 4096
_MARGIN_NS = 20_000_000  # two ticks of the slowest kernel clock in use (HZ=100)


class Binding(Value):
    """What an index is good for: this folder on this machine, and one digest algorithm."""

    machine: str
    filesystem: int
    inode: int
    algorithm: str

    def pack(self, salt: bytes) -> bytes:
        packed: bytes = msgpack.packb([self.machine, self.filesystem, self.inode, self.algorithm, salt])
        return packed


class FileClock(Value):
    """The file system's clock, which stamps files: another machine's on a network file system.

    ``offset_ns`` is added to ``time.monotonic_ns()``; it is never ahead of the
    real one. ``grain_ns`` is the coarsest step of mtime and ctime.
    """

    offset_ns: int
    grain_ns: int

    @classmethod
    def measure(cls, tree: TreeFS) -> FileClock | None:
        """Read the clock from a file made for it; None when none can be made: no row is trusted anew."""
        path = f".dsg/tmp/clock.{secrets.token_hex(4)}"
        try:
            grain = tree.capabilities.time_grain_ns
            stamped = tree.create(path).finish(executable=False, mtime_ns=None)
            after = time.monotonic_ns()
            tree.unlink(path)
        except OSError:
            return None
        return cls(stamped.mtime_ns - after, grain)

    def settled(self, mtime_ns: int, ctime_ns: int, read_ns: int) -> bool:
        """Whether a later write must show: the times lie a grain before ``read_ns`` (monotonic)."""
        read_at = read_ns + self.offset_ns
        step = self.grain_ns + _MARGIN_NS
        # An mtime of the distant future is no danger: a write would not get it.
        return ctime_ns < read_at - step and abs(read_at - mtime_ns) > step

    def settled_since_placed(self, mtime_ns: int, ctime_ns: int) -> bool:
        """The same for a file that this process placed at ``ctime_ns``, with an mtime of its own choice.

        Its ctime is of that very moment, so a write in the same step would
        not change it; but it would change the mtime, if that is another time.
        """
        return abs(ctime_ns - mtime_ns) > self.grain_ns + _MARGIN_NS


class IndexChanges:
    """Rows to put and to drop, collected in canonical order and kept packed."""

    __slots__ = ("_blocks", "_rows", "count")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._rows: list[tuple[Any, ...]] = []
        self.count = 0

    def put(self, path: str, identity: tuple[int, int, int, int], digest: bytes) -> None:
        """The file with this (size, mtime_ns, ctime_ns, inode) holds this content."""
        self._add((path, *identity, digest))

    def put_placed(self, path: str, stat: Stat, digest: bytes, clock: FileClock | None) -> None:
        """A file that this process has just placed with this content; dropped when its mtime is racy."""
        if clock is not None and clock.settled_since_placed(stat.mtime_ns, stat.ctime_ns):
            self.put(path, (stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode), digest)
        else:
            self.drop(path)

    def drop(self, path: str) -> None:
        """Nothing is known of this path any more."""
        self._add((path,))

    def _add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= _ROWS_PER_BLOCK:
            self._blocks.append(msgpack.packb(self._rows))
            self._rows = []

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for block in self._blocks:
            yield from msgpack.unpackb(block, use_list=False)
        yield from self._rows


def read_index(tree: TreeFS, binding: Binding) -> Iterator[IndexRow]:
    """The rows that can be trusted, in canonical order; ends without a word where it cannot be read."""
    try:
        file = tree.open_read(INDEX_PATH)
    except OSError:
        return
    try:
        seed = _read_header(file, binding)
        number = 0
        while seed is not None:
            rows = _read_block(file, seed, number)
            if not rows:
                return
            yield from rows
            number += 1
    finally:
        file.close()


def _read_header(file: ReadFile, binding: Binding) -> bytes | None:
    """What seeds the block checksums, or None when the index is not good for ``binding``."""
    fixed = _read_exactly(file, _HEADER.size)
    if fixed is None:
        return None
    magic, number, length = _HEADER.unpack(fixed)
    if magic != _MAGIC or number != FORMAT or length > _MAX_BINDING:
        return None
    packed = _read_exactly(file, length)
    if packed is None:
        return None
    try:
        salt = msgpack.unpackb(packed)[-1]
        return packed if packed == binding.pack(salt) else None
    except (ValueError, TypeError, LookupError, msgpack.UnpackException):
        return None


def _read_block(file: ReadFile, seed: bytes, number: int) -> tuple[IndexRow, ...]:
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
        rows: tuple[IndexRow, ...] = msgpack.unpackb(payload, use_list=False)
        return rows if set(map(len, rows)) == {6} else ()
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


def save_index(tree: TreeFS, binding: Binding, changes: IndexChanges) -> None:
    """Merge ``changes`` into the index on disk and replace it; nothing is written when there are none.

    Raises OSError; the old index is then still there, and as true as before.
    """
    if not changes.count:
        return
    path = f".dsg/tmp/index.{secrets.token_hex(4)}"
    file = tree.create(path)
    try:
        seed = binding.pack(secrets.token_bytes(8))
        file.write(_HEADER.pack(_MAGIC, FORMAT, len(seed)) + seed)
        batch: list[tuple[Any, ...]] = []
        number = 0
        for row in _merge(read_index(tree, binding), changes):
            batch.append(row)
            if len(batch) == _ROWS_PER_BLOCK:
                _write_block(file.write, seed, number, batch)
                number += 1
                batch = []
        if batch:
            _write_block(file.write, seed, number, batch)
        file.finish(executable=False, mtime_ns=None)
        tree.move(path, INDEX_PATH)
    except BaseException:
        file.close()
        try:
            tree.unlink(path)
        except OSError:
            pass
        raise


def _write_block(write: Any, seed: bytes, number: int, rows: list[tuple[Any, ...]]) -> None:
    payload: bytes = msgpack.packb(rows)
    write(_BLOCK.pack(len(payload), _checksum(seed, number, payload)) + payload)


def _merge(old: Iterator[IndexRow], changes: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    row = next(old, None)
    for change in changes:
        path = change[0]
        key = sort_key(path)
        while row is not None and row[0] != path and sort_key(row[0]) < key:
            yield row
            row = next(old, None)
        if row is not None and row[0] == path:
            row = next(old, None)
        if len(change) == 6:
            yield change
    while row is not None:
        yield row
        row = next(old, None)

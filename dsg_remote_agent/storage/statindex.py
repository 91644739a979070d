"""The repository's stat index: how each entry of the head looked to ``stat`` when its content was known.

One fixed-size row an entry, in the manifest's order. An entry whose file still
stats the same was not touched; any other is hashed. The index is a cache: when
it is missing, damaged, of another snapshot or of another folder (a copied
repository), every row is unknown and everything is hashed once.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import msgpack

from dsg_remote_agent.storage.layout import FORMAT, INDEX, TMP
from protocol.tree.fs import Kind, Stat, TreeFS

__all__ = ["UNKNOWN", "IndexRow", "StatIndex", "file_clock", "row_if", "row_of", "settled_before"]

_MAGIC = b"DSGX1\n"
_ROW = struct.Struct(">qqQQ")
_CRC = struct.Struct(">I")
_MAX_BYTES = 1 << 36


class IndexRow(NamedTuple):
    """What is remembered of one path; all zero when nothing is."""

    mtime_ns: int
    ctime_ns: int
    inode: int
    size: int


UNKNOWN = IndexRow(0, 0, 0, 0)


def file_clock(tree: TreeFS) -> int:
    """What the file system takes for now, in ns: the time of a file made for it, by a name of its own."""
    tree.make_folders(TMP)
    path = f"{TMP}/probe-clock-{os.getpid()}-{os.urandom(4).hex()}"
    out = tree.create(path)
    try:
        return out.finish(executable=False, mtime_ns=None).mtime_ns
    finally:
        out.close()
        _remove(tree, path)


def settled_before(tree: TreeFS, looked_ns: int) -> int:
    """The change time before which a look at ``looked_ns`` tells a later edit from what it saw."""
    return looked_ns - tree.capabilities.time_grain_ns


def _remove(tree: TreeFS, path: str) -> None:
    try:
        tree.unlink(path)
    except FileNotFoundError:
        pass


def row_of(stat: Stat) -> IndexRow:
    """The row for a path that stats like this; unknown when it is no file or link, or has no change time."""
    if (stat.kind is not Kind.FILE and stat.kind is not Kind.LINK) or not stat.ctime_ns:
        return UNKNOWN
    return IndexRow(stat.mtime_ns, stat.ctime_ns, stat.inode, stat.size)


def row_if(row: IndexRow, stat: Stat) -> bool:
    """Whether a known row still fits."""
    return bool(row.ctime_ns) and row == row_of(stat)


class StatIndex:
    """Rows in the order of one manifest's entries; grown by :meth:`append`."""

    def __init__(self, rows: bytes | bytearray = b"") -> None:
        self._rows = bytearray(rows)

    def __len__(self) -> int:
        return len(self._rows) // _ROW.size

    def __iter__(self) -> Iterator[IndexRow]:
        return map(IndexRow._make, _ROW.iter_unpack(self._rows))

    def numbers(self, first: int = 0) -> Iterator[tuple[int, int, int, int]]:
        """The rows from ``first`` on as plain tuples: what a loop over all of them compares."""
        return _ROW.iter_unpack(memoryview(self._rows)[first * _ROW.size :])

    def __getitem__(self, at: int) -> IndexRow:
        return IndexRow._make(_ROW.unpack_from(self._rows, at * _ROW.size))

    def extend(self, other: StatIndex, start: int, end: int) -> None:
        """Add the rows of ``other`` from ``start`` to before ``end``."""
        self._rows += memoryview(other._rows)[start * _ROW.size : end * _ROW.size]

    def append(self, row: IndexRow) -> None:
        """Add the row of the next entry."""
        self._rows += _ROW.pack(*row)

    def copy(self) -> StatIndex:
        """The same rows, to be changed by :meth:`put`."""
        return StatIndex(self._rows)

    def put(self, at: int, row: IndexRow) -> None:
        """Another row for the entry number ``at``."""
        _ROW.pack_into(self._rows, at * _ROW.size, *row)

    def settled(self, tree: TreeFS, looked_ns: int) -> StatIndex:
        """The rows, unknown where the path was changed in the tick of the clock in which it was looked at.

        ``looked_ns``: :func:`file_clock` before the first look. Another edit
        in the same tick could not be told from what was seen.
        """
        safe_before = settled_before(tree, looked_ns)
        made = self.copy()
        if self._newest() < safe_before:
            return made  # as nearly always
        for at, row in enumerate(self.numbers()):
            if row[1] >= safe_before:
                made.put(at, UNKNOWN)
        return made

    def _newest(self) -> int:
        """The latest change time of all rows."""
        numbers = array("q", bytes(self._rows))
        if sys.byteorder == "little":
            numbers.byteswap()
        return max(numbers[1::4], default=0)

    def save(self, tree: TreeFS, record: str, area: TreeFS | None = None) -> None:
        """Write the index, settled, of ``tree`` at the snapshot with this record digest; needs the lock.

        ``area``: the tree whose ``.dsg`` takes it, when it is not ``tree`` itself.
        A failure leaves the old index, which names the snapshot that it is of.
        """
        area = area or tree
        area.make_folders(TMP)
        beside = f"{TMP}/index"
        _remove(area, beside)
        header = msgpack.packb(
            {"format": FORMAT, "record": record, "count": len(self), "root": tree.stat("").inode}
        )
        head = _MAGIC + _CRC.pack(len(header)) + header
        rows = bytes(self._rows)
        out = area.create(beside)
        try:
            out.write(head)
            out.write(rows)
            out.write(_CRC.pack(zlib.crc32(rows, zlib.crc32(head))))
            out.finish(executable=False, mtime_ns=None)
        finally:
            out.close()
        area.move(beside, INDEX)

    @classmethod
    def unknown(cls, count: int) -> StatIndex:
        """An index in which nothing is known."""
        return cls(bytes(count * _ROW.size))

    @classmethod
    def load(cls, tree: TreeFS, area: TreeFS | None = None) -> tuple[str, StatIndex] | None:
        """The stored index with the record digest that it belongs to; None when there is none to trust."""
        try:
            stored = (area or tree).read_bytes(INDEX, _MAX_BYTES)
        except OSError:
            return None
        at = len(_MAGIC) + _CRC.size
        try:
            if not stored.startswith(_MAGIC) or len(stored) < at + _CRC.size:
                return None
            body_at = at + _CRC.unpack_from(stored, len(_MAGIC))[0]
            header = msgpack.unpackb(stored[at:body_at])
            rows = stored[body_at : -_CRC.size]
            if (
                zlib.crc32(stored[: -_CRC.size]) != _CRC.unpack(stored[-_CRC.size :])[0]
                or header["format"] != FORMAT
                or len(rows) != header["count"] * _ROW.size
                or header["root"] != tree.stat("").inode
                or not isinstance(header["record"], str)
            ):
                return None
        except (ValueError, TypeError, KeyError, struct.error, msgpack.UnpackException):
            return None
        return header["record"], cls(rows)

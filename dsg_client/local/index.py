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

The rows are in ``.dsg/index``, in canonical order. News of a large index go
into ``.dsg/index.late``, which is good for that one index only: what a small
change costs goes by the news, not by the index. Both are replaced by rename and not flushed
(:mod:`dsg_client.local.indexfile`): after a power cut a checksum fails, and
files are read again.
"""

from __future__ import annotations

import secrets
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack

from dsg_client.local.indexfile import ROWS_PER_BLOCK, read_blocks, read_seed, write_rows
from protocol.paths import sort_key
from protocol.tree.fs import Stat, TreeFS
from protocol.value import Value

__all__ = [
    "INDEX_FILES",
    "INDEX_PATH",
    "LATE_PATH",
    "Binding",
    "FileClock",
    "IndexChanges",
    "IndexRow",
    "forget_index",
    "read_index",
    "save_index",
]

INDEX_PATH = ".dsg/index"
LATE_PATH = ".dsg/index.late"
INDEX_FILES = (INDEX_PATH, LATE_PATH)

IndexRow = tuple[str, int, int, int, int, bytes]

_ROW = 6  # fields; a row that only drops a path has one
_LARGE = 1 << 16  # bytes; a smaller index is written anew
_LATE_SHARE = 8  # as it is when its news have grown to one part in so many
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

    @property
    def size(self) -> int:
        """Bytes of all of them, encoded."""
        return sum(map(len, self._blocks)) + len(msgpack.packb(self._rows))

    def _add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= ROWS_PER_BLOCK:
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
        seed = read_seed(file, binding.pack)
        if seed is None:
            return
        late = _Late(_read_late(tree, seed))
        for rows in read_blocks(file, seed):
            if set(map(len, rows)) != {_ROW}:
                break
            yield from late.merged(rows)
        yield from late.rest()
    finally:
        file.close()


def _read_late(tree: TreeFS, seed: bytes) -> dict[str, tuple[Any, ...]]:
    """The news of the index that has this seed, by path."""
    try:
        file = tree.open_read(LATE_PATH)
    except OSError:
        return {}
    try:
        if read_seed(file, lambda _: seed) is None:
            return {}
        found: dict[str, tuple[Any, ...]] = {}
        for rows in read_blocks(file, seed):
            if not set(map(len, rows)) <= {1, _ROW}:
                break
            found.update((row[0], row) for row in rows)
        return found
    finally:
        file.close()


class _Late:
    """News that take their places among the rows."""

    def __init__(self, news: dict[str, tuple[Any, ...]]) -> None:
        self._news = sorted(((sort_key(path), row) for path, row in news.items()), reverse=True)

    def merged(self, rows: Sequence[IndexRow]) -> Sequence[IndexRow]:
        """The next rows with what belongs before, between and in place of them."""
        news = self._news
        if not news or news[-1][0] > sort_key(rows[-1][0]):
            return rows
        last = sort_key(rows[-1][0])
        merged: list[IndexRow] = []
        at = 0
        while news and news[-1][0] <= last:
            key, row = news.pop()
            place = bisect_left(rows, key, lo=at, key=lambda known: sort_key(known[0]))
            merged += rows[at:place]
            at = place + (place < len(rows) and rows[place][0] == row[0])
            if len(row) == _ROW:
                merged.append(row)
        merged += rows[at:]
        return merged

    def rest(self) -> Iterator[IndexRow]:
        """What comes after all rows."""
        for _, row in reversed(self._news):
            if len(row) == _ROW:
                yield row


def save_index(tree: TreeFS, binding: Binding, changes: IndexChanges) -> None:
    """Put ``changes`` into the index on disk; nothing is written when there are none.

    Raises OSError; the index is then still there, and as true as before.
    """
    if not changes.count or _save_late(tree, binding, changes):
        return
    seed = binding.pack(secrets.token_bytes(8))
    _replace(tree, INDEX_PATH, seed, _merge(read_index(tree, binding), changes))
    try:
        tree.unlink(LATE_PATH)  # it is good for the one before only
    except FileNotFoundError:
        pass


def _save_late(tree: TreeFS, binding: Binding, changes: IndexChanges) -> bool:
    """Put them beside the index; whether it is large enough, and they few enough."""
    try:
        size = tree.stat(INDEX_PATH).size
        if size < _LARGE or changes.size * _LATE_SHARE > size:
            return False
        file = tree.open_read(INDEX_PATH)
    except OSError:
        return False
    try:
        seed = read_seed(file, binding.pack)
    finally:
        file.close()
    if seed is None:
        return False
    news = _read_late(tree, seed)
    news.update((row[0], row) for row in changes)
    rows = [news[path] for path in sorted(news, key=sort_key)]
    if len(msgpack.packb(rows)) * _LATE_SHARE > size:
        return False
    _replace(tree, LATE_PATH, seed, rows)
    return True


def _replace(tree: TreeFS, path: str, seed: bytes, rows: Iterable[tuple[Any, ...]]) -> None:
    beside = f".dsg/tmp/index.{secrets.token_hex(4)}"
    file = tree.create(beside)
    try:
        write_rows(file.write, seed, rows)
        file.finish(executable=False, mtime_ns=None)
        tree.move(beside, path)
    except BaseException:
        file.close()
        try:
            tree.unlink(beside)
        except OSError:
            pass
        raise


def forget_index(tree: TreeFS) -> None:
    """Remove it, so that every file is read again."""
    for path in INDEX_FILES:
        try:
            tree.unlink(path)
        except OSError:
            pass


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
        if len(change) == _ROW:
            yield change
    while row is not None:
        yield row
        row = next(old, None)

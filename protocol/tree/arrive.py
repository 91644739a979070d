"""File contents as they arrive: into staging, hashed on the way, checked against what announced them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from protocol.codec import Buffer
from protocol.digest import Hasher, hasher
from protocol.errors import IntegrityError, LocalChangedError, RemoteProtocolError
from protocol.filestream import Op, OpKind, Order, unpack
from protocol.manifest import FILE, Entry
from protocol.paths import escape
from protocol.tree.change import Staged, Staging
from protocol.tree.fs import Kind, WriteFile

__all__ = ["Arrivals", "Rows"]

# Files under way at once; each holds a descriptor. Senders take turns between a few.
MOST_OPEN = 64


class Rows(Protocol):
    """What may arrive, by number: a list will do, or rows that are decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Entry | str: ...

    def __iter__(self) -> Iterator[Entry | str]: ...


class _Arriving(NamedTuple):
    entry: Entry
    out: WriteFile
    sums: Hasher


class Arrivals:
    """The staged files of one transaction, by their number in ``rows``.

    ``rows`` holds what may arrive: entries, and at numbers where nothing can, a
    deleted path. ``began`` is called once, when the first file is there.

    A file whose digest or size is not what its change says is an
    IntegrityError; it is never counted as received. What is staged stays for
    the transaction's abort to remove.
    """

    def __init__(self, staging: Staging, rows: Rows, algorithm: str, began: Callable[[], None]) -> None:
        self._staging = staging
        self._rows = rows
        self._algorithm = algorithm
        self._began = began
        self._order = Order(_sizes(rows))
        self._open: dict[int, _Arriving] = {}
        self._started = False
        # Of each change: size, mtime and inode of its staged file; inode 0 while there is none.
        self._inodes = array("Q", bytes(8 * len(rows)))
        self._mtimes = array("q", bytes(8 * len(rows)))
        self.files = 0
        self.bytes = 0

    def feed(self, payload: Buffer) -> None:
        """Take one inflated payload; after an error only ``close`` may follow."""
        for op in unpack(payload):
            self._order.check(op)
            self._take(op)

    def end(self) -> None:
        """A body ended; RemoteProtocolError when it did so within a file."""
        if self._open:
            raise RemoteProtocolError(f"a transfer ended within {len(self._open)} of its files")

    def close(self) -> None:
        """Let go of the files under way; harmless after ``end``."""
        for arriving in self._open.values():
            arriving.out.close()
        self._open.clear()

    def _take(self, op: Op) -> None:
        arriving = self._open.get(op.file) or self._begin(op.file)
        if op.kind is OpKind.BYTES:
            arriving.sums.update(op.content)
            arriving.out.write(op.content)
        elif op.kind is OpKind.HOLE:
            _add_zeros(arriving.sums, op.length)
            arriving.out.skip(op.length)
        elif op.kind is OpKind.DONE:
            self._finish(op.file, arriving)
        else:
            raise LocalChangedError(f"{escape(arriving.entry.path)} changed while it was sent")

    def _begin(self, index: int) -> _Arriving:
        entry = self._rows[index]
        if isinstance(entry, str) or entry.kind != FILE:
            raise RemoteProtocolError(f"bytes came for number {index}, where no file was announced")
        if len(self._open) >= MOST_OPEN:
            raise RemoteProtocolError(f"more than {MOST_OPEN} files were sent at once")
        arriving = _Arriving(entry, self._staging.create(index), hasher(self._algorithm))
        self._open[index] = arriving
        if not self._started:
            self._started = True
            self._began()
        return arriving

    def _finish(self, index: int, arriving: _Arriving) -> None:
        entry = arriving.entry
        del self._open[index]
        if arriving.sums.digest() != entry.content:
            arriving.out.close()
            raise IntegrityError(
                f"{escape(entry.path)} arrived with other content than announced",
                hint="if this happens again, look for a file that is being written to, or for bad memory",
            )
        stat = arriving.out.finish(executable=entry.executable, mtime_ns=entry.mtime_ns)
        self._inodes[index] = stat.inode
        self._mtimes[index] = stat.mtime_ns
        self.files += 1
        self.bytes += entry.size

    def staged(self, number: int) -> Staged | None:
        """What was staged for a change, or None."""
        inode = self._inodes[number]
        if not inode:
            return None
        entry = self._rows[number]
        assert not isinstance(entry, str)
        return Staged(
            number=number,
            kind=Kind.FILE,
            size=entry.size,
            mtime_ns=self._mtimes[number],
            inode=inode,
            executable=entry.executable,
        )


def _sizes(rows: Rows) -> array[int]:
    sizes = array("q")
    for change in rows:
        sizes.append(-1 if isinstance(change, str) or change.kind != FILE else change.size)
    return sizes


_ZEROS = bytes(1 << 20)


def _add_zeros(sums: Hasher, length: int) -> None:
    while length > 0:
        part = min(length, len(_ZEROS))
        sums.update(_ZEROS if part == len(_ZEROS) else _ZEROS[:part])
        length -= part

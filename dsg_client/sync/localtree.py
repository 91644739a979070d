"""L as it was scanned: where it differs from C, and the numbers that tell whether anybody touched a file."""

from __future__ import annotations

import io
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgpack

from dsg_client.core.merge import Difference
from dsg_client.local.stretch import Stretch
from protocol.codec import Buffer
from protocol.errors import InternalError
from protocol.manifest import FILE, LINK, Entry, Manifest, Row
from protocol.paths import escape, sort_key
from protocol.tree.change import Expected
from protocol.tree.fs import Kind
from protocol.value import Value

__all__ = ["LocalTree"]

_TELL_EVERY = 512  # entries
_READ_BYTES = 1 << 18
_new = tuple.__new__


class LocalTree(Value):
    """One complete scan: 32 bytes an entry, and 100 to 200 for each that is not as in C."""

    cache: Manifest  # the C that it was compared with
    count: int
    #: msgpack of ``[equal_before, L's entry, C's entry]`` as a merge of L, C and C yields them.
    _differences: bytes
    _sizes: array[int]
    _mtimes_ns: array[int]  # a time may lie before 1970
    _ctimes_ns: array[int]
    _inodes: array[int]

    @classmethod
    def read(cls, stretches: Iterable[Stretch], cache: Manifest, tick: Callable[[int], None]) -> LocalTree:
        """Run the scan to its end; ``tick`` is told the number of entries so far, now and then."""
        comparison = _Comparison(cache)
        columns = array("Q"), array("q"), array("q"), array("Q")
        count = told = 0
        for stretch in stretches:
            comparison.add(stretch)
            for column, numbers in zip(columns, stretch[4:], strict=True):
                column.extend(numbers)
            count += len(stretch.paths)
            if count - told >= _TELL_EVERY:
                told = count
                tick(count)
        tick(count)
        return cls(cache, count, comparison.end(), *columns)

    def sent(self) -> tuple[tuple[Any, ...], list[Buffer]]:
        """For another process on this machine: plain values, and what is large beside them."""
        columns = (self._sizes, self._mtimes_ns, self._ctimes_ns, self._inodes)
        parts: list[Buffer] = [self._differences, *(memoryview(column).cast("B") for column in columns)]
        return (self.cache.digest, self.count, *map(len, parts)), parts

    @classmethod
    def received(cls, head: Sequence[Any], read: Callable[[int], bytes], cache: Manifest) -> LocalTree:
        """What :meth:`sent` gave. EOFError when ``read`` has too little, ValueError when C is another."""
        digest, count, *lengths = head
        parts = []
        for length in lengths:
            part = read(length)
            if len(part) != length:
                raise EOFError
            parts.append(part)
        if digest != cache.digest:
            raise ValueError("it was compared with another C")
        columns = array("Q"), array("q"), array("q"), array("Q")
        for column, part in zip(columns, parts[1:], strict=True):
            column.frombytes(part)
        return cls(cache, count, parts[0], *columns)

    def __len__(self) -> int:
        return self.count

    def differences(self) -> Iterator[Difference]:
        """What a merge of L, C and C yields (:func:`dsg_client.core.merge.differences`)."""
        for equal, local, known in self._rows():
            before = known and Entry._make(known)
            yield Difference(equal, local and Entry._make(local), before, before)

    def _rows(self) -> Iterator[tuple[int, Row | None, Row | None]]:
        return iter(
            msgpack.Unpacker(
                io.BytesIO(self._differences), use_list=False, read_size=_READ_BYTES, max_buffer_size=0
            )
        )

    def __iter__(self) -> Iterator[Entry]:
        known = self.cache.rows()
        numbers = zip(self._sizes, self._mtimes_ns, strict=True)
        for equal, local, replaced in self._rows():
            # In this order: the one that may end is asked first.
            for row, (size, mtime_ns) in zip(islice(known, equal), numbers, strict=False):
                if row[1] == FILE:
                    yield _new(Entry, (*row[:4], size, mtime_ns, "", 0))
                else:
                    yield _new(Entry, (*row[:4], 0, 0, "", 0))
            if replaced is not None:
                next(known)
            if local is not None:
                next(numbers)
                yield Entry._make(local)

    def expected(self, paths: Collection[str]) -> dict[str, Expected]:
        """What stood at each of ``paths``; a path that L did not have is left out."""
        wanted = set(paths)
        found: dict[str, Expected] = {}
        number = -1
        for equal, local, _, _ in self.differences() if wanted else ():
            number += equal
            if local is not None:
                number += 1
                if local.path in wanted:
                    found[local.path] = self._expected(local, number)
        wanted -= found.keys()
        if wanted:
            for number, row in self._as_in_cache():
                if row[0] in wanted:
                    found[row[0]] = self._expected(Entry._make(row), number)
        return found

    def _as_in_cache(self) -> Iterator[tuple[int, Row]]:
        """C's row of each entry that is as there, with the entry's number."""
        known = self.cache.rows()
        number = 0
        for equal, local, replaced in self._rows():
            yield from enumerate(islice(known, equal), number)
            number += equal + (local is not None)
            if replaced is not None:
                next(known)

    def _expected(self, entry: Entry, number: int) -> Expected:
        link = entry.kind == LINK
        return Expected(
            kind=Kind.LINK if link else Kind.FILE,
            size=self._sizes[number],
            mtime_ns=self._mtimes_ns[number],
            ctime_ns=self._ctimes_ns[number],
            inode=self._inodes[number],
            target=entry.content.decode() if link else "",
        )


class _Comparison:
    """A merge of C with what is added, in canonical order, bit by bit.

    Nearly all of a tree is as it was: stretches of it are compared column by column.
    """

    def __init__(self, cache: Manifest) -> None:
        self._rest = cache.rows()
        self._ahead: deque[Row] = deque()  # C's next rows, read already
        self._equal = 0
        self._floor = ""  # nothing that comes may stand before that
        self._packer = msgpack.Packer(autoreset=False)

    def add(self, stretch: Stretch) -> None:
        """The next of L. InternalError when either is out of order: what comes late looks deleted."""
        ahead, count = self._ahead, len(stretch.paths)
        if len(ahead) < count:
            ahead.extend(islice(self._rest, count - len(ahead)))
        if len(ahead) == count > 1 and _all_equal(stretch, ahead):
            self._equal += count
            self._floor = sort_key(stretch.paths[-1])
            ahead.clear()
            return
        for entry in stretch.entries():
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        key = self._key(entry[0])
        known = self._known()
        while known is not None and known[0] != entry[0] and self._key(known[0]) < key:
            self._note(None, self._ahead.popleft())
            self._floor = sort_key(known[0])
            known = self._known()
        if known is None or known[0] != entry[0]:
            self._note(entry, None)
        else:
            self._ahead.popleft()
            if known[1:4] == entry[1:4]:
                self._equal += 1
            else:
                self._note(entry, known)
        self._floor = key

    def end(self) -> bytes:
        """All differences, encoded."""
        while (known := self._known()) is not None:
            key = self._key(known[0])
            self._note(None, self._ahead.popleft())
            self._floor = key
        self._note(None, None)
        return bytes(self._packer.getbuffer())

    def _known(self) -> Row | None:
        """C's next row."""
        if not self._ahead:
            self._ahead.extend(islice(self._rest, 1))
        return self._ahead[0] if self._ahead else None

    def _key(self, path: str) -> str:
        key = sort_key(path)
        if key <= self._floor:
            raise InternalError(f"the entries of a tree are not in order at {escape(path)}")
        return key

    def _note(self, local: Entry | None, known: Row | None) -> None:
        self._packer.pack((self._equal, local, known))
        self._equal = 0


def _all_equal(stretch: Stretch, rows: Collection[Row]) -> bool:
    paths, kinds, contents, executables, *_ = map(list, zip(*rows, strict=True))
    return (
        paths == stretch.paths
        and contents == stretch.contents
        and executables == stretch.executables
        and set(kinds) == {stretch.kind}
    )

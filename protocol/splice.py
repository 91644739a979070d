"""Manifests with changes put in: what stays is copied as it is encoded, and nothing of it made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgpack

from protocol.codec import Buffer
from protocol.errors import InternalError
from protocol.manifest import Entry, Manifest, Row
from protocol.paths import escape, sort_key

__all__ = ["PART_BYTES", "Ahead", "Parts", "splice"]

PART_BYTES = 1 << 19
_LONG_BYTES = 1 << 16
_LEAP_BYTES = 1 << 16
_ENTRY = b"\x98"  # how an entry begins: an array of 8
_CLOSE = 16  # entries that are looked at one by one; what is further away is come to by strides
_STRIDE = 32
_MISSES = 3  # leaps in vain, after which nearly all changes are taken for new names


def splice(base: Manifest, edits: Iterable[tuple[str, Entry | None, Entry | None]]) -> Manifest:
    """``base`` with edits put in: (path, what stands there, what shall), in canonical order.

    InternalError when something else stands there: these are not the entries
    that the edits were made for. That the result is a possible tree is the
    caller's care.
    """
    ahead = Ahead(base)
    parts = Parts()
    pack = msgpack.Packer().pack
    count = len(base)
    for path, before, after in edits:
        passed, standing = ahead.go_to(path)
        if standing != before:
            raise InternalError(f"{escape(path)} is not in the tree as it was when the plan was made")
        parts.add(passed)
        count += (after is not None) - (before is not None)
        if after is not None:
            parts.add(pack(after))
    parts.add(ahead.rest())
    return Manifest.from_parts(base.algorithm, count, parts.end())


class Ahead:
    """A walk over a base's entries, to the paths of ascending edits, that decodes few of them.

    ``number``: of the next entry.
    """

    def __init__(self, base: Manifest) -> None:
        self.number = 0
        self._base = base
        self._encoded = base.to_bytes()
        self._view = memoryview(self._encoded)
        self._rows, self._first = base.unpacker()
        self._from = self._first  # where the unpacker began
        self._at = self._first  # where the next entry begins
        self._next: Row | None = None  # it, once it was decoded; and where it ends
        self._end = self._first
        self._asked = 0
        self._missed = 0  # leaps, one after the other

    def go_to(self, path: str) -> tuple[memoryview, Entry | None]:
        """The encoding of the entries passed on the way to ``path``, and its own entry, passed then, too."""
        begin = self._at
        self._asked += 1
        key = sort_key(path)
        found = None
        walked = 0
        while (row := self._peek()) is not None:
            if row[0] == path:
                found = Entry._make(row)
                break
            if sort_key(row[0]) > key:
                break
            self._pass()
            walked += 1
            if walked == 1:
                self._leap(path)
            elif walked == _CLOSE:
                self._stride(key)
        passed = self._view[begin : self._at]
        if found is not None:
            self._pass()
        return passed, found

    def rest(self) -> memoryview:
        """The encoding of all that was not passed."""
        return self._view[self._at :]

    def _peek(self) -> Row | None:
        if self._next is None and self.number < len(self._base):
            self._next = self._rows.unpack()
            self._end = self._from + self._rows.tell()
        return self._next

    def _pass(self) -> None:
        self._at = self._end
        self._next = None
        self.number += 1

    def _leap(self, path: str) -> None:
        """Go to the entry of ``path`` if it is not far, by what its encoding begins with: that takes no time.

        Those bytes may as well stand within another entry, in a link's target:
        only that they begin an entry tells that they are this one.
        """
        if self._missed > _MISSES and self._asked % _STRIDE:
            return
        far = max(_LEAP_BYTES, 4 * (self._at - self._first) // self._asked)
        at = self._encoded.find(_ENTRY + msgpack.packb(path), self._at, self._at + far)
        if at < 0:
            self._missed += 1
            return
        self._missed = 0
        skip, tell, passed = self._rows.skip, self._rows.tell, 0
        while self._from + tell() < at:
            skip()
            passed += 1
        if self._from + tell() == at:
            self._at = at
            self.number += passed
        else:
            self._rows, self._from = self._base.unpacker(self._at)

    def _stride(self, key: str) -> None:
        """Go on by strides, decoding the last entry of each, as long as that is not behind ``key``."""
        rows = self._rows
        while self.number + _STRIDE < len(self._base):
            for _ in range(_STRIDE - (self._next is not None)):
                rows.skip()
            at = self._from + rows.tell()
            row = rows.unpack()
            if sort_key(row[0]) > key:
                self._rows, self._from = self._base.unpacker(self._at)
                self._next = None
                return
            self._at, self._next, self._end = at, row, self._from + rows.tell()
            self.number += _STRIDE


class Parts:
    """Encoded entries put together: what is short is copied, what is long stays where it lies."""

    def __init__(self, on_part: Callable[[Buffer], None] = lambda _: None) -> None:
        """``on_part`` is given each part as soon as it is done."""
        self._on_part = on_part
        self._parts: list[Buffer] = []
        self._waiting = bytearray()

    def add(self, encoded: Buffer) -> None:
        if len(encoded) < _LONG_BYTES:
            self._waiting += encoded
            if len(self._waiting) < PART_BYTES:
                return
            encoded = b""
        self._finish_waiting()
        if encoded:
            self._parts.append(encoded)
            self._on_part(encoded)

    def end(self) -> list[Buffer]:
        """All parts; each ends with an entry."""
        self._finish_waiting()
        return self._parts

    def _finish_waiting(self) -> None:
        if self._waiting:
            self._parts.append(self._waiting)
            self._on_part(self._waiting)
            self._waiting = bytearray()

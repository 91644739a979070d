"""Manifests with changes put in: what stays is copied as it is encoded, and nothing of it made anew."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import islice

import msgpack

from protocol.codec import Buffer
from protocol.errors import InternalError
from protocol.manifest import FILE, Entry, Manifest, Row
from protocol.paths import escape, sort_key

__all__ = ["PART_BYTES", "Ahead", "Parts", "splice"]

PART_BYTES = 1 << 19
_LONG_BYTES = 1 << 16
_STRETCH = 1024  # entries


def splice(base: Manifest, edits: Iterable[tuple[str, Entry | None, Entry | None]]) -> Manifest:
    """``base`` with edits put in: (path, what stands there, what shall), in canonical order.

    InternalError when something else stands there: these are not the entries
    that the edits were made for. That the result is a possible tree is the
    caller's care.
    """
    ahead = Ahead(base)
    take = base.taker()
    parts = Parts()
    pack = msgpack.Packer().pack
    taken = 0
    count = len(base)
    for path, before, after in edits:
        at, standing = ahead.find(path)
        if standing != before:
            raise InternalError(f"{escape(path)} is not in the tree as it was when the plan was made")
        if at > taken:
            parts.add(take(taken, at))
        taken = at + (before is not None)
        count += (after is not None) - (before is not None)
        if after is not None:
            parts.add(pack(after))
    parts.add(take(taken, len(base)))
    return Manifest.from_parts(base.algorithm, count, parts.end())


class Ahead:
    """A base's entries, decoded a stretch at a time, to find in them the paths of ascending changes.

    ``size``: bytes of the files in all stretches so far.
    """

    def __init__(self, base: Manifest) -> None:
        self.size = 0
        self._rows = base.rows()
        self._stretch: list[Row] = []
        self._first = self._at = 0  # the number of the stretch's first entry; a place in the stretch

    def find(self, path: str) -> tuple[int, Entry | None]:
        """The number of the first entry that does not stand before ``path``, and the entry of ``path``."""
        while True:
            if self._at < len(self._stretch):
                if self._stretch[self._at][0] != path:
                    key = sort_key(path)
                    if sort_key(self._stretch[-1][0]) < key:
                        self._at = len(self._stretch)
                        continue
                    self._at = bisect_left(self._stretch, key, self._at, key=_sort_key_of)
                here = self._stretch[self._at]
                number = self._first + self._at
                if here[0] != path:
                    return number, None
                self._at += 1
                return number, Entry._make(here)
            if not self._next_stretch():
                return self._first, None

    def go_to_end(self) -> None:
        while self._next_stretch():
            pass

    def _next_stretch(self) -> bool:
        self._first += len(self._stretch)
        self._at = 0
        self._stretch = list(islice(self._rows, _STRETCH))
        self.size += sum([row[4] for row in self._stretch if row[1] == FILE])
        return bool(self._stretch)


def _sort_key_of(row: Row) -> str:
    return sort_key(row[0])


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

"""Streaming merges of sorted entries: where three trees differ, and what a tree keeps beside another's.

Everything here takes entries in canonical order (:func:`protocol.paths.sort_key`),
reads each stream once and holds a few entries at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

from protocol.errors import InternalError
from protocol.manifest import Entry
from protocol.paths import escape, sort_key

__all__ = ["Difference", "Edit", "differences", "kept_beside"]


class Difference(NamedTuple):
    """A path whose three versions are not all there and the same.

    ``equal_before`` counts the paths between the previous difference and this
    one at which all three are the same.
    """

    equal_before: int
    local: Entry | None
    cache: Entry | None
    remote: Entry | None


class Edit(NamedTuple):
    """One change of a tree: ``after`` takes the place of ``before`` at ``path``; None is absence."""

    path: str
    before: Entry | None
    after: Entry | None


def differences(
    local: Iterable[Entry], cache: Iterable[Entry], remote: Iterable[Entry]
) -> Iterator[Difference]:
    """Merge three trees and yield where they are not all the same, in canonical order.

    The last item yielded has no entry at all; it carries the count of equal
    paths at the end. InternalError when a stream is not in strict canonical
    order: going on would take an entry that comes late for a deleted one.
    """
    streams = iter(local), iter(cache), iter(remote)
    next_local, next_cache, next_remote = streams
    end: Any = ()
    equal = 0
    last: Any = ()
    while True:
        # Nearly all of a tree is the same everywhere, so that this loop is where the time goes:
        # it compares fields in place and makes no object. Order needs no check here, since
        # nothing is concluded from it while the three walk together.
        for a, b, c in zip_longest(*streams, fillvalue=end):
            if (
                a
                and b
                and c
                and a[0] == b[0] == c[0]
                and a[2] == b[2] == c[2]
                and a[3] == b[3] == c[3]
                and a[1] == b[1] == c[1]
            ):
                equal += 1
                last = a
            else:
                break
        else:
            yield Difference(equal, None, None, None)
            return

        floor = sort_key(last[0]) if last else None
        a_key, b_key, c_key = _key(a, floor), _key(b, floor), _key(c, floor)
        while True:
            key = a_key
            if key is None or (b_key is not None and b_key < key):
                key = b_key
            if key is None or (c_key is not None and c_key < key):
                key = c_key
            if key is None:
                break
            in_a, in_b, in_c = a_key == key, b_key == key, c_key == key
            if in_a and in_b and in_c and a[1:4] == b[1:4] == c[1:4]:
                equal += 1
            else:
                yield Difference(equal, a if in_a else None, b if in_b else None, c if in_c else None)
                equal = 0
            last = a if in_a else b if in_b else c
            if (in_a or not a) and (in_b or not b) and (in_c or not c):
                break  # the three are level again
            if in_a:
                a = next(next_local, end)
                a_key = _key(a, key)
            if in_b:
                b = next(next_cache, end)
                b_key = _key(b, key)
            if in_c:
                c = next(next_remote, end)
                c_key = _key(c, key)


def _key(entry: Any, floor: str | None) -> str | None:
    if not entry:
        return None
    key = sort_key(entry[0])
    if floor is not None and key <= floor:
        raise InternalError(f"the entries of a tree are not in order at {escape(entry[0])}")
    return key


def kept_beside(entries: Iterable[Entry], kept: Iterable[Entry]) -> Iterator[Entry]:
    """``entries`` with ``kept`` put in, a kept one winning over what cannot stand beside it.

    Both in canonical order; ``kept`` is a possible tree by itself. An entry
    that has the path of a kept one, a kept one's folder as its path, or a kept
    one's path as its folder, is left out.
    """
    pending = iter(kept)
    held = next(pending, None)
    inside = ""  # the folder that a kept entry's path would be
    for entry in entries:
        path = entry[0]
        while held is not None and sort_key(held[0]) < sort_key(path):
            inside = held[0] + "/"
            yield held
            held = next(pending, None)
        if inside and path.startswith(inside):
            continue
        if held is not None and (held[0] == path or held[0].startswith(path + "/")):
            continue
        yield entry
    while held is not None:
        yield held
        held = next(pending, None)

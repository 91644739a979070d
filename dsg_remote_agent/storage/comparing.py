"""The live tree beside manifest and index: one walk over both, which tells each difference to a taker."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from dsg_remote_agent.storage.livetree import Part, live_runs
from dsg_remote_agent.storage.statindex import UNKNOWN, StatIndex
from protocol.manifest import Manifest, Row
from protocol.paths import sort_key
from protocol.tree.fs import GLANCE_NAMES, TreeFS

__all__ = ["Known", "Taker", "compare", "is_same"]

_NEAR = 2 * GLANCE_NAMES  # entries


def compare(
    tree: TreeFS, known: Known, outcome: Taker, tick: Callable[[], None], part: Part | None = None
) -> None:
    """Walk the tree and what is known of it side by side; ``known`` stands where the part begins."""
    for prefix, names, numbers in live_runs(tree, part):
        tick()
        count = len(names)
        known.fill(count)
        rows = known.numbers[:count]
        # Nearly every file passes here and is done with.
        if (
            rows == numbers
            and [row[0] for row in known.rows[:count]] == [prefix + name for name in names]
            and UNKNOWN not in rows
        ):
            known.drop(count)
            continue
        for name, live in zip(names, numbers, strict=True):
            path = prefix + name
            key = sort_key(path)
            while known.fill(1) and known.rows[0][0] != path and sort_key(known.rows[0][0]) < key:
                outcome.deleted(known)
            if known.rows and known.rows[0][0] == path:
                outcome.both(known, live)
            else:
                outcome.added(path, live)
    end = part.key if part is not None and not part.beyond else None
    while known.fill(1) and (end is None or sort_key(known.rows[0][0]) < end):
        tick()
        outcome.deleted(known)


def is_same(
    tree: TreeFS, manifest: Manifest, index: StatIndex, part: Part, near: int, tick: Callable[[], None]
) -> bool:
    """Whether everything in a part that goes on to the end is as the index knows it.

    ``near``: the number of an entry not far behind the part's beginning.
    """
    first = max(0, near - _NEAR)
    if sort_key(manifest.row(first)[0]) >= part.key:
        first = 0
    known = Known(manifest, index, first)
    known.drop_before(part.key)
    try:
        compare(tree, known, _Refusal(), tick, part)
    except _DiffersError:
        return False
    return True


class Taker(Protocol):
    """Takes what differs or must be looked at closely, one path at a time."""

    def added(self, path: str, live: tuple[int, ...]) -> None: ...

    def deleted(self, known: Known) -> None: ...

    def both(self, known: Known, live: tuple[int, ...]) -> None: ...


class _DiffersError(Exception):
    """Something is not as it is known."""


class _Refusal:
    """Has enough of the first difference."""

    def added(self, path: str, live: tuple[int, ...]) -> None:
        if live:
            raise _DiffersError

    def deleted(self, known: Known) -> None:
        raise _DiffersError

    def both(self, known: Known, live: tuple[int, ...]) -> None:
        if known.numbers[0] != live or not live[1]:
            raise _DiffersError
        known.drop(1)


class Known:
    """Manifest and index, read as far as they are compared: lists of what comes next."""

    def __init__(self, manifest: Manifest, index: StatIndex, first: int = 0) -> None:
        self._more_rows = manifest.rows(first)
        self._more_numbers = index.numbers(first)
        self.at = first  # the number of the next entry
        self.rows: list[Row] = []
        self.numbers: list[tuple[int, ...]] = []

    def fill(self, count: int) -> bool:
        """Read on to hold ``count``; False when there are none left at all."""
        missing = count - len(self.rows)
        if missing > 0:
            self.rows += islice(self._more_rows, missing)
            self.numbers += islice(self._more_numbers, missing)
        return bool(self.rows)

    def drop(self, count: int) -> None:
        self.at += count
        del self.rows[:count], self.numbers[:count]

    def drop_before(self, key: str) -> None:
        """Go on to the first entry whose key is not less than ``key``."""
        while self.fill(GLANCE_NAMES) and sort_key(self.rows[-1][0]) < key:
            self.drop(len(self.rows))
        self.drop(bisect_left(self.rows, key, key=lambda row: sort_key(row[0])))

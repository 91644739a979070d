"""Where L differs from C, worked out where L was looked at, so that a plan need not go through both again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import tee
from typing import Any, cast

from dsg_client.core.merge import Difference, differences
from protocol.manifest import Entry, Manifest, Row
from protocol.value import Value

__all__ = ["Since"]

_MOST = 10_000  # with more, sending them costs what it saves


class Since(Value):
    """The differences of L from one C; as a merge of L, C and C yields them."""

    cache: str  # the digest of C's manifest
    differences: tuple[Difference, ...]
    #: Of each that L has: its number in L, and itself.
    places: dict[str, tuple[int, Entry]]

    @classmethod
    def of(cls, local: Manifest, cache: Manifest) -> Since | None:
        """Compare; None when there are too many to be worth it."""
        number = -1

        def counted() -> Iterator[Row]:
            nonlocal number
            for number, row in enumerate(local.rows()):  # noqa: B007  read below
                yield row

        found: list[Difference] = []
        places: dict[str, tuple[int, Entry]] = {}
        # Rows, and each but once: nearly all are the same, and nobody wants them as entries.
        rows = cast("tuple[Iterator[Entry], ...]", (counted(), *tee(cache.rows())))
        for equal, a, b, _ in differences(*rows):
            entry, known = a and Entry._make(a), b and Entry._make(b)
            found.append(Difference(equal, entry, known, known))
            if entry is not None:
                places[entry.path] = number, entry
            if len(found) > _MOST:
                return None
        return cls(cache.digest, tuple(found), places)

    def sent(self) -> tuple[Any, ...]:
        """For another process: plain values."""
        rows = []
        for equal, a, b, _ in self.differences:
            number = self.places[a.path][0] if a is not None else -1
            rows.append((equal, number, a and tuple(a), b and tuple(b)))
        return self.cache, rows

    @classmethod
    def received(cls, told: Sequence[Any]) -> Since:
        """What :meth:`sent` gave."""
        cache, rows = told
        found = []
        places: dict[str, tuple[int, Entry]] = {}
        for equal, number, a, b in rows:
            entry, known = a and Entry._make(a), b and Entry._make(b)
            found.append(Difference(equal, entry, known, known))
            if entry is not None:
                places[entry.path] = number, entry
        return cls(cache, tuple(found), places)

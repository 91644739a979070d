"""Which snapshots of a repository still have their files, which of them stay whatever a policy says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from dsg_remote_agent.storage.retention import Dated, choose
from protocol.errors import IntegrityError, UsageError
from protocol.records import SnapshotRecord
from protocol.value import Value

__all__ = ["PROTECTED", "Fate", "Stock", "Verdict", "missing", "plan", "required"]

PROTECTED = "protected"  # by ``dsg protect``


class Verdict(Enum):
    """What a policy comes to for one snapshot."""

    KEEP = "keep"
    PRUNE = "prune"
    LEFT = "left"  # to be pruned, and in use just now


class Fate(NamedTuple):
    """One snapshot and what becomes of it; ``why`` it is kept or left."""

    record: SnapshotRecord
    verdict: Verdict
    why: str


class Stock(Value):
    """The numbers of the snapshots whose files are ``present``, and why some of them must stay."""

    present: frozenset[int]
    reasons: Mapping[int, str]

    def kept(self, seq: int) -> str | None:
        """Why no policy may prune snapshot ``seq``; None when one may."""
        return self.reasons.get(seq)

    def nearest(self, seq: int) -> list[int]:
        """The present ones on both sides of one that is not, as far as there are any."""
        below = [one for one in self.present if one < seq]
        above = [one for one in self.present if one > seq]
        return [*([max(below)] if below else []), *([min(above)] if above else [])]


def plan(records: Iterable[SnapshotRecord], stock: Stock, rules: Mapping[str, int], head: int) -> list[Fate]:
    """What ``rules`` (see :mod:`retention`) mean for each present snapshot, newest first.

    The head stays, and what :meth:`Stock.kept` names; both count for the rules
    like any other.
    """
    found = sorted((r for r in records if r.seq in stock.present), key=lambda r: r.seq, reverse=True)
    chosen = choose([Dated(record.seq, record.time) for record in found], rules)
    fates = []
    for record in found:
        reasons = ["head"] if record.seq == head else []
        reasons += [why] if (why := stock.kept(record.seq)) else []
        reasons += chosen.get(record.seq, [])
        fates.append(Fate(record, Verdict.KEEP if reasons else Verdict.PRUNE, ", ".join(reasons)))
    return fates


def _why_missing(shown: str, seq: int, newest: int, stock: Stock) -> tuple[str, str] | None:
    if seq > newest:
        return (
            f"{shown} has no snapshot s{seq}; its newest is s{newest}",
            "was the repository restored from an older copy?",
        )
    if seq in stock.present:
        return None
    near = " and ".join(f"s{one}" for one in stock.nearest(seq))
    return (
        f"{shown} has no snapshot s{seq} any more: its record remains, its files were pruned",
        f"the nearest that are kept: {near}",
    )


def missing(shown: str, seq: int, newest: int, stock: Stock) -> IntegrityError | None:
    """The error for who wants to read snapshot ``seq``; None when it is there."""
    why = _why_missing(shown, seq, newest, stock)
    return why and IntegrityError(why[0], hint=why[1], facts={"seq": seq, "nearest": stock.nearest(seq)})


def required(shown: str, seq: int, newest: int, stock: Stock) -> None:
    """UsageError unless snapshot ``seq``, which somebody named, is there."""
    why = _why_missing(shown, seq, newest, stock)
    if why is not None:
        hint = "'dsg log' lists them" if seq > newest else why[1]
        raise UsageError(why[0], hint=hint, facts={"seq": seq, "nearest": stock.nearest(seq)})

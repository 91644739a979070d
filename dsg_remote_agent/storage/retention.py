"""Which snapshots a policy keeps: pure, and the same for every backend.

The rules are those of restic and borg: each looks at all snapshots for itself,
and what any of them keeps is kept. ``last`` keeps the newest N; ``hourly`` to
``monthly`` keep the newest snapshot of each of the newest N hours, days, weeks
(from Monday) and months in which there is one. A rule that finds fewer periods
than it asks for keeps the oldest snapshot too, as both of them do: a history
that is younger than its policy keeps its beginning. To choose once more from
what was kept chooses the same.

Times are those of the records: the server's clock when the snapshot was made;
periods begin by UTC, wherever server and client are. Newest is what has the
highest number, also when that clock was put back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from protocol.errors import UsageError

__all__ = ["RULES", "Dated", "check_rules", "choose"]

_DAY = 86_400
_LAST_SECOND = 253_402_300_799  # of the year 9999: no calendar goes further


class Dated(NamedTuple):
    """A snapshot's number and its record's time, in seconds since 1970."""

    seq: int
    time: int


def _month(seconds: int) -> int:
    moment = time.gmtime(seconds)
    return moment.tm_year * 12 + moment.tm_mon


# The rules by name, and the number of the period in which a second lies; no period for ``last``.
RULES: Mapping[str, Callable[[int], int] | None] = {
    "last": None,
    "hourly": lambda seconds: seconds // 3600,
    "daily": lambda seconds: seconds // _DAY,
    "weekly": lambda seconds: (seconds // _DAY + 3) // 7,  # 1970 began on a Thursday
    "monthly": _month,
}


def check_rules(rules: Mapping[str, int]) -> None:
    """UsageError when no rule keeps anything: that would be to destroy all history."""
    if not any(rules.get(name, 0) > 0 for name in RULES):
        raise UsageError(
            "no rule says what to keep",
            hint="give at least one of " + ", ".join(f"--keep-{name}" for name in RULES),
        )


def choose(snapshots: Sequence[Dated], rules: Mapping[str, int]) -> dict[int, list[str]]:
    """The numbers that ``rules`` (name to N) keep, each with the names of the rules that keep it.

    ``oldest`` stands for a rule that found fewer periods than it asks for.
    """
    newest_first = sorted(snapshots, reverse=True)
    kept: dict[int, list[str]] = {}
    for name, period in RULES.items():
        wanted = rules.get(name, 0)
        seen: set[int] = set()
        for one in newest_first:
            if len(seen) == wanted:
                break
            number = one.seq if period is None else period(min(one.time, _LAST_SECOND))
            if number not in seen:
                seen.add(number)
                kept.setdefault(one.seq, []).append(name)
        if newest_first and len(seen) < wanted:
            reasons = kept.setdefault(newest_first[-1].seq, [])
            if not reasons:
                reasons.append("oldest")
    return kept

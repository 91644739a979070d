"""``prune`` and ``protect``: what of the history on the server is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsg_client.sync.events import Emit, Phase, PhaseStarted
from dsg_client.sync.site import Site
from dsg_client.sync.survey import check_repository
from protocol.errors import UsageError
from protocol.value import Value

__all__ = ["Pruning", "parse_snapshot", "protect", "prune"]

_MOST_DIGITS = 12


class Pruning(Value):
    """What a prune did, or would do; the first 1,000 snapshots, newest first, and the counts of all."""

    snapshots: list[dict[str, Any]]
    kept: int
    pruned: int
    left: int

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return self.to_map()


async def prune(site: Site, rules: Mapping[str, int], *, dry_run: bool, emit: Emit) -> Pruning:
    """Remove the files of the snapshots that no rule keeps, on the server."""
    site.emit = emit
    cache = site.cache()
    emit(PhaseStarted(Phase.CONNECT))
    async with site.connect() as repo:
        check_repository(repo, cache, str(site.address))
        found = await repo.prune(rules, dry_run=dry_run)
    rows = [
        {"seq": one.seq, "time": one.time, "user": one.user, "verdict": one.verdict, "why": one.why}
        for one in found.snapshots
    ]
    return Pruning(rows, found.kept, found.pruned, found.left)


async def protect(site: Site, seq: int, *, on: bool, emit: Emit) -> None:
    """Have no prune remove a snapshot, or let them again."""
    site.emit = emit
    cache = site.cache()
    emit(PhaseStarted(Phase.CONNECT))
    async with site.connect() as repo:
        check_repository(repo, cache, str(site.address))
        await repo.protect(seq, on=on)


def parse_snapshot(text: str) -> int:
    """N of ``sN`` or ``N``; UsageError when it is neither."""
    digits = text.removeprefix("s")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS):
        raise UsageError(f"{text!r} is no snapshot", hint="write its number, as in s12; 'dsg log' lists them")
    return int(digits)

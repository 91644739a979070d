"""Retention on ZFS: a snapshot is pruned by ``zfs destroy`` of it alone, and protected by ``zfs hold``.

Only snapshots whose name and number are those of a record below the head are
ever touched, wherever housekeeping has them by now. Nobody's hold is released
but our own; what is held by anybody, or stands in use, stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dsg_remote_agent.storage.stock import PROTECTED, Fate, Stock, Verdict
from dsg_remote_agent.storage.zfs.command import Answer, Trouble, failure
from dsg_remote_agent.storage.zfs.names import snapshot, snapshot_number
from dsg_remote_agent.storage.zfs.site import Site, required_head
from dsg_remote_agent.storage.zfs.survey import Survey
from protocol.errors import RemoteStorageError
from protocol.paths import escape

__all__ = ["TAG", "destroy_pruned", "list_snapshots", "protect", "stock_of"]

TAG = "dsg"
_TRIES = 5
_IN_USE = {
    Trouble.BUSY: "somebody uses it",
    Trouble.HAS_CHILDREN: "a clone stands on it",
    Trouble.TIMEOUT: "zfs destroy did not end in time",
}


class Listed(NamedTuple):
    """Where a snapshot is: its full name, and how many holds it has."""

    name: str
    holds: int


def list_snapshots(site: Site, survey: Survey) -> dict[int, Listed]:
    """The snapshots of the head and of the generations that it stands on, by number."""
    found: dict[int, Listed] = {}
    for _ in range(_TRIES):
        found = {}
        # A promotion moves snapshots towards the head: who lists the head last misses none of them.
        for generation in (*reversed(survey.ancestors()), survey.current()):
            found |= _list(site, generation.name)
        own = found.get(required_head(survey).seq)
        if own is not None and own.name.startswith(f"{survey.current().name}@"):
            break
        survey = site.survey()  # another sync has made a new head, which has them now
    return found


def _list(site: Site, dataset: str) -> dict[int, Listed]:
    words = ("list", "-H", "-d", "1", "-t", "snapshot", "-o", "name,userrefs", dataset)
    answer = site.zfs.run(*words)
    if answer.trouble is Trouble.MISSING:
        return {}  # destroyed since the survey
    if not answer.good:
        raise failure(answer, site.shown, "looking at the snapshots")
    found = {}
    for line in answer.out.splitlines():
        name, _, holds = line.partition("\t")
        number = snapshot_number(name, dataset)
        if number is not None:
            found[number] = Listed(name, int(holds) if holds.isdigit() else 0)
    return found


def stock_of(site: Site, survey: Survey, newest: int) -> Stock:
    """Which snapshots up to ``newest`` are there, and which somebody holds."""
    found = {seq: one for seq, one in list_snapshots(site, survey).items() if seq <= newest}
    reasons = {seq: _why_held(site, one) for seq, one in found.items() if one.holds}
    return Stock(frozenset([*found, newest]), reasons)


def _why_held(site: Site, one: Listed) -> str:
    answer = site.zfs.run("holds", "-H", one.name)
    tags = [line.split("\t")[1] for line in answer.out.splitlines() if line.count("\t") >= 2]
    if not answer.good or not tags:
        return "held"  # zfs-fuse counts holds, and cannot list them
    others = sorted(escape(tag) for tag in tags if tag != TAG)
    reasons = [PROTECTED] if TAG in tags else []
    return ", ".join(reasons + [f"held by {tag}" for tag in others[:3]])


def destroy_pruned(site: Site, fates: Iterable[Fate], lock: int) -> list[Fate]:
    """Destroy what is to be pruned, oldest first; the fates, with what is in use as left for another time."""
    after: dict[int, Fate] = {}
    going = {fate.record.seq: fate for fate in fates if fate.verdict is Verdict.PRUNE}
    for _ in range(_TRIES):
        if not going:
            break
        # Anew: housekeeping may be moving them towards the head meanwhile.
        for seq, one in sorted(list_snapshots(site, site.survey()).items()):
            if seq not in going:
                continue
            answer = site.zfs.run("destroy", one.name, lock=lock)
            if answer.good or answer.trouble is Trouble.MISSING:
                continue
            if answer.trouble not in _IN_USE:
                raise failure(answer, site.shown, f"destroying {one.name}")
            fate = going.pop(seq)
            after[seq] = fate._replace(verdict=Verdict.LEFT, why=_in_use(site, one, answer))
        there = list_snapshots(site, site.survey())
        going = {seq: fate for seq, fate in going.items() if seq in there}
    if going:
        raise RemoteStorageError(
            f"{len(going)} snapshots of {site.shown} keep moving between generations",
            hint="prune again when no sync runs",
            facts={"snapshots": sorted(going)},
        )
    return [after.get(fate.record.seq, fate) for fate in fates]


def _in_use(site: Site, one: Listed, answer: Answer) -> str:
    if answer.trouble is Trouble.BUSY:
        held = site.zfs.run("list", "-H", "-t", "snapshot", "-o", "userrefs", one.name).out.strip()
        if held not in ("", "0", "-"):
            return "it was held meanwhile"
    return _IN_USE[answer.trouble]


def protect(site: Site, seq: int, on: bool, lock: int) -> None:
    """Hold the snapshot, or release our hold; repeatable. RemoteStorageError when it cannot be."""
    word = "hold" if on else "release"
    for left in reversed(range(_TRIES)):
        one = list_snapshots(site, site.survey()).get(seq)
        if one is None:
            raise RemoteStorageError(
                f"{site.shown} has no {snapshot(seq)} any more", hint="somebody destroyed it just now"
            )
        answer = site.zfs.run(word, TAG, one.name, lock=lock)
        done = Trouble.EXISTS if on else Trouble.NO_TAG
        if answer.good or answer.trouble is done:
            break
        if answer.trouble is not Trouble.MISSING or not left:
            raise failure(answer, site.shown, f"zfs {word} of {one.name}")
    if not on and (held := list_snapshots(site, site.survey()).get(seq)) is not None and held.holds:
        raise RemoteStorageError(
            f"{held.name} is not protected by DSG any more, and still held by somebody else",
            hint=f"an administrator sees by whom: zfs holds {held.name}; a hold is released by its tag",
        )

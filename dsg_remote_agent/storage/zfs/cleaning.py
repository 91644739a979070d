"""Housekeeping: the head is promoted, and what it replaced is destroyed, by one plain ``destroy`` each.

All of it can be repeated. It needs no transaction's lock, as it only ever
touches generations older than a decided head, and has one of its own, so that
a command that hangs keeps nobody from syncing. Whatever is busy stays for
the next time; whatever holds something that no snapshot of ours holds stays
for good, and is reported.
"""

from __future__ import annotations

import time

from dsg_remote_agent.storage.outside import examine
from dsg_remote_agent.storage.statindex import StatIndex
from dsg_remote_agent.storage.zfs.command import Trouble
from dsg_remote_agent.storage.zfs.deciding import thaw
from dsg_remote_agent.storage.zfs.links import is_current
from dsg_remote_agent.storage.zfs.mounts import destroy, unmount
from dsg_remote_agent.storage.zfs.names import base_snapshot, snapshot
from dsg_remote_agent.storage.zfs.site import CLEANING_LOCK, Site, required_head
from dsg_remote_agent.storage.zfs.survey import Generation, Survey
from protocol.errors import DsgError

__all__ = ["clean", "destroy_readers", "own_snapshots"]

_LIMIT = 20.0  # seconds for all of it


def clean(site: Site) -> list[str]:
    """Promote the head and destroy what it replaced; notes on what had to stay and is somebody's.

    Never raises: what is not done now is done another time. Nothing is done
    when another process is at it.
    """
    notes: list[str] = []
    try:
        lock = site.outer.lock(CLEANING_LOCK)
        if lock is None:
            return []
        try:
            _clean(site, time.monotonic() + _LIMIT, lock.fileno(), notes)
        finally:
            lock.release()
    except (DsgError, OSError):
        pass
    return notes


def _clean(site: Site, deadline: float, lock: int, notes: list[str]) -> None:
    survey = site.survey()
    head = required_head(survey)
    if len(survey.generations) < 2 or not _promote(site, survey, deadline, lock):
        return
    if not is_current(site, head.generation):
        return  # people are still led to an older one
    for generation in site.survey().generations.values():
        if generation.number < head.generation and time.monotonic() < deadline:
            note = _destroy_older(site, generation, deadline, lock)
            if note:
                notes.append(note)
    _destroy_old_bases(site, survey.current(), lock)


def _destroy_old_bases(site: Site, current: Generation, lock: int) -> None:
    """Destroy what committed transactions took of heads that were written to.

    These snapshots came to the head by promotion. Each was needed only by the
    generation that it was taken of: one that is still there, as it is in use,
    is a clone of it by now, and keeps it until another time. That of a
    transaction which runs just now is left alone.
    """
    bases = [name for name in own_snapshots(site, current.name) if name.startswith(base_snapshot(""))]
    if not bases:
        return
    with site.view(current) as view:
        chain = view.place.chain
        committed = {base_snapshot(record.txid) for _, record in chain.parents(chain.head(), 0)}
    for name in bases:
        if name in committed:
            site.zfs.run("destroy", f"{current.name}@{name}", lock=lock)


def _promote(site: Site, survey: Survey, deadline: float, lock: int) -> bool:
    """Promote the head until it is nobody's clone; False when it is not yet."""
    current = survey.current()
    for _ in survey.ancestors():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        answer = site.zfs.run("promote", current.name, lock=lock, limit=left)
        if answer.trouble is Trouble.NO_ORIGIN:
            return True
        if not answer.good:
            return False
    return True


def own_snapshots(site: Site, dataset: str) -> list[str]:
    """The names, without the dataset's, of the snapshots of one dataset."""
    listed = site.zfs.must("list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", dataset, shown=site.shown)
    return [name.partition("@")[2] for name in listed.splitlines() if name.startswith(f"{dataset}@")]


def _destroy_older(site: Site, generation: Generation, deadline: float, lock: int) -> str:
    """Destroy a generation that the head replaced; a note when it must stay because of what is in it."""
    name = generation.name
    if not generation.origin:
        return ""  # not promoted past it yet: the head stands on it
    left = own_snapshots(site, name)
    if snapshot(generation.seq) in left:
        return ""  # it was prepared and never decided: recovery's to destroy, when nobody uses it
    if left:
        return f"{name} is kept: it has snapshots that are not DSG's ({', '.join(left[:3])})"
    kept = f"{name} is kept: somebody wrote to it after its snapshot; look at {generation.mountpoint}"
    if generation.holds_more and _differs(site, generation, deadline):
        return kept
    # Unmounting flushes what programs wrote to mapped memory only where it may be written.
    thaw(site, generation, lock)
    if unmount(site.zfs, name, lock=lock, limit=_left(deadline)) is not Trouble.NONE:
        site.zfs.run("set", "readonly=on", name, lock=lock)
        return ""
    # Only now nobody can write to it any more; what came since it was looked at must not be lost.
    again = _look_again(site, generation, lock)
    if again is None:
        return ""
    if (again.used, again.written) == (generation.used, generation.written):
        destroy(site.zfs, name, lock=lock, limit=_left(deadline), unmounted=True)
        return ""
    site.zfs.mounting("mount", name, lock=lock, limit=_left(deadline))
    return kept if _differs(site, again, deadline) else ""


def _look_again(site: Site, generation: Generation, lock: int) -> Generation | None:
    """The generation as it is now, with what was written up to its unmounting; None when it is gone."""
    if generation.written is None:
        # What such a ZFS tells of space is of its last transaction group. Changing a property ends one.
        site.zfs.run("set", "readonly=on", generation.name, lock=lock)
    return site.survey().generations.get(generation.number)


def _differs(site: Site, generation: Generation, deadline: float) -> bool:
    """Whether what was written is still there: a file that came and went leaves only a trace."""

    def tick() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError("it is looked at another time")

    with site.view(generation) as view:
        head = view.place.chain.head()
        manifest = view.place.manifest(head, head.seq)
        index = StatIndex.unknown(len(manifest))
        return bool(examine(view.tree, manifest, index, note=lambda _: None, tick=tick).outside)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def destroy_readers(site: Site, survey: Survey, lock: int) -> None:
    """Destroy the clones that readers made and did not live to destroy; one that is in use is busy."""
    for name in survey.readers:
        destroy(site.zfs, name, lock=lock)

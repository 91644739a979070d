"""Recovery: what a crash left is undone or finished. Repeatable from anywhere; needs the lock."""

from __future__ import annotations

from dsg_remote_agent.storage.chain import Chain
from dsg_remote_agent.storage.zfs.cleaning import clean, destroy_readers, own_snapshots
from dsg_remote_agent.storage.zfs.command import Trouble
from dsg_remote_agent.storage.zfs.deciding import thaw
from dsg_remote_agent.storage.zfs.holders import holders
from dsg_remote_agent.storage.zfs.links import is_current, mend_link
from dsg_remote_agent.storage.zfs.mounts import destroy
from dsg_remote_agent.storage.zfs.names import base_snapshot, snapshot
from dsg_remote_agent.storage.zfs.site import Site, required_head
from dsg_remote_agent.storage.zfs.survey import Generation, Survey
from protocol.errors import RemoteStorageError
from protocol.transaction import Step

__all__ = ["MOST_UNPROMOTED", "destroy_uncommitted", "refuse_too_many", "settle"]

MOST_UNPROMOTED = 16
_BASE = base_snapshot("")


def settle(site: Site, lock: int) -> tuple[list[str], Survey | None]:
    """Undo what was not decided, finish what was: mount, link, promote, clean.

    Notes on it, for people; and the survey, when there was nothing to do and so
    nothing has changed.
    """
    survey, view, _ = site.head(lock)
    with view:
        undecided = _undecided(survey, view.place.chain)
    notes = []
    for generation in undecided:
        why = destroy_uncommitted(site, generation, lock)
        if why:
            notes.append(f"{generation.name} of an unfinished transaction stays for now: {why}")
        else:
            notes.append(f"undid the unfinished transaction {generation.txid}")
    current = survey.current()
    if current.read_only:
        thaw(site, current, lock)
    if not is_current(site, current.number):
        notes.append(f"finished the committed transaction {required_head(survey).txid}")
        notes += mend_link(site, current.number)
        site.failpoints.reach(Step.REMOTE_APPLIED)
    destroy_readers(site, survey, lock)
    if len(survey.generations) - len(undecided) > 1:
        notes += clean(site)
        site.failpoints.reach(Step.REMOTE_PUBLISHED)
    if undecided or current.read_only:
        _destroy_bases(site, current, lock)
    untouched = len(survey.generations) == 1 and current.mounted and not current.read_only
    return notes, survey if untouched and not notes and not survey.readers else None


def _undecided(survey: Survey, chain: Chain) -> list[Generation]:
    """The generations that no committed transaction made: neither head nor in the chain of its records."""
    ancestors = {generation.number for generation in survey.ancestors()}
    suspects = [
        generation
        for number, generation in survey.generations.items()
        if generation.txid and number != required_head(survey).generation and number not in ancestors
    ]
    if not suspects:
        return []
    head = chain.head()
    lowest = min(generation.seq for generation in suspects)
    # By its number, too: nothing keeps a client from calling two transactions alike.
    made = {(record.txid, record.seq) for _, record in chain.parents(head, max(0, min(lowest, head.seq)))}
    return [generation for generation in suspects if (generation.txid, generation.seq) not in made]


def destroy_uncommitted(site: Site, generation: Generation, lock: int) -> str:
    """Destroy a generation of ours that was never decided; '' or why it stays, and what to do then.

    Then at least its snapshot is gone: it cannot be committed any more.
    """
    name, foreign = generation.name, []
    for left in own_snapshots(site, name):
        if left == snapshot(generation.seq):
            site.zfs.run("destroy", f"{name}@{left}", lock=lock)
        else:
            foreign.append(f"{name}@{left}")
    trouble = destroy(site.zfs, name, lock=lock)
    if trouble is Trouble.NONE:
        return ""
    if trouble is Trouble.HAS_CHILDREN:
        # As 'zfs snapshot -r' of an administrator makes: they are not DSG's to destroy.
        what = ", ".join(foreign[:3]) or f"see zfs list -r -t all {name}"
        return f"it has snapshots or datasets that are not DSG's ({what}); destroy them, then: dsg recover"
    return "it is in use" if trouble is Trouble.BUSY else f"it could not be destroyed ({trouble.value})"


def _destroy_bases(site: Site, current: Generation, lock: int) -> None:
    """Destroy the snapshots of a head that was written to, when no clone of a transaction needs them."""
    for left in own_snapshots(site, current.name):
        if left.startswith(_BASE):
            site.zfs.run("destroy", f"{current.name}@{left}", lock=lock)


def refuse_too_many(survey: Survey, shown: str) -> None:
    """RemoteStorageError, with who is in the way, when the head stands on as many generations as may be."""
    ancestors = survey.ancestors()
    if len(ancestors) < MOST_UNPROMOTED:
        return
    found = holders(g for g in survey.generations.values() if g.number != survey.current().number)
    who = "; in use by " + ", ".join(found[:5]) if found else ""
    raise RemoteStorageError(
        f"{shown} has {len(ancestors)} older generations that could not be promoted{who}",
        hint="end what uses an old snapshot ('zfs send', a program in .zfs/snapshot), then: dsg recover",
        facts={"holders": found, "generations": [generation.name for generation in ancestors]},
    )

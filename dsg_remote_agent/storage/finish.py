"""After the decision, and after a crash: apply, publish, finish; or undo.

Everything here is repeatable from any point at which the process may have
died, and needs the repository's exclusive lock.
"""

from __future__ import annotations

from collections.abc import Callable

from dsg_remote_agent.storage.layout import manifest_path
from dsg_remote_agent.storage.place import Place, staged_manifest
from protocol.errors import IntegrityError
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.transaction import Step
from protocol.tree.change import (
    TMP,
    Journal,
    JournalState,
    Unexpected,
    apply,
    discard_prepared,
    read_journal,
    sweep,
)
from protocol.tree.change import finish as finish_journal
from protocol.tree.fs import Stat, TreeFS
from protocol.value import Value

__all__ = ["Carried", "carry_out", "record_of", "settle"]

_LONGEST_PROBE = 600  # seconds


class Carried(Value):
    """What was carried out: notes on what was in the way, and how each path ``placed`` looked right after."""

    notes: list[str]
    placed: list[tuple[str, Stat]]


def settle(place: Place) -> list[str]:
    """Finish or undo what a crash left; notes on what was done, for people."""
    tree = place.tree
    notes: list[str] = []
    found = read_journal(tree)
    if found is not None:
        state, journal = found
        if state is JournalState.PREPARED:
            discard_prepared(tree)
            notes.append(f"undid the unfinished transaction {journal.txid}")
        else:
            if journal.root[1] != tree.stat("").inode:
                raise IntegrityError(
                    f"{place.shown} was copied while a sync was being carried out there",
                    hint="run 'dsg recover' against the original, then copy it again when no sync runs",
                )
            notes.append(f"finished the committed transaction {journal.txid}")
            notes += carry_out(place, journal).notes
    if sweep(tree, _Probes(tree, place.now)):
        notes.append("removed what unfinished transactions had left in staging")
    return notes


class _Probes:
    """Names in ``.dsg/tmp`` by which a reader is just trying out the file system: it has no lock.

    That takes it an instant: what is older is a dead reader's.
    """

    def __init__(self, tree: TreeFS, now: Callable[[], int]) -> None:
        self.tree = tree
        self.now = now

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or not name.startswith("probe-"):
            return False
        try:
            return self.now() - self.tree.stat(f"{TMP}/{name}").mtime_ns // 10**9 < _LONGEST_PROBE
        except FileNotFoundError:
            return False


def record_of(place: Place, journal: Journal) -> SnapshotRecord:
    """The record that a journal commits."""
    raw = journal.meta.get("record")
    if not isinstance(raw, bytes):
        raise IntegrityError(
            f"the journal of {place.shown} names no snapshot",
            hint="copy the repository's .dsg folder aside before anything else",
        )
    return SnapshotRecord.from_bytes(raw)


def carry_out(place: Place, journal: Journal, *, flushed: bool = False) -> Carried:
    """Apply a decided journal, publish its snapshot, remove the journal.

    As long as the journal stands all of it can be repeated; it goes when all
    of it is flushed. ``flushed``: the decision is known to be durable, as by
    whoever has just made it. OSError leaves the journal in place: the next
    holder of the lock goes on.
    """
    tree = place.tree
    record = record_of(place, journal)
    applied = apply(tree, journal, Unexpected.RESCUE, flushed=flushed)
    place.failpoints.reach(Step.REMOTE_APPLIED)
    _publish_manifest(place, record)
    place.chain.publish(record, durable=False)
    place.failpoints.reach(Step.REMOTE_PUBLISHED)
    saved = finish_journal(tree, journal, Unexpected.RESCUE)
    lost = [f"the new content of {escape(held.path)} was gone: {held.reason}" for held in applied.held]
    kept = [
        f"{escape(path)} on the server had been changed outside DSG meanwhile; it was kept as {escape(where)}"
        for path, where in (*applied.rescued, *saved)
    ]
    return Carried(lost + kept, applied.stats)


def _publish_manifest(place: Place, record: SnapshotRecord) -> None:
    tree = place.tree
    try:
        tree.move(staged_manifest(record.txid), manifest_path(record.seq))
    except FileNotFoundError:
        tree.stat(manifest_path(record.seq))  # moved before the crash

"""After the decision, and after a crash: apply, publish, finish; or undo.

Everything here is repeatable from any point at which the process may have
died, and needs the repository's exclusive lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsg_remote_agent.storage.layout import MANIFESTS, manifest_path, record_path
from dsg_remote_agent.storage.place import Place, RowsByPath, staged_manifest
from dsg_remote_agent.storage.statindex import (
    UNKNOWN,
    IndexRow,
    StatIndex,
    file_clock,
    let_clock_pass,
    row_of,
)
from protocol.errors import IntegrityError
from protocol.manifest import Manifest
from protocol.paths import escape, sort_key
from protocol.records import MAX_RECORD_BYTES, SnapshotRecord
from protocol.transaction import Step
from protocol.tree.actions import AREA
from protocol.tree.change import (
    Action,
    Journal,
    JournalState,
    Unexpected,
    apply,
    discard_prepared,
    read_journal,
    sweep,
)
from protocol.tree.change import finish as finish_journal

__all__ = ["carry_out", "record_of", "settle"]


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
            # The decision may have been read before it was durable.
            tree.flush_folder(AREA)
            notes.append(f"finished the committed transaction {journal.txid}")
            notes += carry_out(place, journal, None, {})
    if sweep(tree, _Probes()):
        notes.append("removed what unfinished transactions had left in staging")
    return notes


class _Probes:
    """Names in ``.dsg/tmp`` by which a reader is just trying out the file system: it has no lock."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.startswith("probe-")


def record_of(place: Place, journal: Journal) -> SnapshotRecord:
    """The record that a journal commits."""
    raw = journal.meta.get("record")
    if not isinstance(raw, bytes):
        raise IntegrityError(
            f"the journal of {place.shown} names no snapshot",
            hint="copy the repository's .dsg folder aside before anything else",
        )
    return SnapshotRecord.from_bytes(raw)


def carry_out(
    place: Place,
    journal: Journal,
    known: tuple[Manifest, StatIndex] | None,
    adopted: Mapping[str, IndexRow],
) -> list[str]:
    """Apply a decided journal, publish its snapshot, remove the journal; notes on what was found in the way.

    ``known``: the base's manifest and its settled index, when they are at hand;
    ``adopted``: rows of paths that were taken in as they are. OSError leaves
    the journal in place: the next holder of the lock goes on.
    """
    tree = place.tree
    record = record_of(place, journal)
    applied = apply(tree, journal, Unexpected.RESCUE)
    place.failpoints.reach(Step.REMOTE_APPLIED)
    _publish_manifest(place, record)
    _write_index(place, journal, record, known, adopted)
    place.chain.publish(record)
    place.failpoints.reach(Step.REMOTE_PUBLISHED)
    saved = finish_journal(tree, journal, Unexpected.RESCUE)
    lost = [f"the new content of {escape(held.path)} was gone: {held.reason}" for held in applied.held]
    return lost + [
        f"{escape(path)} on the server had been changed outside DSG meanwhile; it was kept as {escape(where)}"
        for path, where in (*applied.rescued, *saved)
    ]


def _publish_manifest(place: Place, record: SnapshotRecord) -> None:
    tree = place.tree
    try:
        tree.move(staged_manifest(record.txid), manifest_path(record.seq))
    except FileNotFoundError:
        tree.stat(manifest_path(record.seq))  # moved before the crash
    tree.flush_folder(MANIFESTS)


def _write_index(
    place: Place,
    journal: Journal,
    record: SnapshotRecord,
    known: tuple[Manifest, StatIndex] | None,
    adopted: Mapping[str, IndexRow],
) -> None:
    """Write the new head's index, a cache: where its parts are not to be had, the old one stays, unused."""
    try:
        if known is None:
            known = _stored(place, record)
        if known is None:
            return
        let_clock_pass(place.tree)
        looked = file_clock(place.tree)
        fresh = StatIndex()
        for row in _rows(place, journal, known, place.published(record), adopted):
            fresh.append(row)
        fresh.settled(place.tree, looked).save(place.tree, record.digest)
    except (IntegrityError, FileNotFoundError):
        return


def _stored(place: Place, record: SnapshotRecord) -> tuple[Manifest, StatIndex] | None:
    found = StatIndex.load_any(place.tree)
    if found is not None and found[0] == record.digest:
        return None  # written before the crash
    raw = place.tree.read_bytes(record_path(record.seq - 1), MAX_RECORD_BYTES)
    manifest = place.published(SnapshotRecord.from_bytes(raw, record.parent))
    if found is None or found[0] != record.parent or len(found[1]) != len(manifest):
        return manifest, StatIndex.unknown(len(manifest))
    return manifest, found[1]


def _rows(
    place: Place,
    journal: Journal,
    known: tuple[Manifest, StatIndex],
    new: Manifest,
    adopted: Mapping[str, IndexRow],
) -> Iterator[IndexRow]:
    base = RowsByPath(zip(*known, strict=True))
    actions = _Actions(iter(journal.actions))
    for entry in new:
        key = sort_key(entry.path)
        was = base.at(entry.path, key)
        action = actions.at(entry.path, key)
        if entry.path in adopted:
            yield adopted[entry.path]
        elif action is not None:
            yield _row_after(place, action)
        else:
            yield was


def _row_after(place: Place, action: Action) -> IndexRow:
    try:
        stat = place.tree.stat(action.path)
    except OSError:
        return UNKNOWN
    # Only what the transaction itself put there is known; anything else is to be looked at.
    return row_of(stat) if action.after is not None and action.after.is_at(stat) else UNKNOWN


class _Actions:
    """A journal's actions, looked up in ascending order of path."""

    def __init__(self, actions: Iterator[Action]) -> None:
        self._actions = actions
        self._next = next(actions, None)

    def at(self, path: str, key: str) -> Action | None:
        while self._next is not None and sort_key(self._next.path) < key:
            self._next = next(self._actions, None)
        return self._next if self._next is not None and self._next.path == path else None

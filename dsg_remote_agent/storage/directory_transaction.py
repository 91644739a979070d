"""A transaction on a directory repository: from the lock to the decision, or to nothing."""

from __future__ import annotations

from collections.abc import Iterator

import msgpack

from dsg_remote_agent.storage.faults import explain
from dsg_remote_agent.storage.finish import carry_out
from dsg_remote_agent.storage.layout import object_path, stands
from dsg_remote_agent.storage.manifests import BlockPacker
from dsg_remote_agent.storage.merge import Step
from dsg_remote_agent.storage.open_transaction import OpenTransaction
from dsg_remote_agent.storage.place import staged_manifest
from dsg_remote_agent.storage.planned import check_planned
from dsg_remote_agent.storage.statindex import row_of
from protocol.errors import (
    DsgError,
    HeadMovedError,
    IntegrityError,
    Outcome,
    OutsideChangeError,
    RemoteProtocolError,
    RemoteStorageError,
)
from protocol.manifest import FILE, Entry
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.transaction import Step as Moment
from protocol.tree.actions import TRASH
from protocol.tree.change import (
    JOURNAL_PREPARED,
    Action,
    Expected,
    Journal,
    JournalState,
    Staged,
    decide,
    discard_prepared,
    read_journal,
    write_prepared,
)
from protocol.tree.fs import Kind

__all__ = ["DirectoryTransaction"]

# A clock that ticks more rarely cannot tell an edit soon after: what was placed is read at the next look.
_FINE_NS = 25_000_000
_KINDS = (Kind.FILE, Kind.LINK)
_FEW_BYTES = 1 << 20  # of actions, encoded


class DirectoryTransaction(OpenTransaction):
    """Everything is staged, and carried out after the decision as the journal says."""

    _actions: _Spool  # as the last prepare planned them
    _journal: Journal | None = None

    # Preparing.

    def prepare(self, manifest: str, message: str, user: str, host: str) -> SnapshotRecord:
        place = self._place
        tree = place.tree
        self._actions = _Spool()
        with BlockPacker() as packer:
            merged = self._merge(manifest, self._plan, packer.add)
            record = self._incoming.record(self.txid, merged, message, user, host)
            packer.write(tree, staged_manifest(self.txid), merged.head)
        self._notice("flushing")
        tree.flush()
        place.failpoints.reach(Moment.REMOTE_FLUSHED)
        root = tree.stat("")
        journal = Journal(
            txid=self.txid,
            machine=place.machine,
            root=(root.device, root.inode),
            meta={"record": record.to_bytes(), "base": self._base.digest},
            actions=self._actions,
        )
        write_prepared(tree, journal)
        self._journal = journal
        return self._prepared(record)

    def _plan(self, step: Step) -> None:
        """Add the action for one change; what it needs in staging and was not sent is made there."""
        if step.number < 0:
            return
        before: Expected | None = None
        keep: str | None = None
        if step.was is not None:
            before = self._expected(step)
            keep = self._keep(step, step.was)
        self._actions.append(Action(step.path, before, self._after(step, before), keep))

    def _keep(self, step: Step, was: Entry) -> str:
        if was.kind != FILE or (step.entry is not None and step.entry[1:3] == was[1:3]):
            # A link's target stands in the manifest; content that stays at its path needs no second copy.
            return f"{TRASH}/{self.txid}/{step.number}"
        return object_path(was.content)

    def _expected(self, step: Step) -> Expected:
        was, row = step.was, step.row
        assert was is not None and row is not None
        if not row.ctime_ns:
            raise OutsideChangeError(
                f"{escape(step.path)} was changed on the server outside DSG", hint="run 'dsg adopt'"
            )
        link = was.kind != FILE
        return Expected(
            Kind.LINK if link else Kind.FILE,
            row.size,
            row.mtime_ns,
            row.ctime_ns,
            row.inode,
            was.content.decode() if link else "",
        )

    def _after(self, step: Step, before: Expected | None) -> Staged | None:
        entry = step.entry
        if entry is None:
            return None
        if entry.kind != FILE:
            if not self._place.tree.capabilities.symlinks:
                raise RemoteStorageError(
                    f"{escape(entry.path)} is a link, and the server's file system cannot hold links",
                    hint="ignore the link, or keep the repository on another file system",
                )
            return self._staging.link(step.number, entry.content.decode())
        staged = self._incoming.staged(step.number)
        if staged is not None:
            return staged
        was = step.was
        if before is not None and was is not None and was.kind == FILE and was.content == entry.content:
            # Only the executable bit or the time changes: the content is here.
            return self._staging.copy(
                step.number, step.path, before, executable=entry.executable, mtime_ns=entry.mtime_ns
            )
        raise RemoteProtocolError(f"the content of {step.path!r} was not sent")

    # Ending.

    def _check(self) -> None:
        place = self._place
        if not stands(place.tree, JOURNAL_PREPARED):
            raise IntegrityError(
                f"the journal of transaction {self.txid} is gone from {place.shown}",
                hint="somebody removed files below .dsg; sync again",
            )
        if place.chain.head().digest != self._base.digest:
            raise HeadMovedError(
                f"the head of {place.shown} is not the one this sync began with", hint="sync again"
            )
        self._notice("checking")
        check_planned(place.tree, self._actions, self._incoming.adopted.rows)

    def _decide(self, prepared: SnapshotRecord) -> None:
        try:
            decide(self._place.tree)
        except OSError as error:
            if self._is_undecided():
                raise explain(error, self._place.shown) from error
            # Visible, perhaps not durable: the next holder of the lock flushes first.
            raise RemoteStorageError(
                f"the decision of transaction {self.txid} could not be flushed: {error.strerror}",
                hint="look for disk errors in the server's log, then run 'dsg recover'",
                outcome=Outcome.IN_DOUBT,
            ) from error

    def _is_undecided(self) -> bool:
        """Whether the disk says so; False too when it cannot be asked: then nothing may be undone."""
        try:
            found = read_journal(self._place.tree)
        except (OSError, DsgError):
            return False
        return found is None or found[0] is JournalState.PREPARED

    def _finish(self, prepared: SnapshotRecord) -> list[str]:
        assert self._journal is not None
        self._notice("applying")
        carried = carry_out(self._place, self._journal, flushed=True)
        # As they looked right after they were placed. An edit within the same tick of the clock, at the same
        # size and with the mtime put back, is the one that this does not tell.
        fine = self._place.tree.capabilities.time_grain_ns <= _FINE_NS
        self._save_index(prepared, {path: row_of(stat) for path, stat in carried.placed} if fine else {})
        return carried.notes

    def tidy(self) -> list[str]:
        return []  # nothing is left over

    def _undo(self) -> None:
        discard_prepared(self._place.tree)
        self._staging.discard()


class _Spool:
    """Actions kept as encoded bytes: there may be a million of them."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(unicode_errors="surrogateescape")
        self._encoded = bytearray()
        self._decoded: list[Action] | None = None  # few of them

    def append(self, action: Action) -> None:
        self._decoded = None
        path, before, after, keep = action
        self._encoded += self._packer.pack(
            (
                path,
                before and (_KINDS.index(before.kind), *before[1:]),
                after and (after.number, _KINDS.index(after.kind), *after[2:]),
                keep,
            )
        )

    def __iter__(self) -> Iterator[Action]:
        if len(self._encoded) > _FEW_BYTES:
            return self._decode()
        if self._decoded is None:
            self._decoded = list(self._decode())
        return iter(self._decoded)

    def _decode(self) -> Iterator[Action]:
        unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=0)
        unpacker.feed(self._encoded)
        for path, before, after, keep in unpacker:
            yield Action(
                path,
                before and Expected(_KINDS[before[0]], *before[1:]),
                after and Staged(after[0], _KINDS[after[1]], *after[2:]),
                keep,
            )

"""A transaction on a directory repository: from the lock to the decision, or to nothing."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

import msgpack

from dsg_remote_agent.lock import Held
from dsg_remote_agent.storage.base import Committed, Notice
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.finish import Carried, carry_out
from dsg_remote_agent.storage.incoming import Incoming
from dsg_remote_agent.storage.layout import object_path, stands
from dsg_remote_agent.storage.manifests import write_blocks
from dsg_remote_agent.storage.merge import Step, merge
from dsg_remote_agent.storage.place import Place, staged_manifest
from dsg_remote_agent.storage.planned import check_planned
from dsg_remote_agent.storage.statindex import StatIndex
from protocol.codec import Buffer
from protocol.errors import (
    DsgError,
    HeadMovedError,
    IntegrityError,
    Outcome,
    OutsideChangeError,
    RemoteProtocolError,
    RemoteStorageError,
)
from protocol.manifest import FILE, Entry, Manifest
from protocol.messages import OutsideChanges
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.transaction import RemoteState
from protocol.transaction import Step as Moment
from protocol.tree.actions import TRASH
from protocol.tree.change import (
    JOURNAL_PREPARED,
    Action,
    Expected,
    Journal,
    JournalState,
    Staged,
    Staging,
    decide,
    discard_prepared,
    read_journal,
    write_prepared,
)
from protocol.tree.fs import Kind

__all__ = ["DirectoryTransaction"]

_KINDS = (Kind.FILE, Kind.LINK)


class DirectoryTransaction:
    """See :class:`dsg_remote_agent.storage.base.Transaction`."""

    def __init__(
        self,
        place: Place,
        held: Held,
        base: Head,
        manifest: Manifest,
        index: StatIndex,
        looked: int,
        outside: OutsideChanges,
        notes: list[str],
        notice: Notice,
    ) -> None:
        self.txid = held.claim.txid
        self.state = RemoteState.NONE
        self.outside = outside
        self.notes = notes
        self._place = place
        self._held = held
        self._base = base
        self._manifest = manifest
        self._index = index
        self._looked = looked  # the file system's time before the index was looked at
        self._notice = notice
        self._staging = Staging(place.tree, self.txid)
        self._incoming = Incoming(place, base, manifest, index, self._staging)
        self._actions = _Spool()
        self._record: SnapshotRecord | None = None
        self._journal: Journal | None = None
        self._next: tuple[StatIndex, array[int]] | None = None  # as the merge gave them
        self._staging.open()
        self.state = RemoteState.BEGUN

    @property
    def free(self) -> int:
        return self._place.tree.free_bytes()

    @property
    def seq(self) -> int:
        """The number of the snapshot being made."""
        return self._incoming.seq

    # Taking in.

    def change(self, changes: Iterable[Entry | str]) -> int:
        return self._incoming.change(changes, self.free)

    def receive(self, payloads: Iterable[Buffer]) -> tuple[int, int]:
        return self._incoming.receive(payloads)

    def adopt(self, paths: Iterable[str], who: str) -> Iterator[Entry | str]:
        yield from self._incoming.adopt(paths, who)

    # Preparing.

    def prepare(self, manifest: str, message: str, user: str, host: str) -> SnapshotRecord:
        place = self._place
        tree = place.tree
        self._incoming.refuse_unadopted(self.outside)
        self._notice("verifying")
        self._actions = _Spool()
        merged = merge(self._manifest, self._index, self._incoming.changes(), self._plan)
        if merged.digest != manifest:
            raise IntegrityError(
                f"the merged manifest has the digest {merged.digest}, the client expected {manifest}",
                hint="run the same version of DSG on both machines, and sync again",
            )
        record = self._incoming.record(self.txid, merged, message, user, host)
        write_blocks(tree, staged_manifest(self.txid), merged.parts)
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
        self._record, self._journal = record, journal
        self._next = merged.index, merged.brought
        self.state = RemoteState.PREPARED
        place.failpoints.reach(Moment.REMOTE_PREPARED)
        return record

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

    def commit(self, record: str, proceed: Callable[[], None]) -> Committed:
        place = self._place
        tree = place.tree
        prepared, journal = self._record, self._journal
        assert prepared is not None and journal is not None
        if prepared.digest != record:
            raise RemoteProtocolError("the commit names another record than was prepared")
        if not stands(tree, JOURNAL_PREPARED):
            raise IntegrityError(
                f"the journal of transaction {self.txid} is gone from {place.shown}",
                hint="somebody removed files below .dsg; sync again",
            )
        if place.chain.head().digest != self._base.digest:
            raise HeadMovedError(
                f"the head of {place.shown} is not the one this sync began with", hint="sync again"
            )
        self._notice("checking")
        check_planned(tree, self._actions, self._incoming.adopted.rows)
        place.failpoints.reach(Moment.REMOTE_CHECKED)
        proceed()
        self._decide()
        self.state = RemoteState.DECIDED
        notes: list[str] = []
        try:
            place.failpoints.reach(Moment.REMOTE_DECIDED)
            self._notice("applying")
            adopted = self._incoming.adopted.settled_rows(self._looked)
            notes = carry_out(place, journal, self._carried(), adopted)
        except Exception as error:  # noqa: BLE001  it is committed, whatever else went wrong
            notes.append(
                f"the snapshot s{prepared.seq} is committed, but the server could not finish carrying it out "
                f"({error}); the next sync or 'dsg recover' does"
            )
        self.state = RemoteState.DONE
        self._held.release()
        return Committed(prepared.to_bytes(), notes)

    def _carried(self) -> Carried:
        assert self._next is not None
        index, brought = self._next
        paths = (change.path for _, change in self._incoming.changes() if isinstance(change, Entry))
        return Carried(
            index=index.settled(self._place.tree, self._looked), brought=zip(brought, paths, strict=True)
        )

    def _decide(self) -> None:
        try:
            decide(self._place.tree)
        except OSError as error:
            if not self._is_undecided():
                # Visible, perhaps not durable. Nothing is built on it here; the next holder flushes first.
                self.state = RemoteState.DONE
                self._held.release()
                raise RemoteStorageError(
                    f"the decision of transaction {self.txid} could not be flushed: {error.strerror}",
                    hint="look for disk errors in the server's log, then run 'dsg recover'",
                    outcome=Outcome.IN_DOUBT,
                ) from error
            raise

    def _is_undecided(self) -> bool:
        """Whether the disk says so; False too when it cannot be asked: then nothing may be undone."""
        try:
            found = read_journal(self._place.tree)
        except (OSError, DsgError):
            return False
        return found is None or found[0] is JournalState.PREPARED

    def tidy(self) -> None:
        return None  # nothing is left over

    def abort(self) -> None:
        if self.state in (RemoteState.BEGUN, RemoteState.PREPARED):
            self.state = RemoteState.ABORTED
            try:
                discard_prepared(self._place.tree)
                self._staging.discard()
            finally:
                self._held.release()
        elif self.state is RemoteState.DECIDED:
            # An unexpected failure between decision and reply: the next holder of the lock goes on.
            self._held.release()


class _Spool:
    """Actions kept as encoded bytes: there may be a million of them."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(unicode_errors="surrogateescape")
        self._encoded = bytearray()

    def append(self, action: Action) -> None:
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
        unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=0)
        unpacker.feed(self._encoded)
        for path, before, after, keep in unpacker:
            yield Action(
                path,
                before and Expected(_KINDS[before[0]], *before[1:]),
                after and Staged(after[0], _KINDS[after[1]], *after[2:]),
                keep,
            )

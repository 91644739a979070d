"""A transaction on a ZFS repository: a clone of the head, changed, snapshotted, and named by ``dsg:head``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dsg_remote_agent.lock import Held
from dsg_remote_agent.storage.base import Committed, Notice
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.incoming import Incoming
from dsg_remote_agent.storage.layout import manifest_path
from dsg_remote_agent.storage.manifests import write_blocks
from dsg_remote_agent.storage.merge import Merged, Step, merge
from dsg_remote_agent.storage.statindex import StatIndex, row_of
from dsg_remote_agent.storage.zfs.changing import Placing, place_all
from dsg_remote_agent.storage.zfs.cleaning import clean
from dsg_remote_agent.storage.zfs.clone import Clone
from dsg_remote_agent.storage.zfs.deciding import decide
from dsg_remote_agent.storage.zfs.links import mend_link
from dsg_remote_agent.storage.zfs.names import HeadValue
from dsg_remote_agent.storage.zfs.site import Site, View
from dsg_remote_agent.storage.zfs.standing import Standing
from protocol.codec import Buffer
from protocol.errors import (
    DsgError,
    HeadMovedError,
    IntegrityError,
    Outcome,
    RemoteProtocolError,
)
from protocol.manifest import FILE, Entry, Manifest
from protocol.messages import OutsideChanges
from protocol.records import SnapshotRecord
from protocol.transaction import RemoteState
from protocol.transaction import Step as Moment
from protocol.tree.change import Staged, Staging
from protocol.tree.fs import Stat

__all__ = ["ZfsTransaction"]


class ZfsTransaction:
    """See :class:`dsg_remote_agent.storage.base.Transaction`.

    ``old``: the head that it began with, which it owns. ``standing`` tells
    whether that was written to since. ``clone``: what is changed.
    """

    def __init__(
        self,
        site: Site,
        held: Held,
        old: View,
        base: Head,
        standing: Standing,
        clone: Clone,
        manifest: Manifest,
        index: StatIndex,
        looked: int,
        notes: list[str],
        notice: Notice,
    ) -> None:
        self.txid = held.claim.txid
        self.outside: OutsideChanges = standing.outside
        self.notes = notes
        self.state = RemoteState.BEGUN
        self._site = site
        self._held = held
        self._old = old
        self._base = base
        self._standing = standing
        self._clone = clone
        self._manifest = manifest
        self._index = index
        self._looked = looked
        self._notice = notice
        self._staging = Staging(clone.tree, self.txid)
        self._staging.open()
        self._incoming = Incoming(clone.place, base, manifest, index, self._staging)
        self._record: SnapshotRecord | None = None
        self._placed: list[tuple[str, Stat]] = []
        self._merged: Merged | None = None
        self._placings: list[Placing] = []

    @property
    def free(self) -> int:
        return self._clone.tree.free_bytes()

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
        tree, failpoints = self._clone.tree, self._site.failpoints
        self._incoming.refuse_unadopted(self.outside)
        if self._merged is not None:
            raise RemoteProtocolError("this transaction could not be prepared before")
        self._notice("verifying")
        self._merged = merged = merge(self._manifest, self._index, self._incoming.changes(), self._plan)
        if merged.digest != manifest:
            raise IntegrityError(
                f"the merged manifest has the digest {merged.digest}, the client expected {manifest}",
                hint="run the same version of DSG on both machines, and sync again",
            )
        record = self._incoming.record(self.txid, merged, message, user, host)
        self._notice("applying")
        self._placed = place_all(tree, self._staging, self._placings)
        write_blocks(tree, manifest_path(self.seq), merged.parts)
        self._clone.place.chain.publish(record, durable=False)
        self._staging.discard()
        self._notice("flushing")
        tree.flush()
        failpoints.reach(Moment.REMOTE_FLUSHED)
        self._clone.take_snapshot(self.seq, self._held.fileno())
        self._record = record
        self.state = RemoteState.PREPARED
        failpoints.reach(Moment.REMOTE_PREPARED)
        return record

    def _plan(self, step: Step) -> None:
        if step.number >= 0:
            self._placings.append(Placing(step.path, step.was, step.entry, self._staged(step)))

    def _staged(self, step: Step) -> Staged | None:
        entry = step.entry
        if entry is None:
            return None
        if entry.kind != FILE:
            return self._staging.link(step.number, entry.content.decode())
        return self._incoming.staged(step.number)

    # Ending.

    def commit(self, record: str, proceed: Callable[[], None]) -> Committed:
        site, lock = self._site, self._held.fileno()
        prepared = self._record
        assert prepared is not None
        if prepared.digest != record:
            raise RemoteProtocolError("the commit names another record than was prepared")
        before = HeadValue(
            self._old.generation.number, self._base.seq, self._base.record.txid, self._base.digest
        )
        self._notice("checking")
        survey = site.survey()
        if survey.head != before:
            raise HeadMovedError(
                f"the head of {site.shown} is not the one this sync began with", hint="sync again"
            )
        self._clone.check(survey, self.seq)
        if not self._standing.frozen:
            self._standing.freeze(site, lock)
            if survey.current().written is not None:
                survey = site.survey()
        self._standing.check(site, survey, self._notice)
        site.failpoints.reach(Moment.REMOTE_CHECKED)
        proceed()
        value = HeadValue(self._clone.generation.number, self.seq, self.txid, prepared.digest)
        try:
            decide(site, value, before, lock)
        except DsgError as error:
            if error.outcome is Outcome.IN_DOUBT:
                self.state = RemoteState.DONE
                self._let_go()
            raise
        self.state = RemoteState.DECIDED
        notes: list[str] = []
        try:
            site.failpoints.reach(Moment.REMOTE_DECIDED)
            notes += mend_link(site, value.generation)
            site.failpoints.reach(Moment.REMOTE_APPLIED)
            self._save_index(prepared)
            site.failpoints.reach(Moment.REMOTE_PUBLISHED)
        except Exception as error:  # noqa: BLE001  it is committed, whatever else went wrong
            notes.append(
                f"the snapshot s{prepared.seq} is committed, but the server could not finish carrying it out "
                f"({error}); the next sync or 'dsg recover' does"
            )
        self.state = RemoteState.DONE
        self._let_go()
        return Committed(prepared.to_bytes(), notes)

    def _save_index(self, record: SnapshotRecord) -> None:
        """Write the new head's stat index. It is a cache: a failure leaves the old one."""
        assert self._merged is not None
        place = self._clone.place
        index = self._merged.index.settled(place.tree, self._looked)
        # With a clock of whole seconds an edit soon after could not be told from what was placed.
        rows = {path: row_of(stat) for path, stat in self._placed if stat.ctime_ns % 10**9}
        rows |= self._incoming.adopted.settled_rows(self._looked)
        paths = (change.path for _, change in self._incoming.changes() if isinstance(change, Entry))
        for at, path in zip(self._merged.brought, paths, strict=True):
            row = rows.get(path)
            if row is not None:
                index.put(at, row)
        try:
            index.save(place.tree, record.digest, place.outer)
        except OSError:
            return

    def tidy(self) -> None:
        clean(self._site)

    def _let_go(self) -> None:
        # An open descriptor would keep the old generation from being unmounted.
        self._old.close()
        self._clone.close()
        self._held.release()

    def abort(self) -> None:
        if self.state in (RemoteState.BEGUN, RemoteState.PREPARED):
            self.state = RemoteState.ABORTED
            try:
                lock = self._held.fileno()
                self._clone.destroy(lock)
                self._standing.undo(self._site, lock)
            finally:
                self._let_go()
        elif self.state is RemoteState.DECIDED:
            # An unexpected failure between decision and reply: the next holder of the lock goes on.
            self._let_go()

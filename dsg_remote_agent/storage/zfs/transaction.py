"""A transaction on a ZFS repository: a clone of the head, changed, snapshotted, and named by ``dsg:head``."""

from __future__ import annotations

from collections.abc import Iterator

from dsg_remote_agent.lock import Held
from dsg_remote_agent.storage.base import Notice
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.layout import manifest_path
from dsg_remote_agent.storage.manifests import BlockPacker
from dsg_remote_agent.storage.merge import Step
from dsg_remote_agent.storage.open_transaction import OpenTransaction
from dsg_remote_agent.storage.statindex import StatIndex, row_of
from dsg_remote_agent.storage.zfs.changing import Placing, place_all
from dsg_remote_agent.storage.zfs.cleaning import clean
from dsg_remote_agent.storage.zfs.clone import Clone
from dsg_remote_agent.storage.zfs.deciding import decide
from dsg_remote_agent.storage.zfs.links import mend_link
from dsg_remote_agent.storage.zfs.names import HeadValue
from dsg_remote_agent.storage.zfs.site import Site, View
from dsg_remote_agent.storage.zfs.standing import Standing
from protocol.errors import (
    HeadMovedError,
    RemoteProtocolError,
)
from protocol.manifest import FILE, Manifest
from protocol.records import SnapshotRecord
from protocol.transaction import Step as Moment
from protocol.tree.change import Staged
from protocol.tree.fs import Stat

__all__ = ["ZfsTransaction"]


class ZfsTransaction(OpenTransaction):
    """The clone is made what the new manifest says, and then named.

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
        super().__init__(clone.place, held, base, manifest, index, looked, standing.outside, notes, notice)
        self._site = site
        self._old = old
        self._standing = standing
        self._clone = clone
        self._placings: list[Placing] = []
        self._placing = False  # the clone is not what it was cloned from any more
        self._placed: list[tuple[str, Stat]] = []

    # Preparing.

    def prepare(self, manifest: str, message: str, user: str, host: str) -> SnapshotRecord:
        tree = self._clone.tree
        if self._placing:
            raise RemoteProtocolError("this transaction could not be prepared before")
        self._placings = []
        with BlockPacker() as packer:
            merged = self._merge(manifest, self._plan, packer.add)
            record = self._incoming.record(self.txid, merged, message, user, host)
            self._notice("applying")
            self._placing = True
            self._placed = place_all(tree, self._staging, self._placings)
            packer.write(tree, manifest_path(self.seq), merged.head)
        self._clone.place.chain.publish(record, durable=False)
        self._staging.discard()
        self._notice("flushing")
        tree.flush()
        self._site.failpoints.reach(Moment.REMOTE_FLUSHED)
        if self._incoming.leaves_unadopted(self.outside):
            self._clone.mark_unadopted(self._held.fileno())
        self._clone.take_snapshot(self.seq, self._held.fileno())
        self._place = self._clone.place
        return self._prepared(record)

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

    def _before(self) -> HeadValue:
        return HeadValue(
            self._old.generation.number, self._base.seq, self._base.record.txid, self._base.digest
        )

    def _check(self) -> None:
        site, lock = self._site, self._held.fileno()
        self._notice("checking")
        survey = site.survey()
        if survey.head != self._before():
            raise HeadMovedError(
                f"the head of {site.shown} is not the one this sync began with", hint="sync again"
            )
        self._clone.check(survey, self.seq)
        if not self._standing.frozen:
            self._standing.freeze(site, lock)
            if survey.current().written is not None:
                survey = site.survey(exact=True)
        self._standing.check(site, survey, self._notice)

    def _decide(self, prepared: SnapshotRecord) -> None:
        value = HeadValue(self._clone.generation.number, self.seq, self.txid, prepared.digest)
        decide(self._site, value, self._before(), self._held.fileno())

    def _finish(self, prepared: SnapshotRecord) -> Iterator[str]:
        site = self._site
        yield from mend_link(site, self._clone.generation.number)
        site.failpoints.reach(Moment.REMOTE_APPLIED)
        # With a clock of whole seconds an edit soon after could not be told from what was placed.
        self._save_index(
            prepared, {path: row_of(stat) for path, stat in self._placed if stat.ctime_ns % 10**9}
        )
        site.failpoints.reach(Moment.REMOTE_PUBLISHED)

    def tidy(self) -> list[str]:
        return clean(self._site)

    def _undo(self) -> None:
        lock = self._held.fileno()
        try:
            self._clone.destroy(lock)
        finally:
            self._standing.undo(self._site, lock)

    def _let_go(self) -> None:
        # An open descriptor would keep the old generation from being unmounted.
        try:
            self._old.close()
            self._clone.close()
        finally:
            super()._let_go()

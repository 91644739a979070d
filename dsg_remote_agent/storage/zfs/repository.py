"""The ZFS backend: a repository in datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from dsg_remote_agent.lock import Held, take
from dsg_remote_agent.storage.base import Claim, Features, Notice, Outcome
from dsg_remote_agent.storage.chain import Head, head_moved
from dsg_remote_agent.storage.layout import ZFS, read_settings
from dsg_remote_agent.storage.looking import Look, keep_index, look_ahead, look_closely
from dsg_remote_agent.storage.open_transaction import find_outcome
from dsg_remote_agent.storage.outside import Seen, examine, outside_error
from dsg_remote_agent.storage.statindex import file_clock
from dsg_remote_agent.storage.stock import Fate, Stock, plan, required
from dsg_remote_agent.storage.zfs.clone import Clone
from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.deciding import confirm
from dsg_remote_agent.storage.zfs.links import is_current
from dsg_remote_agent.storage.zfs.mounts import refuse_without_mounting
from dsg_remote_agent.storage.zfs.pruning import destroy_pruned, protect, stock_of
from dsg_remote_agent.storage.zfs.reading import SnapshotFiles
from dsg_remote_agent.storage.zfs.settling import refuse_too_many, settle
from dsg_remote_agent.storage.zfs.site import Site, View
from dsg_remote_agent.storage.zfs.standing import Standing
from dsg_remote_agent.storage.zfs.survey import Survey, take_survey
from dsg_remote_agent.storage.zfs.transaction import ZfsTransaction
from protocol.errors import ConfigError, DsgError
from protocol.messages import OutsideChanges
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.transaction import Failpoints, Step
from protocol.tree.posix import PosixTree

__all__ = ["ZfsRepository"]

_NOTHING = OutsideChanges(modified=(), deleted=(), added=(), more=0)


class ZfsRepository:
    """See :class:`dsg_remote_agent.storage.base.Repository`."""

    backend = ZFS
    features = Features(patches=True, snapshots_mountable=True, atomic_view=True)

    def __init__(
        self,
        zfs: Zfs,
        dataset: str,
        now: Callable[[], int],
        failpoints: Failpoints,
        machine: str,
    ) -> None:
        """Open the repository in ``dataset``; ConfigError when there is none, or its folder is not there."""
        survey = take_survey(zfs, dataset)
        self.site = Site(zfs, dataset, survey.folder, open_outer(survey), now, failpoints, machine)
        self.repo_id = survey.repo_id
        self._opened: Survey | None = survey  # until the head is first asked for, which is at once
        try:
            self._opened, view, _ = self.site.head(known=survey)
            with view:
                self.algorithm = view.place.marker.algorithm
        except BaseException:
            self.site.outer.close()
            raise
        self._ahead: Look | None = None
        self._settings: str | None = None

    @property
    def settings(self) -> str:
        if self._settings is None:
            _, view, _ = self.site.head()
            with view:
                self._settings = read_settings(view.tree, self.site.shown)
        return self._settings

    def close(self) -> None:
        self.site.outer.close()

    def head(self) -> tuple[bytes, SnapshotRecord, bool]:
        known, self._opened = self._opened, None
        survey, view, head = self.site.head(known=known)
        with view:
            if self._settings is None:
                # They are those of init, and whoever opens a repository asks for them next.
                with suppress(DsgError, OSError):
                    self._settings = read_settings(view.tree, self.site.shown)
        # What a crash may have left to be done: the link behind, or a head that nobody can write to.
        current = survey.current()
        return head.raw, head.record, current.read_only or not is_current(self.site, current.number)

    def holds(self, digest: str) -> bool:
        _, view, head = self.site.head()
        with view:
            return view.place.chain.holds(head, digest)

    def records(self, first: int, last: int) -> list[bytes]:
        _, view, head = self.site.head()
        with view:
            return view.place.chain.range(head, first, last)

    def reader(self, seq: int | None) -> SnapshotFiles:
        return SnapshotFiles(self.site, seq)

    def find_outside(self, notice: Notice, skip: int = 0) -> OutsideChanges:
        """Compare the head's generation with its manifest. Nothing that syncs do shows there."""
        _, view, head = self.site.head()
        with view:
            place = view.place
            manifest = place.manifest(head, head.seq)
            index = place.index(head, manifest)
            return examine(place.tree, manifest, index, note=notice, skip=skip).outside

    def examine(self, tick: Callable[[], None]) -> None:
        self._ahead = None
        if "written" not in self.site.zfs.lacking:
            return  # it tells by itself
        _, view, _ = self.site.head()
        with view:
            self._ahead = look_ahead(view.place, tick)

    def recover(self, claim: Claim) -> list[str]:
        with self._take(claim) as held:
            return settle(self.site, held.fileno())[0]

    def begin(self, claim: Claim, base: str, *, adopt: bool, notice: Notice) -> ZfsTransaction:
        site = self.site
        refuse_without_mounting(site.dataset)
        held = self._take(claim)
        try:
            site.failpoints.reach(Step.REMOTE_LOCKED)
            lock = held.fileno()
            notes, survey = settle(site, lock)
            survey, view, head = site.head(lock, survey)
            try:
                refuse_too_many(survey, site.shown)
                if head.digest != base:
                    raise head_moved(site.shown, head, base)
                transaction = self._begin(held, survey, view, head, notes, notice, adopt=adopt)
            except BaseException:
                view.close()
                raise
            try:
                site.failpoints.reach(Step.REMOTE_BEGUN)
            except BaseException:
                transaction.abort()
                raise
        except BaseException:
            held.release()
            raise
        return transaction

    def _begin(
        self,
        held: Held,
        survey: Survey,
        view: View,
        head: Head,
        notes: list[str],
        notice: Notice,
        *,
        adopt: bool,
    ) -> ZfsTransaction:
        site, lock = self.site, held.fileno()
        look, clock_ns = self._look(survey, view, head, notes, notice, adopt=adopt)
        outside = look.seen.outside
        if (outside.modified or outside.deleted) and not adopt:
            raise outside_error(site.shown, outside)
        # What was found may be younger than the last transaction group, of which 'written' tells.
        dirty = bool(outside) or survey.current().written is True
        standing = Standing(view, head, outside, dirty=dirty)
        try:
            origin = standing.origin(site, held.claim.txid, lock)
            clone = Clone.make(site, survey, origin, held.claim.txid, head.seq + 1, lock)
            try:
                return ZfsTransaction(
                    site,
                    held,
                    view,
                    head,
                    standing,
                    clone,
                    look.manifest,
                    look.seen.index,
                    clock_ns,
                    notes,
                    notice,
                )
            except BaseException:
                clone.destroy(lock)
                raise
        except BaseException:
            standing.undo(site, lock)
            raise

    def _look(
        self, survey: Survey, view: View, head: Head, notes: list[str], notice: Notice, *, adopt: bool
    ) -> tuple[Look, int]:
        """How the head stands, and the time from which on the index knows of no edit."""
        place = view.place
        ahead, self._ahead = self._ahead, None
        current = survey.current()
        if current.written is False and not current.unadopted and not adopt:
            # ZFS itself says that nothing was written since the snapshot: no need to look at a single file.
            manifest = place.manifest(head, head.seq)
            seen = Seen(_NOTHING, place.index(head, manifest), None)
            return Look(head.digest, manifest, seen), file_clock(place.area)
        if ahead is None or ahead.head != head.digest or notes:
            ahead = look_closely(place, head, notice)
        return ahead, keep_index(place, ahead)

    def committed(self, txid: str, seq: int | None) -> bytes | None:
        _, view, head = self.site.head()
        with view:
            return view.place.chain.committed(txid, head.seq if seq is None else seq)

    def outcome(self, claim: Claim, seq: int) -> tuple[Outcome, bytes]:
        found = find_outcome(
            claim.txid,
            self.site.outer,
            lambda: self.committed(claim.txid, seq),
            lambda: self._take(claim),
            lambda held: settle(self.site, held.fileno()),
        )
        if found[0] is Outcome.COMMITTED:
            confirm(self.site, claim.txid)
        return found

    def stock(self) -> Stock:
        survey, view, head = self.site.head()
        view.close()
        return stock_of(self.site, survey, head.seq)

    def prune(self, claim: Claim, rules: Mapping[str, int], *, dry_run: bool, notice: Notice) -> list[Fate]:
        if dry_run:
            return self._plan(rules)
        with self._take(claim) as held:
            settle(self.site, held.fileno())
            fates = self._plan(rules)
            notice("removing pruned snapshots")
            return destroy_pruned(self.site, fates, held.fileno())

    def _plan(self, rules: Mapping[str, int]) -> list[Fate]:
        survey, view, head = self.site.head()
        with view:
            stock = stock_of(self.site, survey, head.seq)
            chain = view.place.chain.parents(head, min(stock.present))
        return plan((record for _, record in chain), stock, rules, head.seq)

    def protect(self, claim: Claim, seq: int, on: bool) -> None:
        with self._take(claim) as held:
            settle(self.site, held.fileno())
            stock = self.stock()
            required(self.site.shown, seq, max(stock.present), stock)
            protect(self.site, seq, on, held.fileno())

    def _take(self, claim: Claim) -> Held:
        return take(self.site.outer, claim, self.site.shown, self.site.now)


def open_outer(survey: Survey) -> PosixTree:
    """The tree of the folder below which generations are mounted; ConfigError when it is not there."""
    try:
        return PosixTree.open_tree(survey.folder)
    except OSError as error:
        raise ConfigError(
            f"the folder {escape(survey.folder)} of {survey.dataset} cannot be opened: {error.strerror}",
            hint="is what it lies in mounted? as an administrator: zfs mount -a",
        ) from None

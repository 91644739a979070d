"""The directory backend: a repository in a plain folder of any file system."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dsg_remote_agent.lock import Held, take
from dsg_remote_agent.storage.base import Claim, Features, Notice, Outcome
from dsg_remote_agent.storage.chain import Head, head_moved
from dsg_remote_agent.storage.directory_transaction import DirectoryTransaction
from dsg_remote_agent.storage.finish import settle
from dsg_remote_agent.storage.history import SnapshotFiles
from dsg_remote_agent.storage.layout import BACKEND, read_marker, read_settings
from dsg_remote_agent.storage.looking import Look, keep_index, look_ahead, look_closely
from dsg_remote_agent.storage.open_transaction import find_outcome
from dsg_remote_agent.storage.outside import examine, outside_error
from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.pruning import mark_pruned, protect, read_stock, sweep
from dsg_remote_agent.storage.repair import rebuild_head
from dsg_remote_agent.storage.stock import Fate, Stock, Verdict, plan, required
from protocol.errors import LockedError
from protocol.messages import OutsideChanges
from protocol.records import SnapshotRecord
from protocol.transaction import Failpoints, Step
from protocol.tree.change import JournalState, read_journal
from protocol.tree.fs import TreeFS

__all__ = ["DirectoryRepository"]

_TRIES = 5


class DirectoryRepository:
    """See :class:`dsg_remote_agent.storage.base.Repository`."""

    backend = BACKEND
    features = Features(patches=False, snapshots_mountable=False, atomic_view=False)

    def __init__(
        self, tree: TreeFS, shown: str, now: Callable[[], int], failpoints: Failpoints, machine: str
    ) -> None:
        """Take over ``tree``. Raises as :func:`read_marker` does when there is no repository in it."""
        self._place = Place(tree, read_marker(tree, shown), shown, now, failpoints, machine)
        self.repo_id = self._place.marker.repo_id
        self.algorithm = self._place.marker.algorithm
        self._ahead: Look | None = None

    @property
    def settings(self) -> str:
        return read_settings(self._place.tree, self._place.shown)

    def close(self) -> None:
        self._place.tree.close()

    def head(self) -> tuple[bytes, SnapshotRecord, bool]:
        head = self._place.chain.head()
        return head.raw, head.record, head.unapplied

    def holds(self, digest: str) -> bool:
        chain = self._place.chain
        return chain.holds(chain.head(), digest)

    def records(self, first: int, last: int) -> list[bytes]:
        chain = self._place.chain
        return chain.range(chain.head(), first, last)

    def reader(self, seq: int | None) -> SnapshotFiles:
        return SnapshotFiles(self._place, seq)

    def find_outside(self, notice: Notice, skip: int = 0) -> OutsideChanges:
        """Compare tree and head beside a running sync: what a sync did meanwhile is not reported."""
        place = self._place
        for _ in range(_TRIES):
            head = place.chain.head()
            planned = _planned_paths(place.tree) if head.unapplied else frozenset()
            manifest = place.manifest(head, head.seq)
            index = place.index(head, manifest)
            seen = examine(
                place.tree, manifest, index, note=notice, passed_over=planned.__contains__, skip=skip
            )
            after = place.chain.head()
            if not seen.outside or (after.digest, after.unapplied) == (head.digest, head.unapplied):
                return seen.outside
        raise LockedError(f"{place.shown} is being written to by others all the time", hint="try again later")

    def examine(self, tick: Callable[[], None]) -> None:
        self._ahead = None
        self._ahead = look_ahead(self._place, tick)

    def recover(self, claim: Claim) -> list[str]:
        with self._take(claim):
            notes = settle(self._place)
            notes += rebuild_head(self._place)
            count = sweep(self._place, self._place.chain.head(), lambda _: None)
            return notes + ([f"removed {count} contents of pruned snapshots"] if count else [])

    def begin(self, claim: Claim, base: str, *, adopt: bool, notice: Notice) -> DirectoryTransaction:
        place = self._place
        held = self._take(claim)
        try:
            place.failpoints.reach(Step.REMOTE_LOCKED)
            notes = settle(place)
            head = place.chain.head()
            if head.digest != base:
                raise head_moved(place.shown, head, base)
            look, self._ahead = self._ahead, None
            # What was changed since that look is as what will be changed after this one: the commit looks at
            # all paths of its plan again, and for the others the next begin will tell.
            if look is None or look.head != head.digest or notes:
                look = look_closely(place, head, notice)
            seen = look.seen
            clock_ns = keep_index(place, look)
            if (seen.outside.modified or seen.outside.deleted) and not adopt:
                raise outside_error(place.shown, seen.outside)
            transaction = DirectoryTransaction(
                place, held, head, look.manifest, seen.index, clock_ns, seen.outside, notes, notice
            )
            place.failpoints.reach(Step.REMOTE_BEGUN)
        except BaseException:
            held.release()
            raise
        return transaction

    def committed(self, txid: str, seq: int | None) -> bytes | None:
        head = self._place.chain.head()
        return self._place.chain.committed(txid, head.seq if seq is None else seq)

    def outcome(self, claim: Claim, seq: int) -> tuple[Outcome, bytes]:
        return find_outcome(
            claim.txid,
            self._place.tree,
            lambda: self._place.chain.committed(claim.txid, seq),
            lambda: self._take(claim),
            lambda _: settle(self._place),
        )

    def stock(self) -> Stock:
        return read_stock(self._place, self._place.chain.head().seq)

    def prune(self, claim: Claim, rules: Mapping[str, int], *, dry_run: bool, notice: Notice) -> list[Fate]:
        place = self._place
        if dry_run:
            return self._plan(place.chain.head(), rules)
        with self._take(claim):
            settle(place)
            head = place.chain.head()
            fates = self._plan(head, rules)
            going = [fate.record.seq for fate in fates if fate.verdict is Verdict.PRUNE]
            if going:
                mark_pruned(place, head, going)
            sweep(place, head, notice)
        return fates

    def _plan(self, head: Head, rules: Mapping[str, int]) -> list[Fate]:
        stock = read_stock(self._place, head.seq)
        chain = self._place.chain.parents(head, min(stock.present))
        return plan((record for _, record in chain), stock, rules, head.seq)

    def protect(self, claim: Claim, seq: int, on: bool) -> None:
        with self._take(claim):
            settle(self._place)
            newest = self._place.chain.head().seq
            required(self._place.shown, seq, newest, read_stock(self._place, newest))
            protect(self._place, seq, on)

    def _take(self, claim: Claim) -> Held:
        return take(self._place.tree, claim, self._place.shown, self._place.now)


def _planned_paths(tree: TreeFS) -> frozenset[str]:
    found = read_journal(tree)
    if found is None or found[0] is not JournalState.DECIDED:
        return frozenset()
    return frozenset(action.path for action in found[1].actions)

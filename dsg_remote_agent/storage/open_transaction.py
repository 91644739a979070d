"""What a transaction is on every backend: what it takes in, the order of its end, and what became of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping

from dsg_remote_agent.lock import Held, read_holder
from dsg_remote_agent.storage.base import Committed, Notice, Outcome
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.incoming import Incoming
from dsg_remote_agent.storage.merge import Merged, Step, merge
from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.statindex import IndexRow, StatIndex
from protocol.codec import Buffer
from protocol.errors import DsgError, IntegrityError, InternalError, LockedError, RemoteProtocolError
from protocol.errors import Outcome as DsgOutcome
from protocol.manifest import Entry, Manifest
from protocol.messages import OutsideChanges
from protocol.records import SnapshotRecord
from protocol.transaction import RemoteState
from protocol.transaction import Step as Moment
from protocol.tree.change import Staging
from protocol.tree.fs import TreeFS

__all__ = ["OpenTransaction", "find_outcome"]


class OpenTransaction(ABC):
    """See :class:`dsg_remote_agent.storage.base.Transaction`.

    ``place``: the tree that is staged in. ``base``: the head that it began
    with, with its ``manifest`` and stat ``index``. ``looked``: the file
    system's time before the index was looked at.
    """

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
        self._looked = looked
        self._notice = notice
        self._staging = Staging(place.tree, self.txid)
        self._incoming = Incoming(place, base, manifest, index, self._staging)
        self._next: tuple[StatIndex, array[int]] | None = None  # as the merge gave them
        self._record: SnapshotRecord | None = None  # when it is prepared
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

    @abstractmethod
    def prepare(self, manifest: str, message: str, user: str, host: str) -> SnapshotRecord: ...

    def _merge(
        self, manifest: str, plan: Callable[[Step], None], on_part: Callable[[Buffer], None]
    ) -> Merged:
        """The new manifest, which must have the digest ``manifest``; see :func:`merge`."""
        self._incoming.refuse_unadopted(self.outside)
        self._notice("verifying")
        merged = merge(
            self._manifest,
            self._index,
            self._incoming.changes(),
            plan,
            on_part,
            size=self._base.record.size,
        )
        if merged.digest != manifest:
            raise IntegrityError(
                f"the merged manifest has the digest {merged.digest}, the client expected {manifest}",
                hint="run the same version of DSG on both machines, and sync again",
            )
        self._next = merged.index, merged.brought
        return merged

    def _prepared(self, record: SnapshotRecord) -> SnapshotRecord:
        """All but the decision is durable."""
        self._record = record
        self.state = RemoteState.PREPARED
        self._place.failpoints.reach(Moment.REMOTE_PREPARED)
        return record

    # Ending.

    def commit(self, record: str, proceed: Callable[[], None]) -> Committed:
        prepared = self._record
        assert prepared is not None
        if prepared.digest != record:
            raise RemoteProtocolError("the commit names another record than was prepared")
        failpoints = self._place.failpoints
        self._check()
        failpoints.reach(Moment.REMOTE_CHECKED)
        proceed()
        self._decide_once(prepared)
        notes: list[str] = []
        try:
            failpoints.reach(Moment.REMOTE_DECIDED)
            for note in self._finish(prepared):
                notes.append(note)  # noqa: PERF402  those before an error count
        except Exception as error:  # noqa: BLE001  it is committed, whatever else went wrong
            notes.append(
                f"the snapshot s{prepared.seq} is committed, but the server could not finish carrying it out "
                f"({error}); the next sync or 'dsg recover' does"
            )
        self.state = RemoteState.DONE
        self._let_go()
        return Committed(prepared.to_bytes(), notes)

    def _decide_once(self, prepared: SnapshotRecord) -> None:
        """Decide. Only what is known not to be decided is prepared again, and may be undone."""
        self.state = RemoteState.DECIDING
        try:
            self._decide(prepared)
        except BaseException as error:
            if isinstance(error, DsgError) and error.outcome is DsgOutcome.ABORTED:
                self.state = RemoteState.PREPARED
                raise
            # Nothing is built on it here: whoever has the lock next finds out.
            self.state = RemoteState.DONE
            self._let_go()
            if isinstance(error, DsgError) or not isinstance(error, Exception):
                raise
            raise InternalError(
                f"the decision of transaction {self.txid} was cut short: {type(error).__name__}",
                hint="sync again, or run 'dsg recover'; look at the agent's log on the server",
                outcome=DsgOutcome.IN_DOUBT,
            ) from error
        self.state = RemoteState.DECIDED

    @abstractmethod
    def _check(self) -> None:
        """Raise unless head, tree and what was prepared are as they must be for the decision."""

    @abstractmethod
    def _decide(self, prepared: SnapshotRecord) -> None:
        """The decision, durable when this returns.

        A DsgError whose outcome is ABORTED when it is certain that nothing is
        decided, and nothing that was begun can still decide it; whatever else
        it raises leaves the transaction in doubt.
        """

    @abstractmethod
    def _finish(self, prepared: SnapshotRecord) -> Iterable[str]:
        """Carry out what was decided; notes for people. After an error the next holder goes on."""

    def _save_index(self, record: SnapshotRecord, rows: Mapping[str, IndexRow]) -> None:
        """Write the new head's stat index; ``rows``: of what this transaction placed, as it looks now.

        It is a cache: a failure leaves the old one, which is still of use.
        """
        assert self._next is not None
        place = self._place
        index, brought = self._next
        index = index.settled(place.tree, self._looked)
        rows = {**rows, **self._incoming.adopted.settled_rows(self._looked)}
        paths = (change.path for _, change in self._incoming.changes() if isinstance(change, Entry))
        for at, path in zip(brought, paths, strict=True):
            row = rows.get(path)
            if row is not None:
                index.put(at, row)
        try:
            index.save(place.tree, record.digest, place.outer)
        except OSError:
            return

    @abstractmethod
    def tidy(self) -> list[str]: ...

    def abort(self) -> None:
        if self.state in (RemoteState.BEGUN, RemoteState.PREPARED):
            self.state = RemoteState.ABORTED
            try:
                self._undo()
            finally:
                self._let_go()
        elif self.state in (RemoteState.DECIDING, RemoteState.DECIDED):
            # An unexpected failure around the decision: the next holder of the lock goes on.
            self._let_go()

    @abstractmethod
    def _undo(self) -> None:
        """Destroy what was staged and prepared. What fails is left to recovery."""

    def _let_go(self) -> None:
        """Let the lock go, and all that this transaction keeps open."""
        self._held.release()


def find_outcome(
    txid: str,
    tree: TreeFS,
    committed: Callable[[], bytes | None],
    take: Callable[[], Held],
    settle: Callable[[Held], object],
) -> tuple[Outcome, bytes]:
    """What became of transaction ``txid``, with its record when it committed.

    ``tree`` has the lock, which ``take`` takes. "Aborted" is said only after
    ``settle``, under the lock, has destroyed whatever the transaction staged:
    it cannot commit any more. LockedError when another one runs.
    """
    raw = committed()
    if raw is not None:
        return Outcome.COMMITTED, raw
    try:
        with take() as held:
            settle(held)
            raw = committed()
    except LockedError:
        # It may have committed between the two looks.
        raw = committed()
        if raw is not None:
            return Outcome.COMMITTED, raw
        holder = read_holder(tree)
        if holder is not None and holder.txid == txid:
            return Outcome.RUNNING, b""
        raise
    return (Outcome.ABORTED, b"") if raw is None else (Outcome.COMMITTED, raw)

"""What the agent needs of a way to store a repository; one implementation for each backend.

A repository is opened once for each client handle. Readers (head, records,
manifests, files of a snapshot) take no writer's lock and never recover; they
serve the last decided state. A transaction holds the repository's exclusive
lock from ``begin`` to its end. Nothing here assumes how a commit is made
durable: only that :meth:`Transaction.commit` has one deciding moment, before
which a crash undoes the transaction and after which it is finished.

Errors are DsgErrors or OSErrors; the latter are given their meaning in one
place (:mod:`dsg_remote_agent.storage.faults`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple, Protocol

from dsg_remote_agent.storage.stock import Fate, Stock
from protocol.codec import Buffer
from protocol.manifest import Entry, Manifest
from protocol.messages import OutsideChanges
from protocol.records import SnapshotRecord
from protocol.transaction import RemoteState
from protocol.tree.fs import ReadFile
from protocol.value import Value

__all__ = [
    "Claim",
    "Clock",
    "Committed",
    "Features",
    "Notice",
    "Outcome",
    "Repository",
    "SnapshotReader",
    "Source",
    "Transaction",
    "Wanted",
]

MAX_SHOWN = 1000  # paths named in one answer; the rest is counted


class Clock(Protocol):
    """The time, handed in so that tests choose it."""

    def now(self) -> int:
        """Whole seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


# Called at the start of a long phase (its name) for the client's display; never blocks for long.
Notice = Callable[[str], None]


class Features(Value):
    """What a backend can do beyond the common part."""

    patches: bool  # a large file can be changed in place inside the transaction
    snapshots_mountable: bool  # an old snapshot has a folder of its own to read
    atomic_view: bool  # people who read the plain folder see whole snapshots only


class Claim(Value):
    """Who wants, or has, the repository's lock."""

    txid: str
    user: str
    host: str  # the client's
    account: str
    server: str
    pid: int
    since: int = 0


class Wanted(NamedTuple):
    """One file that a client asks for: ``number`` is its place in the request."""

    number: int
    path: str
    content: bytes
    size: int


class Source(NamedTuple):
    """A file opened to be sent, or None when its content is no longer here."""

    wanted: Wanted
    file: ReadFile | None


class Outcome(Enum):
    """What became of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    RUNNING = "running"


class Committed(Value):
    """A commit's answer: the record, and what the people concerned should be told."""

    raw: bytes
    notes: list[str]


class SnapshotReader(Protocol):
    """One snapshot to read from. Close it: cleaning waits for its readers."""

    @property
    def record(self) -> SnapshotRecord: ...

    def manifest(self) -> Manifest: ...

    def manifest_blocks(self) -> Iterator[bytes]:
        """The manifest's canonical bytes as zlib blocks that inflate to at most 512 KiB."""
        ...

    def sources(self, wanted: Iterable[Wanted]) -> Iterator[Source]:
        """Each wanted file opened, in the same order, which must be canonical. The caller closes them."""
        ...

    def close(self) -> None: ...


class Transaction(Protocol):
    """One transaction on a repository, from begin to commit or abort."""

    @property
    def txid(self) -> str: ...

    @property
    def state(self) -> RemoteState: ...

    @property
    def outside(self) -> OutsideChanges: ...

    @property
    def free(self) -> int:
        """Bytes that may still be written."""
        ...

    @property
    def notes(self) -> list[str]: ...

    def change(self, changes: Iterable[Entry | str]) -> int:
        """Take the whole change (checked rows in canonical order); returns how many there are."""
        ...

    def receive(self, payloads: Iterable[Buffer]) -> tuple[int, int]:
        """Take file contents; (files, bytes) received in this call."""
        ...

    def adopt(self, paths: Iterable[str], who: str) -> Iterator[Entry | str]:
        """Take in what differs at these paths; yields an entry, or the path of one that is gone."""
        ...

    def prepare(self, manifest: str, message: str, user: str, host: str) -> SnapshotRecord:
        """Make all but the decision durable; the digest of the merged manifest must be ``manifest``."""
        ...

    def commit(self, record: str, proceed: Callable[[], None]) -> Committed:
        """Decide, apply, publish. An error before the decision leaves the transaction prepared.

        ``proceed`` is called just before the decision and may raise: then nothing is decided.
        """
        ...

    def tidy(self) -> list[str]:
        """After the reply to a commit: what can wait, such as removing what nobody needs. Never raises.

        Notes on what had to stay, for the server's administrator.
        """
        ...

    def abort(self) -> None:
        """Undo everything and let the lock go. Harmless when it is over."""
        ...


class Repository(Protocol):
    """One opened repository."""

    @property
    def repo_id(self) -> str: ...

    @property
    def algorithm(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def settings(self) -> str:
        """The text that init was given, for new working folders."""
        ...

    @property
    def features(self) -> Features: ...

    def head(self) -> tuple[bytes, SnapshotRecord, bool]:
        """The newest record (raw and parsed), and whether its apply is still outstanding."""
        ...

    def holds(self, digest: str) -> bool:
        """Whether the record with this digest is in the head's chain."""
        ...

    def records(self, first: int, last: int) -> list[bytes]: ...

    def reader(self, seq: int | None) -> SnapshotReader:
        """A reader of snapshot ``seq``, or of the head."""
        ...

    def examine(self, tick: Callable[[], None]) -> None:
        """Do beforehand, without the lock, what :meth:`begin` would spend its time on.

        ``tick`` is called now and then, and may raise.
        """
        ...

    def find_outside(self, notice: Notice, skip: int = 0) -> OutsideChanges: ...

    def recover(self, claim: Claim) -> list[str]:
        """Finish or undo what a crash left, under the lock; notes on what was done."""
        ...

    def begin(self, claim: Claim, base: str, *, adopt: bool, notice: Notice) -> Transaction:
        """Lock, recover, check; LockedError, HeadMovedError, OutsideChangeError leave nothing behind."""
        ...

    def committed(self, txid: str, seq: int | None) -> bytes | None:
        """The record that this transaction made, from the head's own chain."""
        ...

    def outcome(self, claim: Claim, seq: int) -> tuple[Outcome, bytes]:
        """What became of ``claim.txid``; "aborted" only after its staging is destroyed under the lock."""
        ...

    def stock(self) -> Stock:
        """Which snapshots still have their files, and which are protected. Takes no lock."""
        ...

    def prune(self, claim: Claim, rules: Mapping[str, int], *, dry_run: bool, notice: Notice) -> list[Fate]:
        """Remove the files of what ``rules`` do not keep, under the lock; what became of each, newest first.

        A crash, or an error, leaves each of them whole or pruned; records
        remain. ``dry_run``: only say what would become of them, without the lock.
        """
        ...

    def protect(self, claim: Claim, seq: int, on: bool) -> None:
        """Have no policy prune snapshot ``seq``, or let them again; UsageError when there is no such one."""
        ...

    def close(self) -> None: ...

"""The methods of DSG/1: for each its request, its role, its bodies and its result, as types.

What comes from the other side becomes one of these types, all its fields
checked, or is refused::

    request = parse_request(event.method, event.params)      # agent; RemoteProtocolError
    if not role.allows(METHODS[event.method].role): ...
    match request:
        case OpenRepo(): conn.send_response(stream, to_wire(RepoOpened(...)))

    conn.send_request(*request_wire(OpenRepo(repo=1, path="/srv/data")))     # client
    opened = parse_result(OpenRepo, event.fields)            # a RepoOpened

Building one with a bad value raises LocalProtocolError. Text (users, hosts,
messages) may hold control characters: escape it where it is shown.
"""

from __future__ import annotations

from protocol import fields
from protocol.fields import Message
from protocol.methods import (
    METHODS,
    Body,
    MethodRow,
    Role,
    method,
    notice,
    parse_notice,
    parse_request,
    parse_result,
    request_wire,
    to_wire,
)

__all__ = [
    "METHODS",
    "Abort",
    "Adopt",
    "Begin",
    "Begun",
    "Body",
    "Changes",
    "ChangesTaken",
    "Check",
    "Commit",
    "Committed",
    "Doctor",
    "DoctorReport",
    "Examine",
    "GetFiles",
    "GetManifest",
    "GetOutcome",
    "GetRecords",
    "GetSnapshot",
    "GetStock",
    "InitRepo",
    "ListOutside",
    "ManifestFound",
    "MethodRow",
    "Nothing",
    "OpenRepo",
    "OutcomeFound",
    "OutsideChanges",
    "Phase",
    "Prepare",
    "Prepared",
    "Protect",
    "Prune",
    "Pruned",
    "RecordsFound",
    "Recover",
    "Recovered",
    "RepoInitialized",
    "RepoOpened",
    "Role",
    "SnapshotFate",
    "SnapshotFound",
    "SnapshotState",
    "StockFound",
    "TakeDataset",
    "Upload",
    "Uploaded",
    "method",
    "notice",
    "parse_notice",
    "parse_request",
    "parse_result",
    "request_wire",
    "to_wire",
]


class Nothing(Message):
    """A result without fields: the method succeeded."""


class OutsideChanges(Message):
    """Where the tree on the server is not what its head says: at most 1,000 paths a list, ``more`` untold."""

    modified: tuple[str, ...] = fields.texts()
    deleted: tuple[str, ...] = fields.texts()
    added: tuple[str, ...] = fields.texts()
    more: int = fields.count()

    def __bool__(self) -> bool:
        return bool(self.modified or self.deleted or self.added or self.more)


# Repositories


class RepoOpened(Message):
    """``head``: the record's bytes, empty when they cannot be read (``repo.manifest`` then says why).

    ``unapplied``: a decided transaction waits for a writer to finish it.
    ``settings``: what ``repo.init`` was given, for a new working folder.
    """

    repo_id: str = fields.identifier()
    algorithm: str = fields.word()
    backend: str = fields.word()
    head: bytes = fields.blob(empty=True)
    role: str = fields.word()
    unapplied: bool = fields.flag()
    settings: str = fields.text(16000)


@method("repo.open", Role.READ, RepoOpened)
class OpenRepo(Message):
    """Open the repository at ``path``; ``repo`` is the client's number for it in later requests."""

    repo: int = fields.handle()
    path: str = fields.server_path()


class RepoInitialized(Message):
    """``head``: the bytes of the record of the empty s0. ``notes``: what is unusual about its place."""

    head: bytes = fields.blob()
    notes: tuple[str, ...] = fields.texts()


@method("repo.init", Role.ADMIN, RepoInitialized)
class InitRepo(Message):
    """Make an empty repository at ``path``. ``group``: the Unix group that shares it, '' for none.

    ``settings``: JSON text, kept by the agent and not looked into: the name,
    data_dirs and ignore patterns that a clone without a configuration starts with.
    """

    path: str = fields.server_path()
    repo_id: str = fields.identifier()
    algorithm: str = fields.word()
    group: str = fields.text(255)
    user: str = fields.text(200)
    host: str = fields.text(255)
    settings: str = fields.text(16000)


@method("repo.take", Role.ADMIN, RepoInitialized)
class TakeDataset(Message):
    """Make the dataset ``source`` with its files s0 of a new repository at ``path``, which is a dataset too.

    ``head`` of the answer is not empty then. The rest as for ``repo.init``.
    """

    path: str = fields.server_path()
    source: str = fields.server_path()
    repo_id: str = fields.identifier()
    algorithm: str = fields.word()
    group: str = fields.text(255)
    user: str = fields.text(200)
    host: str = fields.text(255)
    settings: str = fields.text(16000)


class ManifestFound(Message):
    """``same``: the client has the head's manifest; no body. ``known``: the chain holds ``have``."""

    same: bool = fields.flag()
    known: bool = fields.flag()
    head: bytes = fields.blob()


@method("repo.manifest", Role.READ, ManifestFound, response_body=Body.MANIFEST)
class GetManifest(Message):
    """The head and its manifest. ``have``: digest of the record whose manifest the client has, or ''."""

    repo: int = fields.handle()
    have: str = fields.digest_or_none()


class RecordsFound(Message):
    """The records' bytes, ascending; fewer than asked for where there are no more."""

    records: tuple[bytes, ...] = fields.blobs(500)


@method("repo.records", Role.READ, RecordsFound)
class GetRecords(Message):
    """The records ``first`` to ``last``, at most 500 in a call (``last`` may be beyond the head)."""

    repo: int = fields.handle()
    first: int = fields.seq()
    last: int = fields.seq()


class SnapshotFound(Message):
    """The snapshot's record; its manifest is the body."""

    record: bytes = fields.blob()


@method("repo.snapshot", Role.READ, SnapshotFound, response_body=Body.MANIFEST)
class GetSnapshot(Message):
    """The record and manifest of snapshot ``seq``."""

    repo: int = fields.handle()
    seq: int = fields.seq()


@method("repo.examine", Role.WRITE, Nothing)
class Examine(Message):
    """A ``tx.begin`` will probably follow on this connection: compare tree and head now, without the lock."""

    repo: int = fields.handle()


@method("repo.outside", Role.READ, OutsideChanges)
class ListOutside(Message):
    """Compare the tree on the server with its head; of what was added, pass over the first ``skip``."""

    repo: int = fields.handle()
    skip: int = fields.count()


class Recovered(Message):
    """``notes``: what was finished or undone, one sentence each."""

    notes: tuple[str, ...] = fields.texts()


@method("repo.recover", Role.WRITE, Recovered)
class Recover(Message):
    """Take the lock and finish or undo what a crash left."""

    repo: int = fields.handle()


class SnapshotState(Message):
    """A snapshot that is not like most: ``pruned`` (only its record is left), or why policies keep it."""

    seq: int = fields.seq()
    pruned: bool = fields.flag()
    kept: str = fields.text(200)


class StockFound(Message):
    """Ascending; what is neither pruned nor protected is not named."""

    snapshots: tuple[SnapshotState, ...] = fields.nested_list(SnapshotState, 500)


@method("repo.stock", Role.READ, StockFound)
class GetStock(Message):
    """Which of the snapshots ``first`` to ``last`` are pruned or protected, of at most 500 in a call."""

    repo: int = fields.handle()
    first: int = fields.seq()
    last: int = fields.seq()


class SnapshotFate(Message):
    """``verdict``: keep or prune, or left: to be pruned, and in use just now. ``why`` it is kept or left."""

    seq: int = fields.seq()
    time: int = fields.count()
    user: str = fields.text(200)
    verdict: str = fields.word("keep", "prune", "left")
    why: str = fields.text(500)


class Pruned(Message):
    """Newest first; the first 1,000, and how many there are of each kind in all."""

    snapshots: tuple[SnapshotFate, ...] = fields.nested_list(SnapshotFate, 1000)
    kept: int = fields.count()
    pruned: int = fields.count()
    left: int = fields.count()


@method("repo.prune", Role.ADMIN, Pruned)
class Prune(Message):
    """Remove the files of the snapshots that no rule keeps; how many each rule keeps, 0: it is not given.

    ``dry_run``: only say what would become of each.
    """

    repo: int = fields.handle()
    last: int = fields.count()
    hourly: int = fields.count()
    daily: int = fields.count()
    weekly: int = fields.count()
    monthly: int = fields.count()
    dry_run: bool = fields.flag()


@method("repo.protect", Role.WRITE, Nothing)
class Protect(Message):
    """Have no ``repo.prune`` remove snapshot ``seq``; with ``on`` false, let them again."""

    repo: int = fields.handle()
    seq: int = fields.seq()
    on: bool = fields.flag()


@method("files.get", Role.READ, Nothing, request_body=Body.ROWS, response_body=Body.FILES)
class GetFiles(Message):
    """Contents as of snapshot ``seq``: a content row for each file; the file stream numbers them so."""

    repo: int = fields.handle()
    seq: int = fields.seq()


# Transactions


class Begun(Message):
    """``outside``: what changed outside DSG (empty unless ``adopt``). ``free``: bytes that may be written."""

    outside: OutsideChanges = fields.nested(OutsideChanges)  # frozen, like all messages
    free: int = fields.count()
    notes: tuple[str, ...] = fields.texts()


@method("tx.begin", Role.WRITE, Begun)
class Begin(Message):
    """Take the lock, recover, refuse unless record ``base`` is the head. ``adopt``: bear outside changes."""

    repo: int = fields.handle()
    txid: str = fields.identifier()
    base: str = fields.digest()
    user: str = fields.text(200)
    host: str = fields.text(255)
    adopt: bool = fields.flag()


class ChangesTaken(Message):
    """How many rows came."""

    count: int = fields.count()


@method("tx.changes", Role.WRITE, ChangesTaken, request_body=Body.ROWS)
class Changes(Message):
    """The whole change of the tree, as change rows in canonical order."""

    repo: int = fields.handle()
    txid: str = fields.identifier()


class Uploaded(Message):
    """Files and bytes that were staged."""

    files: int = fields.count()
    bytes: int = fields.count()


@method("tx.upload", Role.WRITE, Uploaded, request_body=Body.FILES)
class Upload(Message):
    """Contents of files put by ``tx.changes``, numbered by their rows there."""

    repo: int = fields.handle()
    txid: str = fields.identifier()


@method("tx.adopt", Role.WRITE, Nothing, request_body=Body.ROWS, response_body=Body.ROWS)
class Adopt(Message):
    """Take in paths as they are on the server, credited to ``who``; change rows answer the path rows."""

    repo: int = fields.handle()
    txid: str = fields.identifier()
    who: str = fields.text(200)


class Prepared(Message):
    """The bytes of the record to be committed."""

    record: bytes = fields.blob()


@method("tx.prepare", Role.WRITE, Prepared)
class Prepare(Message):
    """Verify and make durable all but the decision. ``manifest``: the digest that must come out."""

    repo: int = fields.handle()
    txid: str = fields.identifier()
    manifest: str = fields.digest()
    message: str = fields.text(8000)
    user: str = fields.text(200)
    host: str = fields.text(255)


class Committed(Message):
    """The transaction holds: its record's bytes, and ``notes`` on what was found on the way."""

    record: bytes = fields.blob()
    notes: tuple[str, ...] = fields.texts()


@method("tx.commit", Role.WRITE, Committed)
class Commit(Message):
    """Decide. ``record``: the digest of the prepared record."""

    repo: int = fields.handle()
    txid: str = fields.identifier()
    record: str = fields.digest()


@method("tx.abort", Role.WRITE, Nothing)
class Abort(Message):
    """Undo the transaction and release the lock."""

    repo: int = fields.handle()
    txid: str = fields.identifier()


class OutcomeFound(Message):
    """``outcome``: committed (``record`` holds the record), aborted (and fenced off), or running."""

    outcome: str = fields.word("committed", "aborted", "running")
    record: bytes = fields.blob(empty=True)


@method("tx.outcome", Role.WRITE, OutcomeFound)
class GetOutcome(Message):
    """What became of ``txid``, which would have made snapshot ``seq``."""

    repo: int = fields.handle()
    txid: str = fields.identifier()
    seq: int = fields.seq()


# The server


class Check(Message):
    """One thing that was looked at; ``cure``: what to do when it is not ``ok``."""

    name: str = fields.text(200)
    ok: bool = fields.flag()
    detail: str = fields.text(4000)
    cure: str = fields.text(4000)


class DoctorReport(Message):
    """All checks, in order."""

    checks: tuple[Check, ...] = fields.nested_list(Check, 200)


@method("server.doctor", Role.READ, DoctorReport)
class Doctor(Message):
    """Look at the server, and at the repository at ``path`` unless that is ''."""

    path: str = fields.server_path(empty=True)


# Notices


@notice("phase")
class Phase(Message):
    """What a long request is at: ``name`` (verifying, flushing, ...), ``count`` of ``total`` (0: unknown)."""

    name: str = fields.text(64)
    count: int = fields.count()
    total: int = fields.count()

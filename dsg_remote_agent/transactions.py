"""The methods of a transaction: begin, changes, upload, adopt, prepare, commit, abort, outcome."""

from __future__ import annotations

from collections.abc import Iterator

from dsg_remote_agent.call import Call
from dsg_remote_agent.dispatch import Agent, answers, few
from dsg_remote_agent.storage.base import Outcome
from protocol.codec import pack_rows
from protocol.errors import DsgError, RemoteProtocolError
from protocol.errors import Outcome as DsgOutcome
from protocol.messages import (
    Abort,
    Adopt,
    Begin,
    Begun,
    Changes,
    ChangesTaken,
    Commit,
    Committed,
    GetOutcome,
    Nothing,
    OutcomeFound,
    Prepare,
    Prepared,
    Upload,
    Uploaded,
    to_wire,
)
from protocol.records import SnapshotRecord
from protocol.rows import RowReader, change_row, path_row
from protocol.transaction import RemoteState, Step

__all__: list[str] = []

_OPEN = (RemoteState.BEGUN, RemoteState.PREPARED, RemoteState.DECIDING, RemoteState.DECIDED)


@answers(Begin)
def begin(agent: Agent, call: Call, request: Begin) -> None:
    opened = agent.repository(request.repo)
    if opened.transaction is not None and opened.transaction.state in _OPEN:
        raise RemoteProtocolError("a transaction is open already")
    opened.transaction = None
    claim = agent.claim(request.txid, request.user, request.host)
    transaction = opened.repository.begin(claim, request.base, adopt=request.adopt, notice=agent.notice)
    opened.transaction = transaction
    call.respond(
        to_wire(Begun(outside=transaction.outside, free=transaction.free, notes=few(transaction.notes)))
    )


@answers(Changes)
def take_changes(agent: Agent, call: Call, request: Changes) -> None:
    transaction = agent.transaction(request.repo, request.txid, call.method)
    rows = RowReader(change_row)
    count = transaction.change(row for payload in call.payloads() for row in rows.read(payload))
    call.respond(to_wire(ChangesTaken(count=count)))


@answers(Upload)
def upload(agent: Agent, call: Call, request: Upload) -> None:
    transaction = agent.transaction(request.repo, request.txid, call.method)
    files, size = transaction.receive(call.payloads())
    call.respond(to_wire(Uploaded(files=files, bytes=size)))


@answers(Adopt)
def adopt(agent: Agent, call: Call, request: Adopt) -> None:
    transaction = agent.transaction(request.repo, request.txid, call.method)
    reader = RowReader(path_row)
    # Read whole before the answer begins: a client that sends all before it reads must not be waited for.
    paths = [path for payload in call.payloads() for path in reader.read(payload)]

    def rows() -> Iterator[tuple[object, ...]]:
        for change in transaction.adopt(paths, request.who):
            yield (change,) if isinstance(change, str) else change

    packed = list(pack_rows(rows()))  # type: ignore[arg-type]
    call.respond(to_wire(Nothing()), body=True)
    for payload in packed:
        call.send(payload)
    call.end()


@answers(Prepare)
def prepare(agent: Agent, call: Call, request: Prepare) -> None:
    transaction = agent.transaction(request.repo, request.txid, call.method)
    record = transaction.prepare(request.manifest, request.message, request.user, request.host)
    call.respond(to_wire(Prepared(record=record.to_bytes())))


@answers(Commit)
def commit(agent: Agent, call: Call, request: Commit) -> None:
    opened = agent.repository(request.repo)
    transaction = opened.transaction
    if transaction is None or transaction.txid != request.txid or transaction.state is RemoteState.DONE:
        raw = _committed_before(agent, request)
        call.respond(to_wire(Committed(record=raw, notes=())))
        return
    transaction = agent.transaction(request.repo, request.txid, call.method)
    try:
        done = transaction.commit(request.record, call.proceed)
    except Exception as error:
        if not isinstance(error, DsgError) or error.outcome is DsgOutcome.ABORTED:
            # The client is told that nothing holds: that must be so when it hears it.
            transaction.abort()
            opened.transaction = None
        raise
    opened.transaction = None
    call.respond(to_wire(Committed(record=done.raw, notes=few(done.notes))))
    call.wait_sent()
    try:
        agent.failpoints.reach(Step.REMOTE_REPLIED)
    finally:
        for note in transaction.tidy():
            # The client has its answer. Whoever syncs next is told as well, as long as it stays.
            call.warn("housekeeping left something", note=note)


def _committed_before(agent: Agent, request: Commit) -> bytes:
    """The record of a commit that is asked for again; RemoteProtocolError when there was none."""
    raw = agent.repository(request.repo).repository.committed(request.txid, None)
    if raw is None or SnapshotRecord.from_bytes(raw).digest != request.record:
        raise RemoteProtocolError(f"there is no prepared transaction {request.txid}")
    return raw


@answers(Abort)
def abort(agent: Agent, call: Call, request: Abort) -> None:
    opened = agent.repository(request.repo)
    transaction = opened.transaction
    if transaction is not None and transaction.txid == request.txid:
        transaction.abort()
        opened.transaction = None
    call.respond(to_wire(Nothing()))


@answers(GetOutcome)
def get_outcome(agent: Agent, call: Call, request: GetOutcome) -> None:
    opened = agent.repository(request.repo)
    transaction = opened.transaction
    if transaction is not None and transaction.state in _OPEN:
        if transaction.txid != request.txid:
            raise RemoteProtocolError("another transaction is open on this connection")
        call.respond(to_wire(OutcomeFound(outcome=Outcome.RUNNING.value, record=b"")))
        return
    outcome, raw = opened.repository.outcome(agent.claim(request.txid, "", ""), request.seq)
    call.respond(to_wire(OutcomeFound(outcome=outcome.value, record=raw)))

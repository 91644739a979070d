"""The methods that read a repository, and those that make or mend one."""

from __future__ import annotations

from collections.abc import Iterator

from dsg_remote_agent.call import Call
from dsg_remote_agent.dispatch import MOST_REPOSITORIES, Agent, Opened, answers, few
from dsg_remote_agent.doctor import examine_server
from dsg_remote_agent.places import make_at, open_at, resolve, take_at, unusual_at
from dsg_remote_agent.storage.base import SnapshotReader, Wanted
from protocol.compress import Compressor
from protocol.errors import IntegrityError, OutsideChangeError, RemoteProtocolError
from protocol.framing import Flag
from protocol.messages import (
    Doctor,
    DoctorReport,
    Examine,
    GetFiles,
    GetManifest,
    GetRecords,
    GetSnapshot,
    InitRepo,
    ListOutside,
    ManifestFound,
    Nothing,
    OpenRepo,
    RecordsFound,
    Recover,
    Recovered,
    RepoInitialized,
    RepoOpened,
    SnapshotFound,
    TakeDataset,
    to_wire,
)
from protocol.paths import escape
from protocol.rows import RowReader, content_row
from protocol.tree.fs import ReadFile, Stat
from protocol.tree.send import Source, SourceChanged, payloads

__all__: list[str] = []

_MOST_RECORD_BYTES = 512 * 1024


@answers(OpenRepo)
def open_repository(agent: Agent, call: Call, request: OpenRepo) -> None:
    if request.repo in agent.opened:
        raise RemoteProtocolError(f"the repository number {request.repo} is in use")
    if len(agent.opened) >= MOST_REPOSITORIES:
        raise RemoteProtocolError(f"more than {MOST_REPOSITORIES} repositories are open")
    resolved = resolve(agent.policy.roots, request.path)
    repository = open_at(agent, resolved)
    try:
        raw, _, unapplied = repository.head()
    except IntegrityError:
        # Whoever asks for the head is told why; ``repo.recover`` may be able to write it anew.
        raw, unapplied = b"", False
    except BaseException:
        repository.close()
        raise
    agent.opened[request.repo] = Opened(repository, resolved)
    call.respond(
        to_wire(
            RepoOpened(
                repo_id=repository.repo_id,
                algorithm=repository.algorithm,
                backend=repository.backend,
                head=raw,
                role=agent.policy.role.value,
                unapplied=unapplied,
                settings=repository.settings,
            )
        )
    )


@answers(InitRepo)
def init_repository(agent: Agent, call: Call, request: InitRepo) -> None:
    resolved = resolve(agent.policy.roots, request.path)
    record = make_at(agent, resolved, request)
    notes = unusual_at(resolved)
    call.respond(to_wire(RepoInitialized(head=record.to_bytes(), notes=notes)))


@answers(TakeDataset)
def take_dataset(agent: Agent, call: Call, request: TakeDataset) -> None:
    resolved = resolve(agent.policy.roots, request.path)
    record, notes = take_at(agent, resolved, request, call.check)
    call.respond(to_wire(RepoInitialized(head=record.to_bytes(), notes=few([*notes, *unusual_at(resolved)]))))


@answers(GetManifest)
def get_manifest(agent: Agent, call: Call, request: GetManifest) -> None:
    repository = agent.repository(request.repo).repository
    reader = repository.reader(None)
    try:
        same = reader.record.digest == request.have
        known = same or (bool(request.have) and repository.holds(request.have))
        found = ManifestFound(same=same, known=known, head=reader.record.to_bytes())
        call.respond(to_wire(found), body=not same)
        if not same:
            _send_manifest(call, reader)
    finally:
        reader.close()


@answers(GetSnapshot)
def get_snapshot(agent: Agent, call: Call, request: GetSnapshot) -> None:
    reader = agent.repository(request.repo).repository.reader(request.seq)
    try:
        call.respond(to_wire(SnapshotFound(record=reader.record.to_bytes())), body=True)
        _send_manifest(call, reader)
    finally:
        reader.close()


def _send_manifest(call: Call, reader: SnapshotReader) -> None:
    for block in reader.manifest_blocks():
        call.send(block, Flag.ZLIB)
    call.end()


@answers(GetRecords)
def get_records(agent: Agent, call: Call, request: GetRecords) -> None:
    last = min(request.last, request.first + 499)
    found = agent.repository(request.repo).repository.records(request.first, last)
    room = _MOST_RECORD_BYTES
    kept: list[bytes] = []
    for raw in found:
        room -= len(raw) + 8
        if room < 0 and kept:
            break
        kept.append(raw)
    call.respond(to_wire(RecordsFound(records=tuple(kept))))


@answers(Examine)
def examine_tree(agent: Agent, call: Call, request: Examine) -> None:
    agent.repository(request.repo).repository.examine(call.check)
    call.respond(to_wire(Nothing()))


@answers(ListOutside)
def list_outside(agent: Agent, call: Call, request: ListOutside) -> None:
    call.respond(to_wire(agent.repository(request.repo).repository.find_outside(agent.notice, request.skip)))


@answers(Recover)
def recover(agent: Agent, call: Call, request: Recover) -> None:
    opened = agent.repository(request.repo)
    if opened.transaction is not None:
        raise RemoteProtocolError("a transaction is open")
    notes = opened.repository.recover(agent.claim("", "", ""))
    call.respond(to_wire(Recovered(notes=few(notes))))


@answers(GetFiles)
def get_files(agent: Agent, call: Call, request: GetFiles) -> None:
    reader = agent.repository(request.repo).repository.reader(request.seq)
    try:
        call.respond(to_wire(Nothing()), body=True)
        compressor = Compressor(call.compression)
        for payload in _contents(reader, _wanted(call)):
            call.send(*compressor.compress(payload))
        call.end()
    finally:
        reader.close()


def _wanted(call: Call) -> Iterator[Wanted]:
    rows = RowReader(content_row)
    number = 0
    for payload in call.payloads():
        for row in rows.read(payload):
            yield Wanted(number, row.path, row.content, row.size)
            number += 1


def _contents(reader: SnapshotReader, wanted: Iterator[Wanted]) -> Iterator[bytes]:
    """The file stream of what is wanted; OutsideChangeError when content is not here, or no longer."""
    current: dict[str, ReadFile | None] = {}

    def listed() -> Iterator[Source]:
        for source in reader.sources(wanted):
            current[source.wanted.path] = source.file
            yield Source(source.wanted.number, source.wanted.path, source.wanted.size)

    def open_read(path: str) -> ReadFile:
        opened = current.pop(path)
        if opened is None:
            raise FileNotFoundError
        return _Steady(opened)

    try:
        yield from payloads(open_read, listed(), lambda _source, _stat: True)
    except SourceChanged as error:
        raise OutsideChangeError(
            f"the server has no file any more with the content that snapshot s{reader.record.seq} "
            f"gives to {escape(error.path)}",
            hint="somebody changed it in the repository's folder: restore it there, or run 'dsg adopt'",
            facts={"path": error.path},
        ) from None
    finally:
        for left in current.values():
            if left is not None:
                left.close()


class _Steady:
    """An open file whose stat leaves out what a rename changes: a sync may move it into the history."""

    def __init__(self, file: ReadFile) -> None:
        self.file = file

    def stat(self) -> Stat:
        return self.file.stat()._replace(ctime_ns=0, nlink=1)

    def read(self, size: int, /) -> bytes:
        return self.file.read(size)

    def holes(self) -> Iterator[tuple[int, int]]:
        return self.file.holes()

    def seek(self, offset: int, /) -> None:
        self.file.seek(offset)

    def close(self) -> None:
        self.file.close()


@answers(Doctor)
def doctor(agent: Agent, call: Call, request: Doctor) -> None:
    resolved = resolve(agent.policy.roots, request.path) if request.path else ""
    call.respond(to_wire(DoctorReport(checks=tuple(examine_server(agent, resolved)))))

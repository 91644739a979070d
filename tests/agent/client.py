"""A small synchronous client: a real agent process at the other end of two pipes."""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from protocol.codec import pack_rows
from protocol.compress import inflate
from protocol.connection import Connection, cost
from protocol.errors import DsgError
from protocol.filestream import OpKind, Packer, unpack
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.messages import (
    Begin,
    Changes,
    Commit,
    GetFiles,
    GetManifest,
    InitRepo,
    OpenRepo,
    Prepare,
    TakeDataset,
    Upload,
    parse_result,
    request_wire,
)
from protocol.paths import sort_key
from protocol.preamble import PreambleFound, PreambleScanner
from protocol.records import SnapshotRecord
from protocol.wire_events import (
    BodyEnded,
    DataReceived,
    ErrorReceived,
    Failed,
    GoodbyeReceived,
    NoticeReceived,
    ResponseReceived,
)

TIMEOUT_S = 30.0
REPO_ID = "repo-0123456789"
_SOURCE = Path(__file__).resolve().parents[2]


class AgentGone(Exception):
    """The agent's output ended, or it said goodbye, with this error if it gave one."""

    def __init__(self, error: DsgError | None = None) -> None:
        super().__init__(str(error or "the agent is gone"))
        self.error = error


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def file_entry(
    path: str,
    content: bytes,
    *,
    seq: int = 1,
    executable: bool = False,
    mtime_ns: int = 1_600_000_000_000_000_000,
) -> Entry:
    return Entry(path, FILE, sha(content), executable, len(content), mtime_ns, "ann", seq)


def link_entry(path: str, target: str, *, seq: int = 1) -> Entry:
    return Entry(path, LINK, target.encode(), False, 0, 0, "ann", seq)


class Client:
    """One agent, started with ``options`` unless ``process`` is one already, and the connection to it."""

    def __init__(
        self,
        *options: str,
        failpoints: str = "",
        environment: dict[str, str] | None = None,
        features: Iterable[str] = ("zstd",),
        process: subprocess.Popen[bytes] | None = None,
        python: str = sys.executable,
        **popen: Any,
    ) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(_SOURCE),
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        }
        if failpoints:
            env["DSG_FAILPOINTS"] = failpoints
        self.process = process or subprocess.Popen(
            [python, "-m", "dsg_remote_agent", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=popen.pop("stderr", None),
            env=env,
            bufsize=0,
            **popen,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.input, False)
        self.notices: list[str] = []
        self.notes: tuple[str, ...] = ()
        self._events: list[Any] = []
        self._bodies: dict[int, list[bytes]] = {}
        self.handle = 0
        scanner = PreambleScanner()
        while True:
            found = scanner.receive(self._read())
            if found is not None:
                break
        assert isinstance(found, PreambleFound), found
        self.preamble = found.preamble
        self.conn = Connection.client(found.preamble, "test", features)
        self._take(found.rest)

    # The wire.

    def _read(self, timeout: float = TIMEOUT_S) -> bytes:
        if not select.select([self.output], [], [], timeout)[0]:
            raise TimeoutError("the agent says nothing")
        received = os.read(self.output, 1 << 20)
        if not received:
            raise AgentGone
        return received

    def _take(self, received: bytes) -> None:
        self._events += self.conn.receive(received)

    def pump(self) -> None:
        """Send what waits, without waiting for the agent to read all of it before its own output is read."""
        while pieces := self.conn.bytes_to_send():
            data = memoryview(b"".join(pieces))
            while data:
                readable, writable, _ = select.select([self.output], [self.input], [], TIMEOUT_S)
                if not readable and not writable:
                    raise TimeoutError("the agent neither reads nor writes")
                if readable:
                    self._take(self._read())
                if writable:
                    try:
                        data = data[os.write(self.input, data) :]
                    except BrokenPipeError:
                        raise AgentGone from None

    def next_event(self, timeout: float = TIMEOUT_S) -> Any:
        self.pump()
        deadline = time.monotonic() + timeout
        while not self._events:
            self._take(self._read(max(0.01, deadline - time.monotonic())))
            self.pump()
        return self._events.pop(0)

    # Requests.

    def send(self, request: Any, body: Iterable[bytes] | None = None) -> int:
        """Issue a request with its body; its stream."""
        stream = self.conn.send_request(*request_wire(request), body=body is not None)
        if body is not None:
            for payload in body:
                while (room := self.conn.can_send(stream)) is not None and room < cost(payload):
                    self._later(self.next_event())
                if room is None:
                    break
                self.conn.send_data(stream, payload)
                self.pump()
            self.conn.send_end(stream)
        self.pump()
        return stream

    def _later(self, event: Any) -> None:
        if isinstance(
            event, (ResponseReceived, ErrorReceived, DataReceived, BodyEnded, Failed, GoodbyeReceived)
        ):
            self._kept.append(event)

    _kept: list[Any]

    def __getattr__(self, name: str) -> Any:
        if name == "_kept":
            self._kept = []
            return self._kept
        raise AttributeError(name)

    def answer(self, stream: int) -> tuple[dict[str, Any], list[bytes]]:
        """The fields and the inflated payloads of the answer; raises the error that came instead."""
        fields: dict[str, Any] | None = None
        payloads: list[bytes] = []
        while True:
            event = self._kept.pop(0) if self._kept else self.next_event()
            match event:
                case ErrorReceived() if event.stream == stream:
                    raise event.error
                case ResponseReceived() if event.stream == stream:
                    fields = event.fields
                    if not event.has_body:
                        return fields, payloads
                case DataReceived() if event.stream == stream:
                    payloads.append(bytes(inflate(event.payload, event.flags)))
                    self.conn.consumed(event)
                case BodyEnded() if event.stream == stream:
                    assert fields is not None
                    return fields, payloads
                case NoticeReceived():
                    self.notices.append(str(event.fields.get("name")))
                case Failed():
                    raise AgentGone(event.error)
                case GoodbyeReceived():
                    raise AgentGone(event.error)
                case _:
                    pass

    def call(self, request: Any, body: Iterable[bytes] | None = None) -> Any:
        """Issue a request and wait for its parsed result (and its payloads, when it has a body)."""
        fields, payloads = self.answer(self.send(request, body))
        self.payloads = payloads
        return parse_result(type(request), fields)

    # What most tests do.

    def init(self, path: Path | str, *, group: str = "", repo_id: str = REPO_ID) -> SnapshotRecord:
        done = self.call(
            InitRepo(
                path=str(path),
                repo_id=repo_id,
                algorithm="sha256",
                group=group,
                user="ann",
                host="laptop",
                settings='{"name": "x"}',
            )
        )
        return SnapshotRecord.from_bytes(done.head)

    def take(self, path: str, source: str, *, group: str = "", repo_id: str = REPO_ID) -> SnapshotRecord:
        """Have the dataset ``source`` taken over as a repository; the record of s0, and ``notes``."""
        done = self.call(
            TakeDataset(
                path=path,
                source=source,
                repo_id=repo_id,
                algorithm="sha256",
                group=group,
                user="ann",
                host="laptop",
                settings='{"name": "x"}',
            )
        )
        self.notes = done.notes
        return SnapshotRecord.from_bytes(done.head)

    def open(self, path: Path | str) -> SnapshotRecord:
        """Open a repository as the current handle; its head."""
        self.handle += 1
        return SnapshotRecord.from_bytes(self.call(OpenRepo(repo=self.handle, path=str(path))).head)

    def manifest(self) -> Manifest:
        found = self.call(GetManifest(repo=self.handle, have=""))
        record = SnapshotRecord.from_bytes(found.head)
        return Manifest.from_bytes(b"".join(self.payloads), record.manifest).validate()

    def begin(self, txid: str, base: SnapshotRecord, *, adopt: bool = False, user: str = "ann") -> Any:
        return self.call(
            Begin(repo=self.handle, txid=txid, base=base.digest, user=user, host="laptop", adopt=adopt)
        )

    def stage(self, txid: str, changes: list[Entry | str], contents: dict[str, bytes]) -> None:
        """Send changes and contents."""
        self.call(Changes(repo=self.handle, txid=txid), change_body(changes))
        self.call(Upload(repo=self.handle, txid=txid), upload_body(changes, contents))

    def prepare(self, txid: str, manifest: Manifest, message: str = "") -> SnapshotRecord:
        done = self.call(
            Prepare(
                repo=self.handle,
                txid=txid,
                manifest=manifest.digest,
                message=message,
                user="ann",
                host="laptop",
            )
        )
        return SnapshotRecord.from_bytes(done.record)

    def commit(self, txid: str, record: SnapshotRecord) -> Any:
        return self.call(Commit(repo=self.handle, txid=txid, record=record.digest))

    def sync(
        self,
        txid: str,
        puts: dict[str, bytes],
        deletes: Iterable[str] = (),
        links: dict[str, str] | None = None,
    ) -> SnapshotRecord:
        """A whole transaction against the current head; the record it made."""
        base, manifest = self.head_and_manifest()
        changes = changes_of(puts, deletes, links or {}, base.seq + 1)
        self.begin(txid, base)
        self.stage(txid, changes, puts)
        record = self.prepare(txid, merged(manifest, changes))
        self.commit(txid, record)
        return record

    def head_and_manifest(self) -> tuple[SnapshotRecord, Manifest]:
        found = self.call(GetManifest(repo=self.handle, have=""))
        record = SnapshotRecord.from_bytes(found.head)
        return record, Manifest.from_bytes(b"".join(self.payloads), record.manifest)

    def get(self, seq: int, entries: Iterable[Entry]) -> dict[str, bytes]:
        """The contents of files as of a snapshot, checked against their digests."""
        wanted = [entry for entry in entries if entry.kind == FILE]
        self.call(
            GetFiles(repo=self.handle, seq=seq),
            pack_rows((entry.path, entry.content, entry.size) for entry in wanted),
        )
        contents = {entry.path: bytearray() for entry in wanted}
        done = set()
        for payload in self.payloads:
            for op in unpack(payload):
                target = contents[wanted[op.file].path]
                if op.kind is OpKind.BYTES:
                    assert op.offset == len(target)
                    target += op.content
                elif op.kind is OpKind.HOLE:
                    target += bytes(op.length)
                elif op.kind is OpKind.DONE:
                    assert op.length == len(target)
                    done.add(op.file)
        assert len(done) == len(wanted)
        for entry in wanted:
            assert sha(bytes(contents[entry.path])) == entry.content, entry.path
        return {path: bytes(content) for path, content in contents.items()}

    # The end.

    def close(self) -> int:
        """Close the agent's input and wait for it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(TIMEOUT_S)
        self.process.stdout.close()
        return status

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            try:
                self.close()
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        else:
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()


def change_body(changes: Iterable[Entry | str]) -> Iterator[bytes]:
    return pack_rows((change,) if isinstance(change, str) else change for change in changes)


def upload_body(changes: list[Entry | str], contents: dict[str, bytes]) -> Iterator[bytes]:
    packer = Packer()
    for number, change in enumerate(changes):
        if isinstance(change, Entry) and change.kind == FILE and change.path in contents:
            content = contents[change.path]
            yield from packer.chunk(number, 0, content)
            yield from packer.done(number, len(content))
    yield from packer.flush()


def changes_of(
    puts: dict[str, bytes], deletes: Iterable[str], links: dict[str, str], seq: int
) -> list[Entry | str]:
    changes: list[Entry | str] = [file_entry(path, content, seq=seq) for path, content in puts.items()]
    changes += [link_entry(path, target, seq=seq) for path, target in links.items()]
    changes += deletes
    return sorted(changes, key=lambda c: sort_key(c if isinstance(c, str) else c.path))


def merged(base: Manifest, changes: Iterable[Entry | str]) -> Manifest:
    """The new manifest, the simple way."""
    entries = {entry.path: entry for entry in base}
    for change in changes:
        if isinstance(change, str):
            del entries[change]
        else:
            entries[change.path] = change
    return Manifest.from_entries(sorted(entries.values(), key=lambda e: sort_key(e.path)), base.algorithm)


def tree_of(folder: Path) -> dict[str, bytes | str]:
    """What people see in a repository's folder: files with content, links with '-> target'."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0].startswith(".dsg"):
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = path.read_bytes()
    return found

"""``log`` and ``list-files``: what the repository remembers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.events import Emit, Phase, PhaseStarted
from dsg_client.sync.site import Site
from dsg_client.sync.survey import ask_head
from protocol.errors import IntegrityError, RemoteProtocolError
from protocol.manifest import LINK, Entry
from protocol.messages import SnapshotState
from protocol.records import SnapshotRecord, check_chain

__all__ = ["list_files", "log"]


async def log(site: Site, number: int, emit: Emit) -> tuple[list[dict[str, Any]], int]:
    """The newest ``number`` records, newest first, their chain checked; and the seq of C."""
    site.emit = emit
    cache = site.cache()
    emit(PhaseStarted(Phase.CONNECT))
    async with site.connect() as repo:
        head = SnapshotRecord.from_bytes(repo.opened.head)
        first = max(0, head.seq - number + 1)
        raw = await repo.records(first, head.seq)
        states = {state.seq: state for state in await _states(repo, first, head.seq)}
    records = [SnapshotRecord.from_bytes(one) for one in raw]
    check_chain(records)
    if records and records[-1].digest != head.digest:
        raise IntegrityError(
            "the records that the server sent do not end in its newest snapshot",
            hint="Someone may just have synced: run it again. If it stays, the server's records are damaged.",
        )
    rows = []
    for record in reversed(records):
        state = states.get(record.seq)
        rows.append(
            {
                **record.to_map(),
                "record": record.digest,
                "pruned": state is not None and state.pruned,
                "protected": state.kept if state is not None else "",
            }
        )
    return rows, cache.seq


async def _states(repo: RemoteRepo, first: int, last: int) -> list[SnapshotState]:
    try:
        return await repo.stock(first, last)
    except RemoteProtocolError:
        return []  # an agent that is older than retention: it has pruned nothing


async def list_files(
    site: Site, patterns: tuple[str, ...], from_remote: bool, emit: Emit
) -> tuple[int, Iterator[dict[str, Any]]]:
    """The files of C, or of R at its head, that match; (seq, rows)."""
    site.emit = emit
    cache = site.cache()
    if not from_remote:
        return cache.seq, _rows(cache, patterns)
    emit(PhaseStarted(Phase.CONNECT))
    async with site.connect() as repo:
        head = await ask_head(repo, cache, str(site.address))
    return head.record.seq, _rows(head.manifest, patterns)


def _rows(entries: Iterable[Entry], patterns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if patterns and not any(_matches(entry.path, pattern) for pattern in patterns):
            continue
        link = entry.kind == LINK
        yield {
            "path": entry.path,
            "kind": "link" if link else "file",
            "size": entry.size,
            "mtime": entry.mtime_ns / 1e9,
            "executable": entry.executable,
            "digest": "" if link else entry.content.hex(),
            "target": entry.content.decode() if link else "",
            "who": entry.who,
            "seq": entry.seq,
        }


def _matches(path: str, pattern: str) -> bool:
    """A path, a folder that it lies in, or a shell pattern for the path or its last component."""
    plain = pattern.removeprefix("./").rstrip("/")
    return (
        path == plain
        or path.startswith(f"{plain}/")
        or fnmatchcase(path, pattern)
        or ("/" not in pattern and fnmatchcase(path.rpartition("/")[2], pattern))
    )

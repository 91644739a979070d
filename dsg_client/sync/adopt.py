"""``adopt``: a snapshot of what was changed in the repository's folder without DSG."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from attrs import evolve, frozen

from dsg_client.core.merge import Edit
from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.deciding import commit_there
from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted
from dsg_client.sync.settling import settle_leftover
from dsg_client.sync.site import Site
from dsg_client.sync.survey import Head, ask_head
from dsg_client.sync.threads import all_over
from protocol.errors import DsgError, InterruptedSyncError, Outcome, RemoteProtocolError
from protocol.manifest import Entry, Manifest
from protocol.messages import OutsideChanges
from protocol.paths import sort_key
from protocol.records import SnapshotRecord
from protocol.splice import splice

__all__ = ["Adopted", "adopt"]


@frozen
class Adopted:
    """What was, or with ``seq`` None would be, taken in."""

    seq: int | None
    modified: tuple[str, ...]
    deleted: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to take in."""
        return not (self.modified or self.deleted or self.added)

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "seq": self.seq,
            "modified": list(self.modified),
            "deleted": list(self.deleted),
            "added": list(self.added),
        }


async def adopt(site: Site, *, dry_run: bool, message: str, emit: Emit) -> Adopted:
    """Take in changes made on the server outside DSG, in as many snapshots as it takes (1,000 paths each).

    What was changed or deleted is taken in whole; new files only where this
    folder's rules select them. L and C do not change.
    """
    site.emit = emit
    if dry_run:
        emit(PhaseStarted(Phase.CONNECT))
        async with site.connect() as repo:
            page = await repo.outside()
            found = _in_scope(site, page)
            skip = 0
            while page.more and page.added:
                skip += len(page.added)
                page = await repo.outside(skip)
                found = evolve(found, added=found.added + _in_scope(site, page).added)
        return found
    with site.workdir.lock("dsg adopt"):
        await settle_leftover(site)
        cache = site.cache()
        total = Adopted(None, (), (), ())
        emit(PhaseStarted(Phase.CONNECT))
        async with site.connect() as repo:
            more = True
            while more:
                head = await ask_head(repo, cache, str(site.address))
                some, more = await _adopt_once(site, repo, head, message)
                if some.seq is None:
                    break
                total = Adopted(
                    some.seq,
                    total.modified + some.modified,
                    total.deleted + some.deleted,
                    total.added + some.added,
                )
        return total


def _in_scope(site: Site, found: OutsideChanges) -> Adopted:
    added = tuple(path for path in found.added if site.scope.in_scope(path))
    return Adopted(None, found.modified, found.deleted, added)


async def _adopt_once(site: Site, repo: RemoteRepo, head: Head, message: str) -> tuple[Adopted, bool]:
    """One transaction; (what it took in, whether there is more)."""
    txid = secrets.token_hex(16)
    try:
        begun = await repo.begin(txid, base=head.record.digest, user=site.user, host=site.host, adopt=True)
        for note in begun.notes:
            site.emit(Note(note))
        page, skip = begun.outside, 0
        found = _in_scope(site, page)
        while found.nothing and page.more and page.added:
            # All that was told is out of scope; what is not may stand behind it.
            skip += len(page.added)
            page = await repo.outside(skip)
            found = _in_scope(site, page)
        paths = sorted((*found.modified, *found.deleted, *found.added), key=sort_key)
        rows = await repo.adopt(txid, site.user, paths) if paths else []
        if not rows:
            await repo.abort(txid)
            return found, False
        edits = _edits(head.manifest, rows)
        merged = await asyncio.to_thread(splice, head.manifest, edits)
        raw = await repo.prepare(
            txid,
            manifest=merged.digest,
            message=message or "adopted changes made on the server",
            user=site.user,
            host=site.host,
        )
        record = SnapshotRecord.from_bytes(raw)
        if (record.txid, record.manifest) != (txid, merged.digest):
            raise RemoteProtocolError("the server prepared another snapshot than the one that was asked for")
    except (DsgError, asyncio.CancelledError):
        await _undo(repo, txid)
        raise
    await _commit(site, repo, txid, record)
    return Adopted(record.seq, found.modified, found.deleted, found.added), bool(page.more)


async def _commit(site: Site, repo: RemoteRepo, txid: str, record: SnapshotRecord) -> None:
    """Commit; once that began, a cancellation waits for its end."""
    committing = asyncio.ensure_future(commit_there(site, repo, txid, record))
    cancelled = await all_over([committing])
    for note in committing.result():
        site.emit(Note(note, warning=True))
    if cancelled:
        raise InterruptedSyncError(
            f"interrupted while s{record.seq} was being committed; it is complete",
            outcome=Outcome.COMMITTED,
            facts={"seq": record.seq},
        )


async def _undo(repo: RemoteRepo, txid: str) -> None:
    try:
        await asyncio.wait_for(repo.abort(txid), 30)
    except (DsgError, TimeoutError):
        pass  # never begun, or the agent undoes it when the connection ends


def _edits(manifest: Manifest, rows: list[Any]) -> list[Edit]:
    changed = {row.path if isinstance(row, Entry) else row: row for row in rows}
    before = {entry.path: entry for entry in manifest if entry.path in changed}
    return [
        Edit(path, before.get(path), row if isinstance(row, Entry) else None)
        for path, row in sorted(changed.items(), key=lambda item: sort_key(item[0]))
    ]

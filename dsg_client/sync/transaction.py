"""The Transaction: one sync's changes on both sides, all or nothing.

    async with Transaction(...) as transaction:     # begin
        await transaction.upload_files()
        await transaction.download_files()
        await transaction.sync_metadata()           # verify, flush, prepare, last look, journal
        done = await transaction.commit()           # the decision, then L and C forward

Leaving it with an error rolls both sides back, up to the moment at which the
commit was sent; from there the outcome is found out, and followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from dsg_client.core.plan import Plan
from dsg_client.local.cache import Cache
from dsg_client.local.index import IndexChanges
from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.beginning import begin_there
from dsg_client.sync.deciding import commit_there
from dsg_client.sync.events import Note, Phase, PhaseStarted
from dsg_client.sync.localside import LocalSide, Settled, settle, storage_error
from dsg_client.sync.localtree import LocalTree
from dsg_client.sync.site import Site
from dsg_client.sync.threads import all_over, over, to_the_end
from dsg_client.sync.transfer import Meter, fetch, send
from protocol.digest import DEFAULT
from protocol.errors import (
    DsgError,
    InDoubtError,
    IntegrityError,
    InternalError,
    InterruptedSyncError,
    LocalChangedError,
    Outcome,
    RemoteProtocolError,
)
from protocol.manifest import FILE, Manifest
from protocol.messages import OutsideChanges
from protocol.records import SnapshotRecord
from protocol.transaction import Step
from protocol.tree.change import JournalState, read_journal
from protocol.tree.send import Source, payloads
from protocol.value import Value

__all__ = ["Base", "Done", "Transaction"]


class Base(Value):
    """What the plan stands on: the head and the whole manifest of R, and C as it was in scope."""

    head: SnapshotRecord
    manifest: Manifest
    cache: Manifest
    rules: str  # digest of the scope rules of this sync


class Done(Value):
    """A committed transaction: the snapshot that L agrees with now, and what was held back."""

    record: SnapshotRecord
    made_snapshot: bool
    settled: Settled
    notes: tuple[str, ...]


class Outlook(Value):
    """What R and C will be: worked out while the server begins."""

    remote: Manifest
    cache: Manifest


class Transaction:
    """One plan being carried out; see the module's text. The folder's lock is the caller's."""

    def __init__(
        self,
        site: Site,
        repo: RemoteRepo,
        plan: Plan,
        base: Base,
        local: LocalTree,
        *,
        txid: str,
        message: str = "",
        accept_outside: Callable[[OutsideChanges], bool] = lambda _: False,
    ) -> None:
        self._site = site
        self._repo = repo
        self._plan = plan
        self._base = base
        self._txid = txid
        self._message = message
        self._accept_outside = accept_outside
        self._algorithm = base.manifest.algorithm or DEFAULT
        self._local = LocalSide(site.tree, plan, local, txid, self._algorithm, site.failpoints)
        self._meter = Meter(
            site.emit,
            files_total=sum(c.moves_content for c in (*plan.uploads, *plan.downloads)),
            bytes_total=plan.upload_bytes + plan.download_bytes,
        )
        self._merging: asyncio.Future[Outlook] | None = None
        self._record: SnapshotRecord = base.head
        self._begun = False
        self._journaled = False
        self._sent = False
        self._decided = False  # the one or the other side's journal says so
        self._over = False
        self._notes: list[str] = []

    # Begin.

    async def __aenter__(self) -> Transaction:
        await to_the_end(self._local.check_room)
        try:
            self._merging = asyncio.get_running_loop().run_in_executor(None, self._work_out)
            if self._plan.changes_remote:
                await self._begin()
            await to_the_end(self._local.open)
        except BaseException:
            await self._roll_back()
            raise
        self._site.emit(PhaseStarted(Phase.TRANSFER))
        return self

    async def _begin(self) -> None:
        # Set before the answer: a cancelled begin may have begun.
        self._begun = True
        self._notes += await begin_there(
            self._site,
            self._repo,
            self._txid,
            base=self._base.head.digest,
            need=self._plan.upload_bytes,
            accept=self._accept_outside,
        )

    # The bytes.

    async def upload_files(self) -> None:
        """Tell the server the whole change and send the contents it needs."""
        if not self._plan.changes_remote:
            return
        edits = list(self._plan.remote_edits())
        moving = {change.path for change in self._plan.uploads if change.moves_content}
        sources = [
            Source(number, edit.path, edit.after.size)
            for number, edit in enumerate(edits)
            if edit.after is not None and edit.after.kind == FILE and edit.path in moving
        ]
        rows = ((e.path,) if e.after is None else e.after for e in edits)
        async with self._repo.changes(self._txid, rows):
            if sources:
                await self._send(sources)

    async def _send(self, sources: list[Source]) -> None:
        async with self._repo.upload(self._txid) as upload:
            expected = self._local.expected_stat
            steps = payloads(self._site.tree.open_read, sources, lambda s, stat: expected(s.path, stat))
            await send(upload, steps, self._compression(), self._meter)
            try:
                await upload.finish()
            except IntegrityError as refused:
                # What arrived is not what was scanned, though the times of the file say so: neither may the
                # index be believed, or every further sync would end here.
                self._site.forget_index()
                raise LocalChangedError(
                    refused.message, hint="Run 'dsg sync' again when nothing is writing to it."
                ) from refused
        self._meter.add(files=len(sources))

    async def download_files(self) -> None:
        """Fetch what the plan brings into staging."""
        if self._local.wanted:
            rows = [(entry.path, entry.content, entry.size) for entry in self._local.wanted]
            async with self._repo.get_files(self._base.head.seq, rows) as download:
                await fetch(download, self._local.arrivals, self._meter)
        await to_the_end(self._local.stage_rest)
        await to_the_end(self._site.failpoints.reach, Step.DOWNLOADED)

    def _compression(self) -> str:
        return "zstd" if "zstd" in self._repo.agent.session.features else "zlib"

    # Metadata.

    async def sync_metadata(self) -> None:
        """Make both sides' staging durable, let the server prepare, and write the journal here."""
        self._site.emit(PhaseStarted(Phase.COMMIT))
        self._site.save_index_ahead()  # from here on the server has most to do
        flushing = asyncio.ensure_future(to_the_end(self._local.flush))
        try:
            if self._plan.changes_remote:
                await self._prepare_remote()
            await to_the_end(self._stage_cache, (await self._outlook()).cache)
        finally:
            cancelled = await all_over([flushing])
        if cancelled:
            raise asyncio.CancelledError
        flushing.result()
        await to_the_end(self._site.failpoints.reach, Step.LOCAL_FLUSHED)
        await to_the_end(self._local.check_unchanged)
        await to_the_end(self._site.failpoints.reach, Step.LOCAL_CHECKED)
        await to_the_end(self._write_journal)
        await to_the_end(self._site.failpoints.reach, Step.LOCAL_PREPARED)

    async def _prepare_remote(self) -> None:
        base = self._base
        merged = (await self._outlook()).remote
        raw = await self._repo.prepare(
            self._txid,
            manifest=merged.digest,
            message=self._message,
            user=self._site.user,
            host=self._site.host,
        )
        record = SnapshotRecord.from_bytes(raw)
        if (record.txid, record.manifest, record.parent, record.seq) != (
            self._txid,
            merged.digest,
            base.head.digest,
            base.head.seq + 1,
        ):
            raise RemoteProtocolError(
                "the server prepared another snapshot than the one that was asked for",
                hint="Update dsg-sync on both machines to the same version.",
            )
        self._record = record

    def _work_out(self) -> Outlook:
        plan, base = self._plan, self._base
        merged = base.manifest
        if plan.changes_remote:
            merged = plan.merged_remote(base.manifest)
        if plan.caches_all(base.cache, base.manifest):
            return Outlook(merged, merged)
        return Outlook(merged, Manifest.from_entries(plan.new_cache(base.cache, merged), self._algorithm))

    async def _outlook(self) -> Outlook:
        assert self._merging is not None, "begun"
        return await over(self._merging)

    def _stage_cache(self, manifest: Manifest) -> None:
        record = self._record
        self._local.stage_cache(Cache(record.repo_id, record.digest, record.seq, self._base.rules, manifest))

    def _write_journal(self) -> None:
        # Set before: a journal that may exist is never overlooked.
        self._journaled = True
        site = self._site
        self._local.prepare(
            site.workdir.machine,
            site.bound_to,
            {
                "kind": "sync",
                "remote": self._plan.changes_remote,
                "repo_id": self._record.repo_id,
                "seq": self._record.seq,
                "record": self._record.to_bytes(),
                "address": str(site.address),
            },
        )

    # The decision.

    async def commit(self) -> Done:
        """Decide, and carry the decision out here. Once it began, a cancellation waits for its end.

        Raises InDoubtError when it cannot be known whether the server committed.
        """
        committing = asyncio.ensure_future(self._commit())
        interrupted = False
        while not committing.done():
            try:
                await asyncio.wait([committing])
            except asyncio.CancelledError:
                if not interrupted:
                    self._site.emit(Note("finishing the commit that has begun ..."))
                interrupted = True
        try:
            done = committing.result()
        except DsgError:
            raise
        except Exception as error:
            raise self._unforeseen(error) from error
        if interrupted:
            raise InterruptedSyncError(
                f"interrupted while s{done.record.seq} was being committed; it is complete",
                outcome=Outcome.COMMITTED,
                facts={"seq": done.record.seq},
            )
        return done

    def _unforeseen(self, error: Exception) -> DsgError:
        """A fault that nobody expected while committing: what became of the sync is told all the same."""
        if self._sent and not self._decided:
            return InDoubtError(
                f"whether the server committed this sync is not known: {type(error).__name__}: {error}",
                hint="Nothing was changed here. Run 'dsg sync' again: it settles this first.",
                facts={"txid": self._txid},
            )
        outcome = Outcome.COMMITTED if self._decided else Outcome.ABORTED
        if isinstance(error, OSError):
            failure: DsgError = storage_error("Carrying out the sync", error)
        else:
            failure = InternalError(f"{type(error).__name__}: {error}", hint="This is a bug in DSG.")
        failure.outcome = outcome
        return failure

    async def _commit(self) -> Done:
        if self._plan.changes_remote:
            await self._decide_remote()
            self._decided = True
        try:
            await to_the_end(self._decide_local)
            self._over = self._decided = True
            await to_the_end(self._site.failpoints.reach, Step.LOCAL_DECIDED)
            self._site.emit(PhaseStarted(Phase.APPLY))
            settled = await to_the_end(self._settle)
        except DsgError as error:
            if self._decided:
                # Whatever stopped us here: the transaction holds, and the next command goes on with it.
                error.outcome = Outcome.COMMITTED
            raise
        return Done(self._record, self._plan.changes_remote, settled, tuple(self._notes))

    def _decide_local(self) -> None:
        try:
            self._local.decide()
        except DsgError:
            # The rename may have taken place and only its flush have failed; what the disk says counts.
            found = read_journal(self._site.tree)
            if found is None or found[0] is not JournalState.DECIDED:
                raise

    async def _decide_remote(self) -> None:
        self._sent = True
        try:
            self._notes += await commit_there(self._site, self._repo, self._txid, self._record)
        except DsgError as error:
            self._sent = error.outcome is not Outcome.ABORTED
            raise

    def _settle(self) -> Settled:
        site = self._site
        found = read_journal(site.tree)
        if found is None or found[1].txid != self._txid:
            raise IntegrityError(
                "the journal of this sync vanished from .dsg while it was being applied",
                hint="Run 'dsg status'; the server has committed.",
                outcome=Outcome.COMMITTED,
            )

        def note(changes: IndexChanges) -> None:
            site.save_index(changes, self._algorithm)

        return settle(site.tree, found[1], site.failpoints, note, site.clock)

    # The way out.

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self._over:
            if self._sent:
                # In doubt: the journal stays, the next command settles it.
                return
            await self._roll_back()

    async def _roll_back(self) -> None:
        """Undo both sides; a cancellation in the middle of it waits."""

        async def undo() -> None:
            if self._begun and self._repo.agent.session.failure is None:
                try:
                    await asyncio.wait_for(self._repo.abort(self._txid), 30)
                except (DsgError, TimeoutError):
                    pass  # the agent undoes it by itself when the connection ends
            if self._merging is not None:
                await all_over([self._merging])
            await to_the_end(self._undo_local)

        undoing = asyncio.ensure_future(undo())
        await all_over([undoing])
        undoing.result()

    def _undo_local(self) -> None:
        from dsg_client.sync.settling import drop_prepared

        if self._journaled:
            drop_prepared(self._site.tree, self._txid)
        self._local.abandon()

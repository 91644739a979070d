"""``sync``: look, plan, and carry the plan out; from the start again when that is the cure."""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import PurePosixPath
from typing import Any, TypeVar

from dsg_client.core.plan import Plan
from dsg_client.local.cache import CACHE_PATH, Cache, encode_cache
from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.events import Attempt, Emit, Note, Phase, PhaseStarted, Planned
from dsg_client.sync.localside import storage_errors
from dsg_client.sync.localtree import LocalTree
from dsg_client.sync.looking import Look, Looking
from dsg_client.sync.results import Changes, SyncResult
from dsg_client.sync.settling import describe_pending, finish_there, held_notes, settle_leftover
from dsg_client.sync.site import Site
from dsg_client.sync.survey import (
    Head,
    announce_rules,
    ask_head,
    look_at_local,
    plan_sync,
    records_since,
    refuse_conflicts,
    refuse_mass_delete,
    tell_warnings,
)
from dsg_client.sync.threads import all_over, to_the_end
from dsg_client.sync.transaction import Base, Done, Transaction
from protocol.errors import (
    DsgError,
    HeadMovedError,
    LocalStorageError,
    Outcome,
    OutsideChangeError,
    PathsRefusedError,
)
from protocol.manifest import Manifest
from protocol.messages import OutsideChanges
from protocol.paths import escape
from protocol.transaction import Step
from protocol.tree.change import TMP
from protocol.tree.fs import TreeFS
from protocol.value import Value

__all__ = ["SyncOptions", "abreast", "carry_out", "replace_cache", "sync"]

T = TypeVar("T")
U = TypeVar("U")

_REPLANS = 5  # times that a moved head starts a sync again, besides --retries
_LONGEST_WAIT = 60.0


class SyncOptions(Value):
    """What the caller decided. ``prefer``: ``local``, ``remote`` or None."""

    dry_run: bool = False
    message: str = ""
    retries: int = 0
    prefer: str | None = None
    allow_mass_delete: bool = False
    normalize: bool = False


async def sync(site: Site, options: SyncOptions, emit: Emit) -> SyncResult:
    """Bring the folder and its repository together in one transaction.

    Raises a DsgError whose ``outcome`` says what became of it. Errors marked
    transient start the whole sync again, ``options.retries`` times, waiting 1,
    2, 4 ... s; a head that moved does so by itself a few times.
    """
    site.emit = emit
    failed = replans = 0
    while True:
        try:
            with storage_errors("The sync"):
                return await _attempt(site, options)
        except DsgError as error:
            if not error.transient or error.outcome is not Outcome.ABORTED:
                raise
            if isinstance(error, HeadMovedError) and replans < _REPLANS:
                replans += 1
                emit(Note(f"{error.message}; planning again"))
                gc.collect()  # its frames hold L, R and the plan in cycles
                continue
            if failed >= options.retries:
                raise
            wait = min(2.0**failed, _LONGEST_WAIT)
            failed += 1
            emit(Attempt(failed + 1, error.message, wait))
            gc.collect()
            await asyncio.sleep(wait)


async def _attempt(site: Site, options: SyncOptions) -> SyncResult:
    begun = site.ahead.take_look() if site.ahead is not None else None
    async with AsyncExitStack() as stack:
        if not options.dry_run:
            stack.enter_context(site.lock("dsg sync"))
            site.failpoints.reach(Step.LOCAL_LOCKED)
            if begun is None:
                await settle_leftover(site)
        elif pending := describe_pending(site.tree):
            site.emit(Note(pending, warning=True))
        cache = site.cache()
        if options.normalize and not options.dry_run:
            await to_the_end(_normalize, site, cache.manifest.algorithm)
        site.emit(PhaseStarted(Phase.CONNECT))
        look: Looking = begun or Look(site, cache.manifest.algorithm)
        differs = asyncio.Event()
        ahead: list[asyncio.Future[None]] = []

        def will_send() -> bool:
            return not options.dry_run and look.differs

        async def ask() -> tuple[RemoteRepo, Head]:
            repo = await stack.enter_async_context(site.connect(have=cache.record, examine=will_send))
            if not options.dry_run:
                await finish_there(site, repo)
            head = await ask_head(repo, cache, str(site.address))
            if not options.dry_run and repo.opened.role != "read":
                await differs.wait()
                if look.differs:
                    # Something will be sent, it seems: the server looks at its tree while we look at ours.
                    ahead.append(asyncio.ensure_future(repo.examine()))
                    stack.callback(_let_go, ahead)
            return repo, head

        looked, (repo, head) = await abreast(look_at_local(site, look, cache.manifest, differs), ask())
        local = looked.local
        site.failpoints.reach(Step.SCANNED)
        tell_warnings(looked, site.emit)
        site.emit(PhaseStarted(Phase.PLAN))
        plan = await asyncio.to_thread(
            plan_sync,
            site,
            local,
            cache,
            head.manifest,
            head.record.seq + 1,
            options.prefer,
        )
        if plan.conflicts or not plan.changes_remote:
            _let_go(ahead)
        announce_rules(cache, site.scope, plan, site.emit)
        refuse_conflicts(plan, await records_since(repo, cache, head, plan))
        refuse_mass_delete(plan, local, site.scope, options.allow_mass_delete)
        changes = Changes.of(plan)
        if not plan.changes_remote:
            site.save_index_ahead()
        site.emit(
            Planned(
                len(changes.upload),
                changes.upload_bytes,
                len(changes.download),
                changes.download_bytes,
                len(changes.delete_local),
                len(changes.delete_remote),
            )
        )
        site.failpoints.reach(Step.PLANNED)
        if options.dry_run:
            return SyncResult(
                state="dry-run" if changes else "nothing",
                seq=head.record.seq,
                entries=len(local),
                changes=changes,
                plan_digest=plan.digest(),
            )
        return await _carry_out(site, repo, cache, head, local, plan, options)


def _let_go(tasks: list[asyncio.Future[None]]) -> None:
    """Have done with work that nobody waits for; its failure is nobody's."""
    for task in tasks:
        task.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
    tasks.clear()


async def _carry_out(
    site: Site, repo: RemoteRepo, cache: Cache, head: Head, local: LocalTree, plan: Plan, options: SyncOptions
) -> SyncResult:
    changes = Changes.of(plan)
    if not changes:
        return await to_the_end(_cache_only, site, cache, head, local, plan)
    base = Base(head.record, head.manifest, cache.manifest, site.scope.digest)
    done = await carry_out(site, repo, plan, base, local, message=options.message)
    for note in done.notes:
        site.emit(Note(note, warning=True))
    result = SyncResult(
        state="done",
        seq=done.record.seq,
        entries=len(local) + sum(c.before is None for c in plan.downloads) - len(plan.delete_local),
        changes=changes,
        made_snapshot=done.made_snapshot,
        record=done.record.digest,
        held=done.settled.held,
        rescued=done.settled.rescued,
        plan_digest=plan.digest(),
    )
    for note in held_notes(done.settled):
        site.emit(Note(note, warning=True))
    if plan.kept:
        shown = ", ".join(escape(e.path) for e in plan.kept[:5]) + (" ..." if len(plan.kept) > 5 else "")
        site.emit(Note(f"what was here and in no snapshot is kept in .dsg/replaced: {shown}"))
    if result.held:
        raise LocalStorageError(
            f"{len(result.held)} files here could not be brought to s{result.seq}:\n"
            + "\n".join(f"  {escape(path)}: {reason}" for path, reason in result.held[:50]),
            hint="They are as you have them. 'dsg status' shows what a sync would do with them now.",
            outcome=Outcome.COMMITTED,
            facts=result.fields(),
        )
    return result


async def carry_out(
    site: Site,
    repo: RemoteRepo,
    plan: Plan,
    base: Base,
    local: LocalTree,
    *,
    message: str = "",
) -> Done:
    """Run the plan's transaction from begin to commit."""

    def accept(outside: OutsideChanges) -> bool:
        # Files that nobody synced and that are not ours to sync may lie on the server.
        if outside.modified or outside.deleted:
            return False
        _refuse_in_the_way(plan, outside.added)
        return not any(site.scope.in_scope(path) for path in outside.added)

    transaction = Transaction(
        site, repo, plan, base, local, txid=secrets.token_hex(16), message=message, accept_outside=accept
    )
    async with transaction:
        await abreast(transaction.upload_files(), transaction.download_files())
        await transaction.sync_metadata()
        return await transaction.commit()


def _refuse_in_the_way(plan: Plan, added: tuple[str, ...]) -> None:
    """OutsideChangeError when a server's folder that must give way to a file holds what is not synced."""
    uploads = {change.path for change in plan.uploads}
    found = [path for path in added if any(str(folder) in uploads for folder in PurePosixPath(path).parents)]
    if found:
        shown = "".join(f"\n  {escape(path)}" for path in found[:20])
        raise OutsideChangeError(
            "a file is to be uploaded where the server has a folder with files that are not synced:" + shown,
            hint="Move them away on the server, or choose another name here; then sync again.",
            facts={"paths": found},
        )


def _cache_only(site: Site, cache: Cache, head: Head, local: LocalTree, plan: Plan) -> SyncResult:
    """Both sides agree; bring C up to what they agree on, if it is not there yet."""
    record = head.record
    if plan.changes_cache or (cache.record, cache.rules) != (record.digest, site.scope.digest):
        entries = plan.new_cache(cache.manifest, head.manifest)
        manifest = Manifest.from_entries(entries, cache.manifest.algorithm)
        new = Cache(record.repo_id, record.digest, record.seq, site.scope.digest, manifest)
        with storage_errors("Writing the cache"):
            replace_cache(site.tree, new)
    return SyncResult(
        state="done" if plan.changes_cache else "nothing",
        seq=record.seq,
        entries=len(local),
        changes=Changes.of(plan),
        record=record.digest,
        plan_digest=plan.digest(),
    )


def replace_cache(tree: TreeFS, cache: Cache) -> None:
    """Put another C in place, durable and at once. Only while holding the folder's lock."""
    path = f"{TMP}/cache.{secrets.token_hex(4)}"
    tree.make_folders(TMP)
    tree.write_bytes(path, encode_cache(cache))
    tree.move(path, CACHE_PATH)
    tree.flush_folder(".dsg")


def _normalize(site: Site, algorithm: str) -> None:
    """Rename what a scan refuses for its normal form alone; whatever else is wrong, the sync's scan says."""
    from dsg_client.local.normalize import normalize_names, plan_normalization

    scan = site.scan(algorithm)
    try:
        for _ in scan:
            pass
    except PathsRefusedError:
        with storage_errors("Renaming files to Unicode normal form C"):
            found = plan_normalization(site.tree, scan.findings.refused)
            normalize_names(site.tree, found.renames)
        for rename in found.renames:
            site.emit(Note(f"renamed {escape(rename.old)} to {escape(rename.new)}"))
    finally:
        site.save_index(scan.changes, algorithm)


async def abreast(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Run both at once; the first error cancels the other, is waited for, and raised."""
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    except BaseException:
        await _stop(tasks)
        raise
    if await _stop(list(pending)):
        raise asyncio.CancelledError
    for task in tasks:
        if task in done:
            task.result()
    return tasks[0].result(), tasks[1].result()


async def _stop(tasks: list[asyncio.Task[Any]]) -> bool:
    for task in tasks:
        task.cancel()
    return await all_over(tasks)

"""``status``: what a sync would do. Settles nothing, and changes nothing but the stat index."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack

from dsg_client.core.guard import mass_deletions
from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted
from dsg_client.sync.looking import Look
from dsg_client.sync.results import Changes, StatusResult
from dsg_client.sync.run import abreast
from dsg_client.sync.settling import describe_pending
from dsg_client.sync.site import Site
from dsg_client.sync.survey import (
    Head,
    announce_rules,
    ask_head,
    look_at_local,
    plan_sync,
    records_since,
    tell_warnings,
    vanished_folders,
)
from protocol.paths import escape
from protocol.records import SnapshotRecord

__all__ = ["status"]


async def status(site: Site, *, offline: bool, verify: bool, emit: Emit) -> StatusResult:
    """Compare L, C and R, or L and C alone. ``verify`` reads every byte of L again.

    With ``verify``, files whose content changed while size and times did not
    are named: nobody wrote them; a disk did.
    """
    site.emit = emit
    pending = describe_pending(site.tree)
    cache = site.cache()
    algorithm = cache.manifest.algorithm
    look = site.ahead.take_look() if site.ahead is not None else None
    looking = look_at_local(site, look or Look(site, algorithm, verify=verify), cache.manifest)
    since: Mapping[int, SnapshotRecord] = {}
    if offline:
        # What L did since the last sync is what a sync would do if R had not moved.
        looked, seq = await looking, cache.seq
        local = looked.local
        plan = await asyncio.to_thread(plan_sync, site, local, cache, cache.manifest, seq + 1, None)
    else:
        async with AsyncExitStack() as stack:
            emit(PhaseStarted(Phase.CONNECT))

            async def ask() -> tuple[RemoteRepo, Head]:
                repo = await stack.enter_async_context(site.connect(have=cache.record))
                return repo, await ask_head(repo, cache, str(site.address))

            looked, (repo, head) = await abreast(looking, ask())
            local = looked.local
            seq = head.record.seq
            plan = await asyncio.to_thread(plan_sync, site, local, cache, head.manifest, seq + 1, None)
            since = await records_since(repo, cache, head, plan)
    site.save_index_ahead()
    tell_warnings(looked, emit)
    announce_rules(cache, site.scope, plan, emit)
    if pending:
        emit(Note(pending, warning=True))
    if looked.rotten:
        for path in looked.rotten[:20]:
            emit(
                Note(f"content changed under unchanged times, look at the disk: {escape(path)}", warning=True)
            )
    return StatusResult(
        offline=offline,
        seq=cache.seq,
        head=None if offline else seq,
        remote=str(site.address) if site.config.repository else "(no repository configured)",
        entries=len(local),
        changes=Changes.of(plan),
        conflicts=plan.conflicts,
        pending=pending,
        since=since,
        rotten=looked.rotten,
        guard=mass_deletions(plan, vanished_folders(plan, local, site.scope)),
    )

"""``status``: what a sync would do. Settles nothing, and changes nothing but the stat index."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from dsg_client.local.scan import Scan
from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted
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
    tell_warnings,
)
from protocol.errors import DsgError

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
    scan = site.scan(algorithm, verify=verify)
    if offline:
        local = await look_at_local(site, scan, algorithm, keep_index=False)
        # What L did since the last sync is what a sync would do if R had not moved.
        remote, seq = cache.manifest, cache.seq
        shown = str(site.address) if site.config.repository else "(no repository configured)"
    else:
        async with AsyncExitStack() as stack:
            emit(PhaseStarted(Phase.CONNECT))

            async def ask() -> Head:
                repo = await stack.enter_async_context(site.connect())
                return await ask_head(repo, cache, str(site.address))

            found, local = await abreast(ask(), look_at_local(site, scan, algorithm, keep_index=False))
        remote, seq = found.manifest, found.record.seq
        shown = str(site.address)
    tell_warnings(scan, emit)
    plan = await asyncio.to_thread(plan_sync, site, local, cache, remote, seq + 1, None)
    announce_rules(cache, site.scope, plan, emit)
    if pending:
        emit(Note(pending, warning=True))
    if scan.rotten:
        for path in scan.rotten[:20]:
            emit(Note(f"content changed under unchanged times, look at the disk: {path}", warning=True))
    await asyncio.to_thread(_keep_index, site, scan, algorithm)
    return StatusResult(
        offline=offline,
        seq=cache.seq,
        head=None if offline else seq,
        remote=shown,
        entries=len(local.manifest),
        changes=Changes.of(plan),
        conflicts=plan.conflicts,
        pending=pending,
        rotten=tuple(scan.rotten),
    )


def _keep_index(site: Site, scan: Scan, algorithm: str) -> None:
    """Spare the next command what this one read, unless another command is at work here."""
    try:
        with site.workdir.lock("dsg status"):
            site.save_index(scan.changes, algorithm)
    except DsgError:
        pass

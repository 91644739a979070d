"""``init --from-dataset``: a repository whose s0 holds the files of a dataset of the server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from dsg_client.core.reconcile import reconcile
from dsg_client.local.config import Config
from dsg_client.local.scan import Scan
from dsg_client.remote.reach import Link
from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted
from dsg_client.sync.setup import Initialized
from dsg_client.sync.survey import ask_head
from protocol.manifest import Manifest
from protocol.records import SnapshotRecord

__all__ = ["take_over"]


async def take_over(
    root: Path, config: Config, link: Link, source: str, wanted: dict[str, Any], emit: Emit
) -> tuple[Initialized, Manifest, SnapshotRecord]:
    """Have the agent take the dataset ``source`` over, and compare it with the folder ``root``.

    The counts; what both sides have in common, for C; and the record of s0.
    What cannot be synced here is refused before the server is asked for
    anything. ``wanted``: as for :meth:`RemoteAgent.take_dataset`.
    """
    emit(PhaseStarted(Phase.SCAN))
    local = await asyncio.to_thread(_scan, root, config, wanted["algorithm"])
    emit(PhaseStarted(Phase.CONNECT))
    address = link.address
    async with link.agent() as agent:
        _, notes = await agent.take_dataset(address.path, source, **wanted)
        repo = await agent.open_repo(address.path, have="")
        head = await ask_head(repo, None, str(address))
    for note in notes:
        emit(Note(note, warning=True))
    if head.manifest.algorithm != local.algorithm:
        local = await asyncio.to_thread(_scan, root, config, head.manifest.algorithm)
    plan = reconcile(local, (), head.manifest, who="", seq=0, in_scope=config.scope.in_scope)
    if plan.outside_scope:
        emit(
            Note(
                f"{plan.outside_scope:,} of the {len(head.manifest):,} files there are out of this project's "
                "scope (data_dirs and ignore): they stay there, and are not downloaded"
            )
        )
    made = Initialized(
        str(address),
        head.record.repo_id,
        str(root),
        files=len(head.manifest),
        same=len(plan.cache_updates),
        differ=len(plan.conflicts),
        only_local=len(plan.uploads),
        only_remote=len(plan.downloads),
    )
    return made, Manifest.from_entries(plan.cache_updates, local.algorithm), head.record


def _scan(root: Path, config: Config, algorithm: str) -> Manifest:
    scan = Scan(root, config.scope, algorithm=algorithm, portable_names=config.portable_names)
    return Manifest.from_entries((scanned.entry for scanned in scan), algorithm)

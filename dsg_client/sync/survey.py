"""Looking at all three sides and making the plan: what sync, status and clone have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from dsg_client.core.guard import refuse_mass_deletion
from dsg_client.core.plan import Plan
from dsg_client.core.reconcile import reconcile
from dsg_client.core.states import Take
from dsg_client.local.cache import Cache
from dsg_client.local.lacking import supply_lacking
from dsg_client.local.scope import Scope, Zone
from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted, Progress
from dsg_client.sync.localtree import LocalTree
from dsg_client.sync.looking import Looked, Looking
from dsg_client.sync.results import conflict_fields, conflict_text
from dsg_client.sync.site import Site
from dsg_client.sync.threads import all_over
from protocol.errors import ConflictError, IntegrityError, WrongRepositoryError
from protocol.manifest import Manifest
from protocol.records import SnapshotRecord
from protocol.value import Value

__all__ = [
    "Head",
    "ask_head",
    "check_repository",
    "look_at_local",
    "plan_sync",
    "refuse_conflicts",
    "vanished_folders",
]


_MOST_RECORDS = 500
_TELL_EVERY = 0.2  # seconds between two news of a scan


class Head(Value):
    """R: the head's record and its whole manifest."""

    record: SnapshotRecord
    manifest: Manifest


def check_repository(repo: RemoteRepo, cache: Cache, shown: str) -> None:
    """WrongRepositoryError unless ``repo`` is the repository that C belongs to."""
    opened = repo.opened
    if opened.repo_id != cache.repo_id:
        raise WrongRepositoryError(
            f"{shown} holds another repository than the one this folder belongs to "
            f"(its id is {opened.repo_id}, expected {cache.repo_id})",
            hint="Correct the address with 'dsg remote set', or take a new copy with 'dsg clone'.",
            facts={"found": opened.repo_id, "expected": cache.repo_id},
        )


async def ask_head(repo: RemoteRepo, cache: Cache | None, shown: str) -> Head:
    """The head of R. WrongRepositoryError unless its chain holds the record that C stands on.

    An unreadable or damaged answer is an IntegrityError, never an empty R.
    """
    if cache is not None:
        check_repository(repo, cache, shown)
    found, encoded = await repo.manifest(cache.record if cache is not None else "")
    if cache is not None and not found.known:
        record = SnapshotRecord.from_bytes(found.head)
        raise WrongRepositoryError(
            f"{shown} does not know snapshot s{cache.seq}, which this folder was last in step with; "
            f"its newest is s{record.seq}",
            hint="The repository was restored from an older copy or made anew. If that "
            "was meant to be: take a fresh copy with 'dsg clone' beside this one, and carry over what is "
            "missing.",
            facts={"seq": cache.seq, "record": cache.record, "head": record.seq},
        )
    record = SnapshotRecord.from_bytes(found.head)
    if record.repo_id != repo.opened.repo_id:
        raise IntegrityError(
            f"{shown}: the newest snapshot belongs to another repository ({record.repo_id})",
            hint="Ask the server's administrator to restore the repository's .dsg folder from a backup.",
        )
    if (
        found.same
        and cache is not None
        and cache.record == record.digest
        and cache.manifest.digest == record.manifest
    ):
        return Head(record, cache.manifest)
    if found.same:
        # C holds a part of that snapshot only (its scope, or paths held back): R is needed whole.
        found, encoded = await repo.manifest("")
        record = SnapshotRecord.from_bytes(found.head)
    manifest = await asyncio.to_thread(_checked, encoded, record)
    return Head(record, manifest)


def _checked(encoded: bytes, record: SnapshotRecord) -> Manifest:
    return Manifest.from_bytes(encoded, record.manifest).validate()


async def look_at_local(
    site: Site, look: Looking, cache: Manifest, differs: asyncio.Event | None = None
) -> Looked:
    """Run a look in a thread, compare with C, and tell how far it is; a cancellation stops it.

    ``differs`` is set as soon as something is met that the stat index does not
    know, and at the end in any case.
    """
    site.emit(PhaseStarted(Phase.SCAN))
    loop = asyncio.get_running_loop()
    told = differs is None

    def news() -> None:
        nonlocal told
        if look.differs and not told and differs is not None:
            told = True
            loop.call_soon_threadsafe(differs.set)

    running = loop.run_in_executor(None, look.run, cache, news)
    try:
        while not running.done():
            await asyncio.wait([running], timeout=_TELL_EVERY)
            site.emit(Progress(Phase.SCAN, look.seen, 0, look.bytes_read, 0))
    except asyncio.CancelledError:
        look.stop()
        await all_over([running])
        raise
    finally:
        if differs is not None:
            differs.set()
    return running.result()


def tell_warnings(looked: Looked, emit: Emit) -> None:
    """Names that only Windows could not hold, and the like."""
    for problem in looked.warnings[:20]:
        emit(Note(str(problem), warning=True))
    if len(looked.warnings) > 20:
        emit(Note(f"... and {len(looked.warnings) - 20} more names like these", warning=True))


def plan_sync(
    site: Site, local: LocalTree, cache: Cache, remote: Manifest, seq: int, prefer: str | None
) -> Plan:
    """The plan of a sync of L, C and R; ``seq`` is the number of the snapshot it would make."""
    scope, capabilities = site.scope, site.tree.capabilities
    seen = supply_lacking(local, cache, scope.filter(remote), capabilities)
    # When R is C, where the three differ is where L differs from C.
    known = (
        local.cache.digest == cache.manifest.digest == remote.digest
        and capabilities.executable_bit
        and capabilities.symlinks
    )
    return reconcile(
        seen,
        cache,
        remote,
        who=site.user,
        seq=seq,
        prefer=Take(prefer) if prefer else None,
        in_scope=scope.in_scope,
        known=local.differences() if known else None,
    )


async def records_since(repo: RemoteRepo, cache: Cache, head: Head, plan: Plan) -> dict[int, SnapshotRecord]:
    """The records that tell who made the remote half of the plan's conflicts, and when."""
    if not plan.conflicts or head.record.seq <= cache.seq:
        return {}
    raw = await repo.records(max(cache.seq + 1, head.record.seq - _MOST_RECORDS), head.record.seq)
    return {record.seq: record for record in map(SnapshotRecord.from_bytes, raw)}


def refuse_conflicts(plan: Plan, since: Mapping[int, SnapshotRecord]) -> None:
    """ConflictError with every conflict: who changed what and when on each side."""
    if not plan.conflicts:
        return
    count = len(plan.conflicts)
    lines = "\n".join(f"  {conflict_text(c, since)}" for c in plan.conflicts)
    raise ConflictError(
        f"{count} {'conflict' if count == 1 else 'conflicts'}:\n{lines}",
        hint="Make the files equal, or choose a side for all of them: 'dsg sync --prefer local' or "
        "'--prefer remote' (what is replaced here is kept in .dsg/replaced).",
        facts={"conflicts": [conflict_fields(c, since) for c in plan.conflicts]},
    )


def refuse_mass_delete(plan: Plan, local: LocalTree, scope: Scope, allowed: bool) -> None:
    """MassDeleteError when the plan deletes too much and nobody allowed it."""
    if not allowed:
        refuse_mass_deletion(plan, vanished_folders(plan, local, scope))


def vanished_folders(plan: Plan, local: LocalTree, scope: Scope) -> set[str]:
    """Data folders of which nothing is left in L, although C has entries there."""
    folders = {folder for entry in plan.delete_remote if (folder := data_folder(entry.path, scope))}
    if folders:
        for entry in local:
            folders.discard(data_folder(entry.path, scope))
            if not folders:
                break
    return folders


def data_folder(path: str, scope: Scope) -> str:
    """The outermost data folder that ``path`` lies in, or ''."""
    at = path.find("/")
    while at >= 0:
        if scope.zone(path[:at]) is Zone.DATA:
            return path[:at]
        at = path.find("/", at + 1)
    return ""


def announce_rules(cache: Cache, scope: Scope, plan: Plan, emit: Emit) -> None:
    """Say when the rules are not those of the last sync, and what that means."""
    if cache.rules != scope.digest:
        forgotten = len(plan.cache_drops)
        emit(
            Note(
                "the data_dirs or ignore rules have changed since the last sync; what they no longer select "
                f"stays on the server and here, untouched ({forgotten} paths are no longer compared)"
            )
        )

"""``clone``: a working folder from a repository, as a sync with an empty C and without uploads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dsg_client.core.plan import Plan
from dsg_client.core.reconcile import reconcile
from dsg_client.local.cache import Cache
from dsg_client.local.config import Config, load_config
from dsg_client.local.scan import Scan
from dsg_client.local.workdir import CONFIG_NAME, open_workdir
from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted
from dsg_client.sync.localside import storage_errors
from dsg_client.sync.looking import Look
from dsg_client.sync.results import conflict_text
from dsg_client.sync.run import carry_out, replace_cache
from dsg_client.sync.settling import held_notes, settle_leftover
from dsg_client.sync.setup import connect_folder
from dsg_client.sync.site import Site
from dsg_client.sync.survey import Head, ask_head, look_at_local, tell_warnings
from dsg_client.sync.target import CloneTarget
from dsg_client.sync.transaction import Base
from protocol.errors import ConfigError, ConflictError, LocalStorageError, Outcome
from protocol.manifest import Entry, Manifest
from protocol.paths import escape
from protocol.value import Value

__all__ = ["Cloned", "clone"]


class Cloned(Value):
    """A working folder in step with snapshot ``seq``."""

    remote: str
    repo_id: str
    directory: str
    seq: int
    downloaded: int
    taken_over: int
    bytes: int

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "remote": self.remote,
            "repo_id": self.repo_id,
            "directory": self.directory,
            "seq": self.seq,
            "downloaded": self.downloaded,
            "taken_over": self.taken_over,
            "bytes": self.bytes,
        }


async def clone(target: CloneTarget, emit: Emit) -> Cloned:
    """Make a working folder from a repository, or go on with one that was interrupted.

    Files that are there and match are taken over; ConflictError lists those
    that differ, and then nothing was changed. Files that only the folder has
    stay, for the next sync to upload.
    """
    emit(PhaseStarted(Phase.CONNECT))
    config = target.config
    with storage_errors("The clone"):
        async with target.link.repository(have="") as repo:
            head = await ask_head(repo, None, str(target.link.address))
            if not (target.root / CONFIG_NAME).exists():
                config = _with_settings(config, repo.opened.settings)
            async with _clone_site(target, config, head, emit) as site:
                return await _clone_into(site, repo, head)


def _with_settings(config: Config, text: str) -> Config:
    """The configuration with what the repository's ``init`` chose; hostile, so checked like a file's."""
    from dsg_client.local.settings import KEYS

    try:
        found: Any = json.loads(text) if text else {}
        chosen = {
            key: KEYS[key].parse(found[key])
            for key in ("name", "data_dirs", "ignore")
            if isinstance(found, dict) and key in found
        }
    except (ValueError, ConfigError) as error:
        raise ConfigError(
            f"the repository's own settings cannot be used: {escape(str(error))}",
            hint=f"Make the folder, write a {CONFIG_NAME} into it by hand, and run 'dsg clone' there.",
        ) from None
    return config.but(**chosen)


@asynccontextmanager
async def _clone_site(target: CloneTarget, config: Config, head: Head, emit: Emit) -> AsyncIterator[Site]:
    """The folder, planned against before anything is made in it, then made and locked."""
    root, address = target.root, target.link.address
    record, algorithm = head.record, head.manifest.algorithm
    if not (root / ".dsg" / "format").exists():
        if root.is_dir():
            await asyncio.to_thread(_refuse_differing, root, config, head)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalStorageError(f"'{escape(str(root))}' cannot be made: {error.strerror}") from None
        name = config.name or address.path.rpartition("/")[2]
        connect_folder(root, config, address, name, record, Manifest.from_entries((), algorithm), emit)
    workdir = open_workdir(root)
    site = Site(workdir, load_config(root, options=target.options), emit=emit)
    with site.workdir.lock("dsg clone"):
        settled = await settle_leftover(site)
        cache = site.cache()
        if cache.repo_id != record.repo_id or (len(cache) and not settled):
            raise ConfigError(
                f"'{escape(str(root))}' is a DSG working folder already, last in step with s{cache.seq}",
                hint="'dsg sync' brings it in step.",
            )
        yield site


def _refuse_differing(root: Path, config: Config, head: Head) -> None:
    scan = Scan(root, config.scope, algorithm=head.manifest.algorithm, portable_names=config.portable_names)
    plan = _clone_plan((scanned.entry for scanned in scan), head, config)
    _refuse_conflicts(plan)


def _clone_plan(local: Iterable[Entry], head: Head, config: Config) -> Plan:
    plan = reconcile(local, (), head.manifest, who="", seq=head.record.seq, in_scope=config.scope.in_scope)
    return plan.but(uploads=())


def _refuse_conflicts(plan: Plan) -> None:
    if plan.conflicts:
        raise ConflictError(
            f"{len(plan.conflicts)} files here differ from the repository's:\n"
            + "\n".join(f"  {conflict_text(c)}" for c in plan.conflicts),
            hint="Move them away (or make them equal), then run 'dsg clone' again.",
            facts={"paths": [c.path for c in plan.conflicts]},
        )


async def _clone_into(site: Site, repo: RemoteRepo, head: Head) -> Cloned:
    cache = site.cache()
    if len(cache):
        # An interrupted clone was decided, and settling has just finished it.
        return Cloned(str(site.address), cache.repo_id, str(site.root), cache.seq, 0, len(cache), 0)
    algorithm = head.manifest.algorithm
    empty = Manifest.from_entries((), algorithm)
    looked = await look_at_local(site, Look(site, algorithm), empty)
    local = looked.local
    tell_warnings(looked, site.emit)
    plan = await asyncio.to_thread(_clone_plan, local, head, site.config)
    _refuse_conflicts(plan)
    base = Base(head.record, head.manifest, empty, site.scope.digest)
    if plan.changes_local:
        done = await carry_out(site, repo, plan, base, local)
        for note in (*done.notes, *held_notes(done.settled)):
            site.emit(Note(note, warning=True))
        if done.settled.held:
            raise LocalStorageError(
                f"{len(done.settled.held)} files could not be placed; see the warnings",
                hint="'dsg status' shows them; 'dsg sync' fetches them when nothing is in the way.",
                outcome=Outcome.COMMITTED,
            )
    else:
        manifest = Manifest.from_entries(plan.new_cache((), head.manifest), algorithm)
        record = head.record
        replace_cache(
            site.tree, Cache(record.repo_id, record.digest, record.seq, site.scope.digest, manifest)
        )
    return Cloned(
        str(site.address),
        head.record.repo_id,
        str(site.root),
        head.record.seq,
        len(plan.downloads),
        len(plan.cache_updates),
        plan.download_bytes,
    )

"""``init``, ``clone`` and ``remote set``: connecting a folder with a repository."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from dsg_client.core.plan import Plan
from dsg_client.core.reconcile import reconcile
from dsg_client.local.cache import Cache, encode_cache
from dsg_client.local.config import Config, load_config
from dsg_client.local.identity import find_identity
from dsg_client.local.scan import Scan
from dsg_client.local.workdir import CONFIG_NAME, create_workdir, open_workdir, refuse_overlap
from dsg_client.local.writeconfig import add_to_gitignore, set_repository, write_config
from dsg_client.remote.address import RemoteAddress, parse_address
from dsg_client.remote.calls import RemoteAgent, RemoteRepo
from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted
from dsg_client.sync.localside import storage_errors
from dsg_client.sync.localtree import LocalTree
from dsg_client.sync.results import conflict_text
from dsg_client.sync.run import carry_out, replace_cache
from dsg_client.sync.settling import held_notes, settle_leftover
from dsg_client.sync.site import Link, Site
from dsg_client.sync.survey import Head, ask_head, look_at_local, tell_warnings
from dsg_client.sync.transaction import Base
from protocol.digest import hasher
from protocol.errors import ConfigError, ConflictError, LocalStorageError, Outcome, UsageError
from protocol.manifest import Entry, Manifest
from protocol.paths import escape
from protocol.records import SnapshotRecord

__all__ = ["Cloned", "Initialized", "clone", "init", "rebuild_cache", "set_remote"]


@frozen
class Initialized:
    """A new repository, connected with the folder ``directory``."""

    remote: str
    repo_id: str
    directory: str

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"remote": self.remote, "repo_id": self.repo_id, "directory": self.directory, "seq": 0}


@frozen
class Cloned:
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


# init


async def init(
    remote: str,
    *,
    name: str | None,
    data_dirs: Sequence[str],
    ignore: Sequence[str],
    group: str,
    algorithm: str,
    transport: str | None,
    agent_command: str | None,
    accept_new_host_key: bool,
    emit: Emit,
) -> Initialized:
    """Make an empty repository at ``remote`` and connect the current folder with it.

    Nothing is uploaded. A failure before the repository exists leaves nothing;
    after it, running the same command again goes on: an empty repository that
    nobody has synced with is taken as the one that was to be made.
    """
    root = Path.cwd()
    address = parse_address(remote, folder=str(root))
    _refuse_working_folder(root)
    if address.local:
        refuse_overlap(root, address.path)
    given = {
        "name": name,
        "data_dirs": list(data_dirs) or None,
        "ignore": list(ignore) or None,
        "transport": transport,
        "agent_command": agent_command,
    }
    config = load_config(root, options={k: v for k, v in given.items() if v is not None})
    _refuse_other_repository(root, config, address)
    try:
        hasher(algorithm)
    except ValueError as error:
        raise UsageError(str(error), hint="Install it, or use the default --hash sha256.") from None
    identity = find_identity(config, root)
    called = config.name or name or address.path.rpartition("/")[2]
    settings = {"name": called, "data_dirs": list(config.data_dirs), "ignore": list(config.ignore)}
    emit(PhaseStarted(Phase.CONNECT))
    async with Link(address, config, accept_new_host_key=accept_new_host_key).agent() as agent:
        try:
            raw = await agent.init_repo(
                address.path,
                repo_id=secrets.token_hex(16),
                algorithm=algorithm,
                group=group,
                user=identity.who,
                host=identity.host,
                settings=json.dumps(settings, ensure_ascii=False),
            )
        except ConfigError as refused:
            raw = await _untouched_head(agent, address, algorithm, refused)
    record = SnapshotRecord.from_bytes(raw)
    _connect_folder(root, config, address, called, record, Manifest.from_entries((), algorithm), emit)
    return Initialized(str(address), record.repo_id, str(root))


async def _untouched_head(
    agent: RemoteAgent, address: RemoteAddress, algorithm: str, refused: ConfigError
) -> bytes:
    """The record of an empty s0 that an interrupted init left at ``address``; else ``refused``."""
    try:
        repo = await agent.open_repo(address.path)
    except Exception:  # noqa: BLE001 - what was refused first says more
        raise refused from None
    head = SnapshotRecord.from_bytes(repo.opened.head)
    if head.seq != 0 or repo.opened.algorithm != algorithm:
        raise refused
    return repo.opened.head


def _connect_folder(
    root: Path,
    config: Config,
    address: RemoteAddress,
    name: str,
    record: SnapshotRecord,
    empty: Manifest,
    emit: Emit,
) -> None:
    if not (root / CONFIG_NAME).exists():
        write_config(
            root,
            name=name,
            repository=str(address),
            data_dirs=config.data_dirs,
            ignore=config.ignore,
        )
        _write_way(root, config)
    elif not config.repository:
        set_repository(root, str(address))
    for line in add_to_gitignore(root, config.data_dirs):
        emit(Note(f"added to .gitignore: {line}"))
    cache = Cache(record.repo_id, record.digest, record.seq, config.scope.digest, empty)
    create_workdir(root, encode_cache(cache)).close()


def _write_way(root: Path, config: Config) -> None:
    """Keep the options that later commands need to reach the server, too."""
    lines = [
        f"{key}: {json.dumps(getattr(config, key), ensure_ascii=False)}\n"
        for key in ("transport", "agent_command")
        if config.sources.get(key) == "option"
    ]
    if lines:
        path = root / CONFIG_NAME
        with path.open("a", encoding="utf-8") as file:
            file.writelines(["\n# How the server is reached.\n", *lines])


def _refuse_working_folder(root: Path) -> None:
    if (root / ".dsg" / "format").exists():
        raise ConfigError(
            f"'{escape(str(root))}' is a DSG working folder already",
            hint="'dsg remote' shows its repository; 'dsg sync' brings it in step.",
        )
    _refuse_nesting(root)


def _refuse_nesting(root: Path) -> None:
    """ConfigError when a folder above is DSG's own: it would sync what lies in this one as well."""
    for above in root.parents:
        if (above / ".dsg" / "format").exists():
            raise ConfigError(
                f"'{escape(str(root))}' lies inside '{escape(str(above))}', which is a DSG folder itself",
                hint="Choose a place outside of every repository and working folder.",
                facts={"folder": str(root), "above": str(above)},
            )


def _refuse_other_repository(root: Path, config: Config, address: RemoteAddress) -> None:
    if config.repository and str(parse_address(config.repository, folder=str(root))) != str(address):
        raise ConfigError(
            f"{CONFIG_NAME} here names the repository {escape(config.repository)}, not {address}",
            hint="Change or remove its 'repository' line first; or 'dsg clone' fetches the data it names.",
        )


# clone


async def clone(
    remote: str | None,
    directory: str | None,
    *,
    transport: str | None,
    agent_command: str | None,
    accept_new_host_key: bool,
    emit: Emit,
) -> Cloned:
    """Make a working folder from a repository, or go on with one that was interrupted.

    Files that are there and match are taken over; ConflictError lists those
    that differ, and then nothing was changed. Files that only the folder has
    stay, for the next sync to upload.
    """
    options = {"transport": transport, "agent_command": agent_command}
    given = {k: v for k, v in options.items() if v is not None}
    root, address, config = _clone_target(remote, directory, given)
    emit(PhaseStarted(Phase.CONNECT))
    with storage_errors("The clone"):
        async with Link(address, config, accept_new_host_key=accept_new_host_key).repository() as repo:
            head = await ask_head(repo, None, str(address))
            if not (root / CONFIG_NAME).exists():
                config = _with_settings(config, repo.opened.settings)
            async with _clone_site(root, address, config, head, given, emit) as site:
                return await _clone_into(site, repo, head)


def _clone_target(
    remote: str | None, directory: str | None, given: dict[str, Any]
) -> tuple[Path, RemoteAddress, Config]:
    if remote is None:
        root = Path.cwd()
        if not (root / CONFIG_NAME).is_file():
            raise UsageError(
                f"no REMOTE was given, and '{escape(str(root))}' has no {CONFIG_NAME} that names one",
                hint="dsg clone [user@]host:/path [DIR]",
            )
        config = load_config(root, options=given)
        address = parse_address(config.require_repository(), folder=str(root))
    else:
        address = parse_address(remote)
        root = Path(os.path.abspath(directory or address.path.rpartition("/")[2] or "dsg"))
        config = load_config(root if root.is_dir() else None, options=given)
        _refuse_other_repository(root, config, address)
    if root.exists() and not root.is_dir():
        raise UsageError(f"'{escape(str(root))}' is not a folder")
    if address.local:
        refuse_overlap(root, address.path)
    _refuse_nesting(root)
    return root, address, config


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
    return evolve(config, **chosen)


@asynccontextmanager
async def _clone_site(
    root: Path, address: RemoteAddress, config: Config, head: Head, given: dict[str, Any], emit: Emit
) -> AsyncIterator[Site]:
    """The folder, planned against before anything is made in it, then made and locked."""
    record, algorithm = head.record, head.manifest.algorithm
    if not (root / ".dsg" / "format").exists():
        if root.is_dir():
            await asyncio.to_thread(_refuse_differing, root, config, head)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalStorageError(f"'{escape(str(root))}' cannot be made: {error.strerror}") from None
        name = config.name or address.path.rpartition("/")[2]
        _connect_folder(root, config, address, name, record, Manifest.from_entries((), algorithm), emit)
    workdir = open_workdir(root)
    site = Site(workdir, load_config(root, options=given), emit=emit)
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
    return evolve(plan, uploads=())


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
    scan = site.scan(algorithm)
    local = await look_at_local(site, scan, algorithm)
    tell_warnings(scan, site.emit)
    plan = await asyncio.to_thread(_clone_plan, local, head, site.config)
    _refuse_conflicts(plan)
    empty = Manifest.from_entries((), algorithm)
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


# remote set, and a cache made anew


async def set_remote(site: Site, remote: str, emit: Emit) -> str:
    """Let ``.dsgconfig.yml`` name another address of the same repository; the address as written there.

    WrongRepositoryError unless the repository there has the same id and knows
    the snapshot that C stands on; nothing is changed then.
    """
    address = parse_address(remote, folder=str(site.root))
    if address.local:
        refuse_overlap(site.root, address.path)
    cache = site.cache()
    emit(PhaseStarted(Phase.CONNECT))
    link = Link(address, site.config, accept_new_host_key=site.accept_new_host_key)
    async with link.repository() as repo:
        await ask_head(repo, cache, str(address))
    with site.workdir.lock("dsg remote set"):
        set_repository(site.root, str(address))
    return str(address)


async def rebuild_cache(site: Site) -> str:
    """Make C anew from what is the same in L and R; changes neither. The folder's lock is held.

    Paths that differ have no entry: the next sync takes them for conflicts, and
    what only one side has for new. Nothing is ever taken for deleted.
    """
    async with site.connect() as repo:
        head = await ask_head(repo, None, str(site.address))
    algorithm = head.manifest.algorithm
    local = await look_at_local(site, site.scan(algorithm), algorithm)
    manifest = await asyncio.to_thread(_agreed, local, head, site)
    record = head.record
    replace_cache(site.tree, Cache(record.repo_id, record.digest, record.seq, site.scope.digest, manifest))
    return f"the cache was made anew from s{record.seq}: {len(manifest):,} files are the same on both sides"


def _agreed(local: LocalTree, head: Head, site: Site) -> Manifest:
    from dsg_client.core.merge import differences

    differing = {
        (d.local or d.cache or d.remote).path  # type: ignore[union-attr]  # one of them is there
        for d in differences(local, head.manifest, head.manifest)
        if d.local is not None or d.remote is not None
    }
    entries = (entry for entry in site.scope.filter(head.manifest) if entry.path not in differing)
    return Manifest.from_entries(entries, head.manifest.algorithm)

"""``init`` and ``remote set``: connecting a folder with a repository."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsg_client.local.cache import Cache, encode_cache
from dsg_client.local.config import Config, load_config
from dsg_client.local.identity import find_identity
from dsg_client.local.workdir import CONFIG_NAME, create_workdir, refuse_overlap
from dsg_client.local.writeconfig import add_to_gitignore, set_repository, write_config
from dsg_client.remote.address import RemoteAddress, parse_address
from dsg_client.remote.calls import RemoteAgent
from dsg_client.remote.reach import Link
from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted
from dsg_client.sync.localtree import LocalTree
from dsg_client.sync.looking import Look
from dsg_client.sync.results import shown_time
from dsg_client.sync.run import replace_cache
from dsg_client.sync.site import Site
from dsg_client.sync.survey import Head, ask_head, look_at_local
from dsg_client.sync.target import refuse_nesting, refuse_other_repository
from protocol.digest import hasher
from protocol.errors import ConfigError, UsageError
from protocol.manifest import Manifest
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.value import Value

__all__ = ["Initialized", "connect_folder", "init", "rebuild_cache", "set_remote"]


class Initialized(Value):
    """A new repository, connected with the folder ``directory``.

    ``files``: how many it holds. The other counts are of paths in scope: the
    same on both sides, different, only here, only there.
    """

    remote: str
    repo_id: str
    directory: str
    files: int = 0
    same: int = 0
    differ: int = 0
    only_local: int = 0
    only_remote: int = 0

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**self.to_map(), "seq": 0}


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
    from_dataset: str | None = None,
) -> Initialized:
    """Make an empty repository at ``remote`` and connect the current folder with it.

    Nothing is uploaded. A failure before the repository exists leaves nothing;
    after it, running the same command again goes on: an empty repository that
    nobody has synced with is taken as the one that was to be made.

    ``from_dataset``: it is not empty, but holds the files of this dataset of
    the server. C is then what both sides have in common, so that nothing is
    taken for deleted; the next sync tells what differs.
    """
    root = Path.cwd()
    address = parse_address(remote, folder=str(root))
    if from_dataset is not None and not address.is_dataset:
        raise UsageError(
            f"--from-dataset makes a repository on ZFS, and {address} is a folder",
            hint="Write [user@]host:zfs:POOL/.../NAME for the repository; it must be in the dataset's pool.",
        )
    _refuse_working_folder(root)
    if address.folder is not None:
        refuse_overlap(root, address.folder)
    given = {
        "name": name,
        "data_dirs": list(data_dirs) or None,
        "ignore": list(ignore) or None,
        "transport": transport,
        "agent_command": agent_command,
    }
    config = load_config(root, options={k: v for k, v in given.items() if v is not None})
    refuse_other_repository(root, config, address)
    try:
        hasher(algorithm)
    except ValueError as error:
        raise UsageError(str(error), hint="Install it, or use the default --hash sha256.") from None
    identity = find_identity(config, root)
    called = config.name or name or address.path.rpartition("/")[2]
    settings = {"name": called, "data_dirs": list(config.data_dirs), "ignore": list(config.ignore)}
    wanted: dict[str, Any] = {
        "repo_id": secrets.token_hex(16),
        "algorithm": algorithm,
        "group": group,
        "user": identity.who,
        "host": identity.host,
        "settings": json.dumps(settings, ensure_ascii=False),
    }
    link = Link(address, config, accept_new_host_key=accept_new_host_key)
    if from_dataset is not None:
        from dsg_client.sync.takeover import take_over

        made, cache, record = await take_over(root, config, link, from_dataset, wanted, emit)
        connect_folder(root, config, address, called, record, cache, emit)
        return made
    emit(PhaseStarted(Phase.CONNECT))
    async with link.agent() as agent:
        try:
            raw, notes = await agent.init_repo(address.path, **wanted)
        except ConfigError as refused:
            raw, notes = await _untouched_head(agent, address, algorithm, refused), ()
            emit(Note(_taken_over(SnapshotRecord.from_bytes(raw))))
    for note in notes:
        emit(Note(note, warning=True))
    record = SnapshotRecord.from_bytes(raw)
    connect_folder(root, config, address, called, record, Manifest.from_entries((), algorithm), emit)
    return Initialized(str(address), record.repo_id, str(root))


def _taken_over(record: SnapshotRecord) -> str:
    # It may be a colleague's, who was quicker; then both have the same repository, as they should.
    return (
        f"the repository was there already, empty: made by {escape(record.user)} on {escape(record.host)}, "
        f"{shown_time(record.time)}; this folder is connected with it"
    )


async def _untouched_head(
    agent: RemoteAgent, address: RemoteAddress, algorithm: str, refused: ConfigError
) -> bytes:
    """The record of an empty s0 that an interrupted init left at ``address``; else ``refused``."""
    try:
        repo = await agent.open_repo(address.path)
    except Exception:  # noqa: BLE001 - what was refused first says more
        raise refused from None
    head = SnapshotRecord.from_bytes(repo.opened.head)
    if head.seq != 0 or head.entries or repo.opened.algorithm != algorithm:
        raise refused
    return repo.opened.head


def connect_folder(
    root: Path,
    config: Config,
    address: RemoteAddress,
    name: str,
    record: SnapshotRecord,
    shared: Manifest,
    emit: Emit,
) -> None:
    """Make ``root`` a working folder of the repository at ``address``.

    It was last in step with ``record`` as far as ``shared`` goes.
    """
    if not (root / CONFIG_NAME).exists():
        write_config(
            root,
            name=name,
            repository=str(address),
            data_dirs=config.data_dirs,
            ignore=config.ignore,
            # Later commands need them, too.
            way={
                key: getattr(config, key)
                for key in ("transport", "agent_command")
                if config.sources.get(key) == "option"
            },
        )
    elif not config.repository:
        set_repository(root, str(address))
    for line in add_to_gitignore(root, config.data_dirs):
        emit(Note(f"added to .gitignore: {line}"))
    cache = Cache(record.repo_id, record.digest, record.seq, config.scope.digest, shared)
    create_workdir(root, encode_cache(cache)).close()


def _refuse_working_folder(root: Path) -> None:
    if (root / ".dsg" / "format").exists():
        raise ConfigError(
            f"'{escape(str(root))}' is a DSG working folder already",
            hint="'dsg remote' shows its repository; 'dsg sync' brings it in step.",
        )
    refuse_nesting(root)


# remote set, and a cache made anew


async def set_remote(site: Site, remote: str, emit: Emit) -> str:
    """Let ``.dsgconfig.yml`` name another address of the same repository; the address as written there.

    WrongRepositoryError unless the repository there has the same id and knows
    the snapshot that C stands on; nothing is changed then.
    """
    address = parse_address(remote, folder=str(site.root))
    if address.folder is not None:
        refuse_overlap(site.root, address.folder)
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
    looked = await look_at_local(site, Look(site, algorithm), head.manifest)
    manifest = await asyncio.to_thread(_agreed, looked.local, head, site)
    record = head.record
    replace_cache(site.tree, Cache(record.repo_id, record.digest, record.seq, site.scope.digest, manifest))
    return f"the cache was made anew from s{record.seq}: {len(manifest):,} files are the same on both sides"


def _agreed(local: LocalTree, head: Head, site: Site) -> Manifest:
    differing = {entry.path for d in local.differences() if (entry := d.local or d.remote) is not None}
    entries = (entry for entry in site.scope.filter(head.manifest) if entry.path not in differing)
    return Manifest.from_entries(entries, head.manifest.algorithm)

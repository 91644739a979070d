"""A working folder opened for a command: configuration, identity, tree, and the way to its server.

Cheap to import: what a scan or a plan needs is imported by the methods that
need it, while the server starts its agent (:meth:`Site.connecting`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsg_client.local.config import Config, load_config
from dsg_client.local.workdir import Workdir, find_root, open_workdir, refuse_overlap
from dsg_client.remote.address import RemoteAddress, parse_address
from dsg_client.sync.events import Emit, ignore
from protocol.failpoints import parse_failpoints
from protocol.transaction import Failpoints
from protocol.tree.fs import TreeFS

if TYPE_CHECKING:
    from dsg_client.local.cache import Cache
    from dsg_client.local.identity import Identity
    from dsg_client.local.index import Binding, FileClock, IndexChanges
    from dsg_client.local.scan import Scan
    from dsg_client.local.scope import Scope
    from dsg_client.local.workdir import LocalLock
    from dsg_client.remote.calls import RemoteRepo
    from dsg_client.remote.reach import Link
    from dsg_client.sync.ahead import Ahead

__all__ = ["Site", "describe_config", "open_site"]


class Site:
    """One opened working folder. Close it, or let the process end."""

    def __init__(
        self,
        workdir: Workdir,
        config: Config,
        *,
        accept_new_host_key: bool = False,
        emit: Emit = ignore,
        failpoints: Failpoints | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        """``ahead``: what was begun for this command before all else."""
        self.workdir = workdir
        self.config = config
        self.accept_new_host_key = accept_new_host_key
        self.emit = emit
        self.failpoints = failpoints or parse_failpoints(os.environ.get("DSG_FAILPOINTS", ""))
        self.ahead = ahead

    @property
    def root(self) -> Path:
        """The folder, for messages and for the scanner."""
        return self.workdir.root

    @property
    def tree(self) -> TreeFS:
        """The folder, for everything that changes it."""
        return self.workdir.tree

    @cached_property
    def address(self) -> RemoteAddress:
        """Where the repository is. ConfigError or UsageError when that is not configured, or overlaps."""
        address = parse_address(self.config.require_repository(), folder=str(self.root))
        if address.folder is not None:
            refuse_overlap(self.root, address.folder)
        return address

    @cached_property
    def scope(self) -> Scope:
        """The rules of what is synced."""
        return self.config.scope

    @cached_property
    def identity(self) -> Identity:
        """Who is syncing."""
        from dsg_client.local.identity import find_identity

        return find_identity(self.config, self.root)

    @property
    def user(self) -> str:
        """Who is syncing, in one line."""
        return self.identity.who

    @property
    def host(self) -> str:
        """This machine's name."""
        return self.identity.host

    @cached_property
    def clock(self) -> FileClock | None:
        """The folder's file clock; measuring it writes a file below .dsg/tmp and removes it."""
        from dsg_client.local.index import FileClock

        return FileClock.measure(self.tree)

    # The way to the server.

    @cached_property
    def link(self) -> Link:
        """The way to the server."""
        from dsg_client.remote.reach import Link

        return Link(self.address, self.config, accept_new_host_key=self.accept_new_host_key)

    @asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """Begin to connect, and go on meanwhile; see :meth:`Link.connecting`."""
        async with self.link.connecting():
            self.find_identity_aside()
            yield

    def find_identity_aside(self) -> None:
        """Have a thread find out who is syncing: git may have to be asked, and now is the time for it."""
        import asyncio

        asyncio.get_running_loop().run_in_executor(None, lambda: self.identity)

    def connect(
        self,
        *,
        mending: bool = False,
        have: str | None = None,
        examine: Callable[[], bool] = lambda: False,
    ) -> AbstractAsyncContextManager[RemoteRepo]:
        """The repository, on a new connection or the one begun; see :meth:`Link.repository`."""
        return self.link.repository(mending=mending, have=have, examine=examine)

    # L and C.

    def lock(self, command: str) -> LocalLock:
        """The folder's lock, taken now or already; see :meth:`Workdir.lock`."""
        held = self.ahead.take_lock() if self.ahead is not None else None
        return held or self.workdir.lock(command)

    def cache(self) -> Cache:
        """C; an error when it is missing or damaged, never empty."""
        from dsg_client.local.cache import load_cache

        return load_cache(self.tree)

    def binding(self, algorithm: str) -> Binding:
        """What the stat index is bound to."""
        from dsg_client.local.index import Binding

        return Binding(self.workdir.machine, *self.bound_to, algorithm)

    @cached_property
    def bound_to(self) -> tuple[int, int]:
        """What tells this folder from a copy of it, also after a reboot: its file system and its inode."""
        from dsg_client.local.machine import filesystem_id

        return filesystem_id(self.root), self.workdir.device_inode[1]

    def scan(self, algorithm: str, *, verify: bool = False) -> Scan:
        """A scan of L with the stat index."""
        from dsg_client.local.index import read_index
        from dsg_client.local.scan import Scan

        return Scan(
            self.root,
            self.scope,
            algorithm=algorithm,
            capabilities=self.tree.capabilities,
            index=read_index(self.tree, self.binding(algorithm)),
            clock=self.clock,
            portable_names=self.config.portable_names,
            verify=verify,
        )

    def save_index(self, changes: IndexChanges, algorithm: str) -> None:
        """Put news into the stat index. It is a cache: a failure costs the next scan time, and no more."""
        from dsg_client.local.index import save_index

        self._settle_ahead()
        try:
            save_index(self.tree, self.binding(algorithm), changes)
        except OSError:
            pass

    def save_index_ahead(self) -> None:
        """Have what a look in another process learnt be put into the stat index, which it waits with."""
        if self.ahead is not None:
            self.ahead.save()

    def forget_index(self) -> None:
        """Read every file again at the next scan."""
        from dsg_client.local.index import forget_index

        self._settle_ahead()
        forget_index(self.tree)

    def _settle_ahead(self) -> None:
        # Two that save at once would lose the one's rows.
        if self.ahead is not None:
            self.ahead.over()

    def remote_fields(self) -> dict[str, Any]:
        """What ``dsg remote`` shows."""
        cache = self.cache()
        return {"remote": str(self.address), "repo_id": cache.repo_id, "seq": cache.seq}


def open_site(
    start: str | os.PathLike[str] = ".",
    *,
    options: Mapping[str, Any] | None = None,
    accept_new_host_key: bool = False,
    emit: Emit = ignore,
    ahead: Ahead | None = None,
) -> Site:
    """The working folder around ``start``; ConfigError says what is missing."""
    root = find_root(start)
    config = load_config(root, options=options)
    return Site(open_workdir(root), config, accept_new_host_key=accept_new_host_key, emit=emit, ahead=ahead)


def describe_config() -> list[dict[str, Any]]:
    """Every setting in force and where it is from; ConfigError when a file is not right."""
    from dsg_client.local.identity import find_identity
    from dsg_client.local.settings import KEYS
    from protocol.errors import ConfigError

    try:
        root: Path | None = find_root()
    except ConfigError:
        root = None
    config = load_config(root)
    rows = []
    for key in KEYS:
        name = key.rpartition(".")[2]
        if name in ("user_name", "user_id"):
            continue  # told together, with what they come to
        value = getattr(config, name)
        shown = list(value) if isinstance(value, tuple) else value
        rows.append({"name": key, "value": shown, "source": config.sources.get(name, "default")})
    if config.repository:
        parse_address(config.repository, folder=str(root))
    identity = find_identity(config, root)
    source = config.sources.get("user_name") or config.sources.get("user_id") or "git or login"
    rows.append({"name": "user", "value": identity.who, "source": source})
    return rows

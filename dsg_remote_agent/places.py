"""What an address names on this server: a folder, or a dataset; opened and made with the right backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsg_remote_agent.roots import Roots
from dsg_remote_agent.storage.base import Repository
from dsg_remote_agent.storage.directory import DirectoryRepository
from dsg_remote_agent.storage.directory_init import make_repository, share_with
from dsg_remote_agent.storage.layout import Marker
from protocol.errors import UsageError
from protocol.messages import InitRepo, TakeDataset
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.tree.posix import PosixTree

if TYPE_CHECKING:
    from dsg_remote_agent.dispatch import Agent

__all__ = ["is_dataset", "make_at", "open_at", "resolve", "take_at", "unusual_at"]

_ZFS = "zfs:"


def is_dataset(path: str) -> bool:
    """Whether a client's path names a dataset and not a folder."""
    return path.startswith(_ZFS)


def resolve(roots: Roots, path: str) -> str:
    """``path`` as the client gave it, checked against what this agent may use; NotPermittedError else."""
    if not is_dataset(path):
        return roots.resolve(path)
    from dsg_remote_agent.storage.zfs.names import parse_dataset

    dataset = parse_dataset(path.removeprefix(_ZFS))
    roots.check_dataset(dataset)
    return _ZFS + dataset


def open_at(agent: Agent, resolved: str) -> Repository:
    """The repository at what :func:`resolve` returned."""
    if is_dataset(resolved):
        # Imported here: half of all agents never need it.
        from dsg_remote_agent.storage.zfs.command import Zfs
        from dsg_remote_agent.storage.zfs.repository import ZfsRepository

        dataset = resolved.removeprefix(_ZFS)
        zfs = Zfs.find(agent.note_command)
        return ZfsRepository(zfs, dataset, agent.now, agent.failpoints, agent.machine)
    tree = PosixTree(agent.policy.roots.open(resolved))
    try:
        return DirectoryRepository(tree, resolved, agent.now, agent.failpoints, agent.machine)
    except BaseException:
        tree.close()
        raise


def make_at(agent: Agent, resolved: str, request: InitRepo) -> SnapshotRecord:
    """Make the repository that a client asks for; the record of its s0."""
    if is_dataset(resolved):
        from dsg_remote_agent.storage.layout import ZFS
        from dsg_remote_agent.storage.zfs.command import Zfs
        from dsg_remote_agent.storage.zfs.init import make_zfs_repository

        marker = Marker(request.repo_id, request.algorithm, agent.now(), ZFS)
        dataset = resolved.removeprefix(_ZFS)
        zfs = Zfs.find(agent.note_command)
        return make_zfs_repository(
            zfs, dataset, marker, request.user, request.host, request.settings, request.group
        )
    fd = agent.policy.roots.open(resolved, create=True)
    tree = PosixTree(fd)
    try:
        if request.group:
            share_with(fd, request.group, resolved)
        marker = Marker(request.repo_id, request.algorithm, agent.now())
        return make_repository(tree, resolved, marker, request.user, request.host, request.settings)
    finally:
        tree.close()


def take_at(
    agent: Agent, resolved: str, request: TakeDataset, tick: Callable[[], None]
) -> tuple[SnapshotRecord, tuple[str, ...]]:
    """Take a dataset over as the repository that a client asks for; the record of its s0, and notes."""
    if not is_dataset(resolved):
        raise UsageError(
            f"{escape(resolved)} is a folder, and only a dataset can be taken over as a repository",
            hint="write zfs:POOL/…/NAME for the repository",
        )
    from dsg_remote_agent.storage.layout import ZFS
    from dsg_remote_agent.storage.zfs.command import Zfs
    from dsg_remote_agent.storage.zfs.taking import Wish, take_dataset

    source = request.source.removeprefix(_ZFS)
    agent.policy.roots.check_dataset(source)
    marker = Marker(request.repo_id, request.algorithm, agent.now(), ZFS)
    dataset = resolved.removeprefix(_ZFS)
    wish = Wish(dataset, source, marker, request.user, request.host, request.settings, request.group)
    return take_dataset(Zfs.find(agent.note_command), wish, tick, agent.notice)


def unusual_at(resolved: str) -> tuple[str, ...]:
    """What people should know of the place of a repository that was just made; each with its cure."""
    if not is_dataset(resolved):
        return ()
    from dsg_remote_agent.storage.zfs.advising import advise
    from dsg_remote_agent.storage.zfs.command import Zfs

    found = advise(Zfs.find(), resolved.removeprefix(_ZFS))
    return tuple(one.text + (f" ({one.command})" if one.command else "") for one in found)

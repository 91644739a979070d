"""What can be wrong with a server and a repository on it, looked at one by one."""

from __future__ import annotations

import grp
import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsg_remote_agent.lock import read_holder
from dsg_remote_agent.places import is_dataset
from dsg_remote_agent.storage.directory import DirectoryRepository
from dsg_remote_agent.storage.layout import AREA, LOCK, RESCUED, STAGING, TMP
from protocol.errors import ConfigError, DsgError
from protocol.messages import Check
from protocol.paths import escape
from protocol.tree.posix import PosixTree

if TYPE_CHECKING:
    from dsg_remote_agent.dispatch import Agent

__all__ = ["examine_server"]

_LITTLE_SPACE = 1 << 30


def examine_server(agent: Agent, path: str) -> Iterator[Check]:
    """Look at this server and, unless ``path`` is '', at the repository there; nothing is changed."""
    yield _python()
    yield _parts()
    yield _check("account", True, f"{_account()}, groups {', '.join(_groups())}")
    yield _check(
        "role",
        True,
        f"{agent.policy.role.value}, "
        + (f"only in {', '.join(agent.policy.roots.roots)}" if agent.policy.roots.roots else "any folder"),
    )
    if is_dataset(path):
        yield from _dataset(agent, path)
    elif path:
        yield from _repository(agent, path)


def _check(name: str, ok: bool, detail: str, cure: str = "") -> Check:
    # A cure of several lines is to be pasted line by line.
    lines = "\n".join(map(escape, cure.split("\n")))
    return Check(name=name, ok=ok, detail=escape(detail)[:4000], cure="" if ok else lines[:4000])


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return _check(
        "python",
        sys.version_info >= (3, 11),
        f"Python {version} ({sys.executable or 'unknown'}) on {os.uname().sysname} {os.uname().release}",
        "install Python 3.11 or newer",
    )


def _parts() -> Check:
    found = []
    for name in ("zstandard", "blake3"):
        try:
            __import__(name)
        except ImportError:
            continue
        found.append(name)
    return _check("faster parts", True, f"present: {', '.join(found) or 'none (zlib and sha256 are used)'}")


def _account() -> str:
    from dsg_remote_agent.dispatch import account

    return account()


def _groups() -> list[str]:
    names = []
    for gid in sorted({os.getegid(), *os.getgroups()}):
        try:
            names.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            names.append(str(gid))
    return names


def _repository(agent: Agent, path: str) -> Iterator[Check]:
    if not os.path.isdir(path):
        parent = path
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        yield _check(
            "folder",
            os.access(parent, os.W_OK | os.X_OK),
            f"{path} does not exist yet; 'dsg init' would make it in {parent}",
            f"let this account write to {parent}, or make the folder and give it to this account's group",
        )
        return
    try:
        tree = PosixTree(agent.policy.roots.open(path))
    except (OSError, DsgError) as error:
        yield _check("folder", False, str(error), "let this account read the folder")
        return
    try:
        yield _check(
            "folder",
            os.access(path, os.R_OK | os.W_OK | os.X_OK),
            f"{path}: {stat.filemode(os.stat(path).st_mode)}",
            "the folder must be writable by this account, or by a group that it is in",
        )
        yield _sharing(path)
        yield _space(tree)
        yield from _contents(agent, tree, path)
    finally:
        tree.close()


def _dataset(agent: Agent, path: str) -> Iterator[Check]:
    """The repository in a dataset, or what keeps it from being there."""
    from dsg_remote_agent.storage.zfs.command import Zfs
    from dsg_remote_agent.storage.zfs.doctor import examine_zfs
    from dsg_remote_agent.storage.zfs.repository import ZfsRepository

    dataset = path.removeprefix("zfs:")
    try:
        zfs = Zfs.find()
    except DsgError as error:
        yield _check("zfs", False, error.message, error.hint)
        return
    try:
        repository = ZfsRepository(zfs, dataset, agent.now, agent.failpoints, agent.machine)
    except (OSError, DsgError) as error:
        for finding in examine_zfs(zfs, dataset, None):
            yield _check(*finding)
        if not isinstance(error, ConfigError):
            yield _check("repository", False, str(error), getattr(error, "hint", "") or "see the agent's log")
        return
    try:
        for finding in examine_zfs(zfs, dataset, repository):
            yield _check(*finding)
        _, record, _ = repository.head()
        yield _check(
            "repository", True, f"{repository.repo_id} at snapshot s{record.seq}, {record.entries:,} entries"
        )
        yield _space(repository.site.outer)
        yield from _locks(repository.site.outer)
    except (OSError, DsgError) as error:
        yield _check("repository", False, str(error), getattr(error, "hint", "") or "see the agent's log")
    finally:
        repository.close()


def _sharing(path: str) -> Check:
    """Whether what one account makes in the repository can be changed by the others of its group."""
    bad = []
    for name in ("", AREA, STAGING, TMP, f"{AREA}/records", f"{AREA}/history/objects"):
        folder = os.path.join(path, name)
        try:
            found = os.stat(folder)
        except OSError:
            continue
        if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISGID:
            continue  # one person's own repository
        if not found.st_mode & stat.S_ISGID or not found.st_mode & stat.S_IWGRP:
            bad.append(name or path)
    top = os.stat(path)
    shared = bool(top.st_mode & stat.S_ISGID)
    return _check(
        "sharing",
        not bad,
        f"shared with the group {_group(top.st_gid)}"
        if shared and not bad
        else "used by one account"
        if not bad
        else f"not writable by the group, or without setgid: {', '.join(bad)}",
        f"find {path} -type d -exec chmod g+rwxs {{}} + ; chmod -R g+rw {path}",
    )


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _space(tree: PosixTree) -> Check:
    free = tree.free_bytes()
    return _check("space", free >= _LITTLE_SPACE, f"{free:,} bytes free", "free space, or raise the quota")


def _contents(agent: Agent, tree: PosixTree, path: str) -> Iterator[Check]:
    try:
        repository = DirectoryRepository(tree, path, agent.now, agent.failpoints, agent.machine)
        _, record, unapplied = repository.head()
    except (OSError, DsgError) as error:
        hint = error.hint if isinstance(error, DsgError) else ""
        yield _check("repository", False, str(error), hint or "look at the agent's log")
        return
    yield _check(
        "repository", True, f"{repository.repo_id} at snapshot s{record.seq}, {record.entries:,} entries"
    )
    yield from _locks(tree)
    yield _check(
        "unfinished commit",
        not unapplied,
        "a committed sync waits to be carried out" if unapplied else "none",
        "the next sync finishes it, or 'dsg recover' now",
    )
    left = _names(tree, STAGING)
    running = tree_locked(tree)
    yield _check(
        "leftovers",
        not left or running,
        f"staging of {len(left)} transactions" + (" (one is running)" if running else "") if left else "none",
        "the next sync removes them, or 'dsg recover' now",
    )
    rescued = _names(tree, RESCUED)
    yield _check(
        "rescued files",
        not rescued,
        f"{path}/{RESCUED} holds files of {len(rescued)} transactions" if rescued else "none",
        "a sync replaced these while somebody changed them in the repository's folder: look and remove",
    )


def _locks(tree: PosixTree) -> Iterator[Check]:
    if not tree_locked(tree):
        yield _check("lock", True, "free")
        return
    holder = read_holder(tree)
    who = (
        f"{holder.user or holder.account} from {holder.host}, process {holder.pid}" if holder else "somebody"
    )
    yield _check("lock", True, f"held by {who}: a sync is running")


def tree_locked(tree: PosixTree) -> bool:
    """Whether somebody holds the repository's lock just now."""
    try:
        lock = tree.lock(LOCK, shared=True)
    except OSError:
        return False
    if lock is None:
        return True
    lock.release()
    return False


def _names(tree: PosixTree, folder: str) -> set[str]:
    try:
        return tree.names(folder)
    except FileNotFoundError:
        return set()

"""Taking a dataset with files over as a repository's s0, by renaming it: not a byte is copied.

::

    checks; every file is read        nothing is changed yet, and people go on working
    create REPOSITORY                 dsg:from has the dataset's GUID and name; there is no dsg:format
    unmount DATASET                   or it is in use: then the container goes, and that was all
    rename DATASET REPOSITORY/g0
    inherit mountpoint; mount         and the links, so that all paths lead to the files again
    .dsg in it; snapshot g0@s0        what was written meanwhile is read once more
    set dsg:head; set dsg:format      with that it is a repository

From the rename on it only goes forward, and whatever stops it, the same call
goes on: the GUID tells where the dataset is by then. Until the end there is no
``dsg:format``, so that nobody takes it for a repository, and no other init,
which would destroy what an interrupted one made, goes near it. Nothing here
destroys a dataset but the container, which cannot be destroyed while there is
anything in it; and of snapshots only the s0 that this made.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable

from dsg_remote_agent.storage.base import Notice
from dsg_remote_agent.storage.inventory import Inventory, check_names, take_inventory
from dsg_remote_agent.storage.layout import LOCK
from dsg_remote_agent.storage.zfs.candidate import (
    Candidate,
    busy,
    examine_candidate,
    guid_of,
    refuse_inside,
)
from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.init import (
    Where,
    create_container,
    find_place,
    in_use,
    open_made,
    properties,
    refuse_taken,
)
from dsg_remote_agent.storage.zfs.mounts import mount, mounted_dataset, open_tree
from dsg_remote_agent.storage.zfs.moving import Begun, Moving, Wish
from dsg_remote_agent.storage.zfs.names import HeadValue, parse_source
from dsg_remote_agent.storage.zfs.privileges import account
from dsg_remote_agent.storage.zfs.site import Site
from dsg_remote_agent.storage.zfs.survey import ORIGIN, unfinished
from protocol.errors import ConfigError, DsgError, LockedError, NotPermittedError
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.transaction import NoFailpoints
from protocol.tree.posix import PosixTree

__all__ = ["Wish", "take_dataset"]

# Where the dataset was mounted: the place of a link, when it is taken over.
_PATH = "dsg:from-path"
_SPARE_BYTES = 4 << 20

Tick = Callable[[], None]
Taken = tuple[SnapshotRecord, tuple[str, ...]]


def take_dataset(zfs: Zfs, wish: Wish, tick: Tick, notice: Notice) -> Taken:
    """Make the dataset ``wish.source`` with all its files the repository ``wish.dataset``, or go on with it.

    The record of s0, and notes for people. A DsgError, and nothing is changed,
    for whatever is found to speak against it, also when it is in use; after
    the renaming the error says that the same call goes on. ``tick`` is called
    now and then until then, and may raise.
    """
    parse_source(wish.source)
    where = find_place(zfs, wish.dataset)
    begun = None
    if wish.source != wish.dataset:  # which is refused with better reasons than that the name is in use
        done = _taken_already(zfs, wish, where)
        if done is not None:
            return done, ()
        begun = _begun(zfs, wish)
    renamed = begun is not None and guid_of(zfs, f"{wish.dataset}/g0") == begun.guid
    candidate = known = None
    if not renamed:
        if begun is not None and os.geteuid() == 0 and guid_of(zfs, wish.source) == begun.guid:
            mount(zfs, wish.source, lock=None, shown=wish.source)  # what was interrupted had unmounted it
        candidate = _examine(zfs, wish, where, begun)
        known = _read_ahead(wish, where, candidate, begun, tick, notice)
        # That may have taken hours.
        candidate = _examine(zfs, wish, where, begun)
    if begun is None:
        assert candidate is not None
        begun = Begun(
            wish.marker.repo_id, f"{candidate.guid}:{candidate.name}", candidate.mountpoint, where.folder
        )
        if not create_container(zfs, where, *_own(begun)):
            raise _others(wish)
    return _under_the_lock(zfs, wish, begun, candidate, known, tick if renamed else lambda: None, notice)


def _others(wish: Wish) -> LockedError:
    return LockedError(f"{wish.dataset} is being made by somebody else", hint="wait until that is finished")


def _own(begun: Begun) -> tuple[str, ...]:
    return f"dsg:repo-id={begun.repo_id}", f"{ORIGIN}={begun.value}", f"{_PATH}={begun.path}"


def _examine(zfs: Zfs, wish: Wish, where: Where, begun: Begun | None) -> Candidate:
    """The dataset, when nothing speaks against it or against the place where it is to go."""
    candidate = examine_candidate(zfs, wish.source, where)
    if begun is not None and begun.guid != candidate.guid:
        raise ConfigError(
            f"another dataset that was called {wish.source} is being taken over as {wish.dataset}",
            hint=f"rename that one back; or give it up: zfs destroy {wish.dataset}, which has nothing in it",
        )
    # It may be mounted where the link is to be.
    if candidate.mountpoint != where.link:
        refuse_taken(where.link, ours=begun is not None)
    return candidate


# How far it is


def _taken_already(zfs: Zfs, wish: Wish, where: Where) -> SnapshotRecord | None:
    """The record of s0 when all is done; ConfigError when the name is in use for something else."""
    found = properties(zfs, wish.dataset, "dsg:format", "dsg:head", ORIGIN)
    if found is None:
        return None
    source = found[ORIGIN].partition(":")[2]
    if not found["dsg:format"] and not source:
        raise in_use(wish.dataset, "a dataset that is not DSG's is there")
    if source and source != wish.source:
        if found["dsg:format"]:
            raise in_use(wish.dataset, "a repository is there already")
        raise unfinished(wish.dataset, found[ORIGIN])
    if not source:
        raise in_use(wish.dataset, "a repository is there already, or one that 'dsg init' began to make")
    if not found["dsg:format"]:
        return None
    untouched = found["dsg:head"] and HeadValue.parse(found["dsg:head"], wish.dataset).seq == 0
    # One that is called so now is another.
    if untouched and not guid_of(zfs, wish.source):
        outer = open_made(where.folder, "")
        try:
            _, view, head = _site(zfs, wish, where.folder, outer).head()
            view.close()
            return head.record
        finally:
            outer.close()
    raise in_use(wish.dataset, f"{source} was taken over as it")


def _begun(zfs: Zfs, wish: Wish) -> Begun | None:
    """What an earlier call began; None when there was none."""
    found = properties(zfs, wish.dataset, "dsg:repo-id", ORIGIN, _PATH, "mountpoint")
    if found is None:
        return None
    return Begun(found["dsg:repo-id"], found[ORIGIN], found[_PATH], found["mountpoint"])


def _site(zfs: Zfs, wish: Wish, folder: str, outer: PosixTree) -> Site:
    return Site(zfs, wish.dataset, folder, outer, lambda: wish.marker.created, NoFailpoints(), "")


# Before anything is changed


def _read_ahead(
    wish: Wish, where: Where, candidate: Candidate, begun: Begun | None, tick: Tick, notice: Notice
) -> Inventory:
    """Look at every name and read every file where it lies; refuse what cannot be taken over."""
    name, path = candidate.name, candidate.mountpoint
    in_use = busy(name, path)
    if in_use is not None:
        raise in_use
    tree = _open_here(name, path)
    try:
        refuse_inside(tree, path)
        try:
            check_names(tree, path, tick)
        except PermissionError:
            if os.geteuid() == 0:
                raise  # else the administrator's commands follow
        if os.geteuid() != 0:
            raise _for_the_administrator(wish, where, candidate, begun, tree)
        free = tree.free_bytes()
        if free < _SPARE_BYTES:
            raise _too_full(name, free)
        notice("hashing")
        algorithm, who = wish.marker.algorithm, wish.user
        known = take_inventory(tree, algorithm, who, time.time_ns(), tick)
        needed = _SPARE_BYTES + len(known.manifest.to_bytes())
        if free < needed:
            raise _too_full(name, free)
        return known
    finally:
        tree.close()


def _too_full(name: str, free: int) -> DsgError:
    """The error for a dataset in which a manifest has no room."""
    return ConfigError(
        f"{name} has only {free:,} bytes free, too few for what DSG keeps beside the files",
        hint=f"raise its quota, or free space in the pool: zfs list -o space {name}; nothing was changed",
    )


def _open_here(name: str, path: str) -> PosixTree:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if mounted_dataset(fd) != name:
        os.close(fd)
        raise ConfigError(
            f"at {escape(path)} there is something else to be seen than {name}",
            hint="is another file system mounted over it? 'findmnt' shows it",
        )
    return open_tree(fd)


def _for_the_administrator(
    wish: Wish, where: Where, candidate: Candidate, begun: Begun | None, tree: PosixTree
) -> NotPermittedError:
    """The refusal for an account that is not root, with what root has to run; then the same call goes on."""
    source, g0, here = candidate.name, f"{wish.dataset}/g0", f"{where.folder}/g0"
    told = begun or Begun(wish.marker.repo_id, f"{candidate.guid}:{source}", candidate.mountpoint, "")
    old = shlex.quote(candidate.mountpoint)
    commands = []
    if begun is None:
        more = [f"mountpoint={where.folder}"] if where.own_mountpoint else []
        words = [shlex.quote(word) for prop in (*_own(told), *more) for word in ("-o", prop)]
        commands.append(f"zfs create -o canmount=off {' '.join(words)} {wish.dataset}")
    commands += [f"zfs unmount {source}", f"zfs rename {source} {g0}", f"zfs inherit mountpoint {g0}"]
    if "readonly" in candidate.own:
        commands.append(f"zfs inherit readonly {g0}")
    if candidate.own.get("canmount", "on") != "on":
        commands.append(f"zfs set canmount=on {g0}")
    folder = shlex.quote(where.folder)
    commands += [f"install -d -o {shlex.quote(account())} -m 0755 {folder}", f"zfs mount {g0}"]
    if tree.stat("").uid != os.geteuid():
        commands.append(f"chown -R {shlex.quote(account())}: {shlex.quote(here)}")
    if candidate.mountpoint != where.link:
        commands += [f"rmdir {old}", f"ln -s {shlex.quote(where.link)} {old}"]
    return NotPermittedError(
        f"the account {account()} cannot rename {source}: that takes root's rights, once",
        hint="\n".join(
            [
                "# an administrator of the server runs, as root, when nobody uses it:",
                # Each only after the one before: should it be in use, nothing is changed.
                " &&\n".join(commands),
                "# then the same 'dsg init' again, which goes on from there",
            ]
        ),
        facts={"account": account(), "commands": commands},
    )


# Doing it


def _under_the_lock(
    zfs: Zfs,
    wish: Wish,
    begun: Begun,
    candidate: Candidate | None,
    known: Inventory | None,
    tick: Tick,
    notice: Notice,
) -> Taken:
    outer = open_made(begun.folder, wish.group)
    try:
        lock = outer.lock(LOCK)
        if lock is None:
            raise _others(wish)
        try:
            again = _begun(zfs, wish)
            if again != begun or properties(zfs, wish.dataset, "dsg:format") != {"dsg:format": ""}:
                raise _others(wish)  # who came first may have finished, or given it up
            site = _site(zfs, wish, begun.folder, outer)
            return Moving(site, wish, begun, lock.fileno(), tick, notice).run(candidate, known)
        finally:
            lock.release()
    finally:
        outer.close()

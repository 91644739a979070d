"""Making a new, empty ZFS repository below an existing dataset."""

from __future__ import annotations

import os
from typing import NamedTuple

from dsg_remote_agent.storage.directory_init import fill_area, first_record, share_with
from dsg_remote_agent.storage.layout import AREA, LOCK, TMP, Marker
from dsg_remote_agent.storage.zfs.command import Trouble, Zfs, failure
from dsg_remote_agent.storage.zfs.links import check_place, set_link
from dsg_remote_agent.storage.zfs.mounts import (
    destroy,
    let_mount,
    open_root,
    open_tree,
    refuse_without_mounting,
)
from dsg_remote_agent.storage.zfs.names import GENERATIONS, HeadValue, snapshot
from dsg_remote_agent.storage.zfs.site import CLEANING_LOCK, Site, link_path
from dsg_remote_agent.storage.zfs.survey import ORIGIN, take_survey, unfinished
from protocol.errors import ConfigError, LockedError
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.transaction import NoFailpoints
from protocol.tree.posix import PosixTree

__all__ = [
    "Where",
    "create_container",
    "find_place",
    "in_use",
    "make_container",
    "make_zfs_repository",
    "open_made",
    "properties",
    "refuse_taken",
]

# Names that ZFS would fold, or that DSG could not tell apart: to be chosen when a dataset is made, or never.
_FIXED = ("casesensitivity=sensitive", "normalization=none", "utf8only=off")
# What a ZFS does not have is left as it is: none of it is needed. Each only where nobody chose otherwise.
_WANTED = (
    ("atime", "off"),
    ("setuid", "off"),
    ("devices", "off"),
    ("compression", "lz4"),
    ("xattr", "sa"),
    ("acltype", "posixacl"),
    ("com.sun:auto-snapshot", "false"),
)


def make_zfs_repository(
    zfs: Zfs, dataset: str, marker: Marker, user: str, host: str, settings: str, group: str
) -> SnapshotRecord:
    """Make an empty repository (snapshot s0) in the new dataset ``dataset``; its record.

    ConfigError when the name is in use, there is no dataset to make it below,
    or that has no folder to be mounted in. After a crash the same call goes
    on; half a repository is never taken for one, as ``dsg:head`` comes last.
    """
    refuse_without_mounting(dataset)
    folder = make_container(zfs, dataset, marker)
    outer = open_made(folder, group)
    try:
        lock = outer.lock(LOCK)
        if lock is None:
            raise LockedError(f"{dataset} is being made by somebody else", hint="wait until that is finished")
        try:
            # Whoever came first may have finished it before this process had the lock.
            if take_survey(zfs, dataset).head is not None:
                raise in_use(dataset, "a repository is there already")
            site = Site(zfs, dataset, folder, outer, lambda: marker.created, NoFailpoints(), "")
            return _fill(site, marker, user, host, settings, group, lock.fileno())
        finally:
            lock.release()
    finally:
        outer.close()


class Where(NamedTuple):
    """Where a new repository goes: its dataset, the one above, and the folder of its generations."""

    dataset: str
    parent: str
    folder: str
    own_mountpoint: bool  # the folder does not follow from what the parent has

    @property
    def link(self) -> str:
        """The path of the link that people will use."""
        return link_path(self.folder, self.dataset.rpartition("/")[2])


def find_place(zfs: Zfs, dataset: str) -> Where:
    """Where the repository ``dataset`` would go; ConfigError when there is nothing to make it below."""
    parent, name = dataset.rpartition("/")[::2]
    above = properties(zfs, parent, "type", "mountpoint", "readonly")
    if above is None or above["type"] != "filesystem":
        raise ConfigError(
            f"there is no file system {parent} on the server to make {dataset} in",
            hint="an administrator makes it: "
            f"zfs create -p -o canmount=off -o mountpoint=FOLDER/{GENERATIONS} {parent}",
        )
    mountpoint = above["mountpoint"]
    if not os.path.isabs(mountpoint):
        raise ConfigError(
            f"{parent} has the mountpoint {mountpoint!r}: there is no folder for its repositories",
            hint=f"an administrator chooses one: zfs set mountpoint=FOLDER/{GENERATIONS} {parent}",
        )
    inherited = os.path.basename(mountpoint) == GENERATIONS
    folder = f"{mountpoint}/{name}" if inherited else f"{mountpoint}/{GENERATIONS}/{name}"
    return Where(dataset, parent, folder, not inherited)


def make_container(zfs: Zfs, dataset: str, marker: Marker) -> str:
    """Make the dataset of the repository, or go on with one that is unfinished; its mountpoint."""
    where = find_place(zfs, dataset)
    found = properties(zfs, dataset, "dsg:format", "dsg:repo-id", "dsg:head", "mountpoint", ORIGIN)
    if found is not None and found[ORIGIN] and not (found["dsg:format"] and found["dsg:head"]):
        # There are files in it that nobody else has.
        raise unfinished(dataset, found[ORIGIN])
    if found is not None and not found["dsg:format"]:
        raise in_use(dataset, "a dataset that is not DSG's is there")
    if found is not None and found["dsg:head"]:
        raise in_use(dataset, "a repository is there already")
    refuse_taken(where.link, ours=found is not None)
    if found is not None:
        return found["mountpoint"]
    if not create_container(zfs, where, "dsg:format=1", f"dsg:repo-id={marker.repo_id}"):
        return make_container(zfs, dataset, marker)
    return where.folder


def create_container(zfs: Zfs, where: Where, *own: str) -> bool:
    """Make the dataset of a repository with these user properties; False when it is there by now."""
    words = ["canmount=off", *own, *_fixed(zfs, where.parent)]
    if where.own_mountpoint:
        words.append(f"mountpoint={where.folder}")
    answer = zfs.run("create", *[word for prop in words for word in ("-o", prop)], where.dataset)
    if answer.trouble is Trouble.EXISTS:
        return False
    if not answer.good:
        raise failure(answer, where.dataset, "making the dataset")
    for prop, value in _WANTED:
        _prefer(zfs, where.dataset, prop, value)
    return True


def _fixed(zfs: Zfs, parent: str) -> list[str]:
    """What is fixed when a dataset is made; for an account that is not root only what is not so above.

    To choose what would be so anyway takes a right that nothing else takes.
    """
    if os.geteuid() == 0:
        return list(_FIXED)
    above = properties(zfs, parent, *(prop.partition("=")[0] for prop in _FIXED)) or {}
    return [prop for prop in _FIXED if above.get(prop.partition("=")[0]) != prop.partition("=")[2]]


def _prefer(zfs: Zfs, dataset: str, prop: str, value: str) -> None:
    """Set a property unless an administrator chose its value above; nothing where this ZFS lacks it."""
    answer = zfs.run("get", "-H", "-o", "source", prop, dataset)
    if answer.good and answer.out.split("\t")[0].strip() in ("default", "-"):
        zfs.run("set", f"{prop}={value}", dataset)


def properties(zfs: Zfs, dataset: str, *names: str) -> dict[str, str] | None:
    """Values by property ('' when unset, user properties only when local); None: no such dataset."""
    answer = zfs.run("get", "-H", "-p", "-o", "property,value,source", ",".join(names), dataset)
    if answer.trouble is Trouble.MISSING:
        return None
    if not answer.good:
        raise failure(answer, dataset, "looking at the dataset")
    found = {}
    for line in answer.out.splitlines():
        name, value, source = line.split("\t")
        found[name] = "" if value == "-" or (":" in name and source != "local") else value
    return found


def open_made(folder: str, group: str) -> PosixTree:
    """The folder below which generations are mounted, with its locks; made where it is missing."""
    os.makedirs(folder, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = PosixTree(fd)
    try:
        if group:
            share_with(fd, group, folder)
        tree.make_folders(TMP)
        for lock in (LOCK, CLEANING_LOCK):
            try:
                tree.write_bytes(lock, b"")
            except FileExistsError:
                continue
        tree.flush()
    except BaseException:
        tree.close()
        raise
    return tree


def _fill(
    site: Site, marker: Marker, user: str, host: str, settings: str, group: str, lock: int
) -> SnapshotRecord:
    """Make the first generation, its snapshot and link, and last the head."""
    zfs, shown = site.zfs, site.shown
    name = site.name_of(0)
    # Of an init that was interrupted: it never had a head, so that nobody has put anything into it.
    zfs.run("destroy", f"{name}@{snapshot(0)}", lock=lock)
    destroy(zfs, name, lock=lock)
    zfs.must("set", f"dsg:repo-id={marker.repo_id}", site.dataset, lock=lock, shown=shown)
    zfs.must("create", "-o", "canmount=noauto", name, lock=lock, shown=shown)
    fd = open_root(zfs, name, f"{site.folder}/g0", mounted=False, lock=lock, shown=shown)
    tree = open_tree(fd)
    try:
        if group:
            share_with(fd, group, name)
        record = first_record(marker, user, host)
        tree.mkdir(AREA)
        fill_area(tree, AREA, marker, record, settings)
        tree.flush()
    finally:
        tree.close()
    let_mount(zfs, name, lock=lock, shown=shown)
    zfs.must("snapshot", f"{name}@{snapshot(0)}", lock=lock, shown=shown)
    os.close(open_root(zfs, name, f"{site.folder}/g0", mounted=False, lock=lock, shown=shown))
    set_link(site, 0)
    zfs.must("set", f"dsg:head={HeadValue(0, 0, '', record.digest)}", site.dataset, lock=lock, shown=shown)
    return record


def refuse_taken(link: str, *, ours: bool) -> None:
    """ConfigError when something stands where the link is to be, or the folder for it is missing.

    ``ours``: an init was interrupted here; what it left is a link.
    """
    folder, name = os.path.split(link)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no folder {escape(folder)} on the server for the link to the repository",
            hint=f"is the file system above mounted? else make it: mkdir -p {escape(folder)}",
        ) from None
    try:
        if ours:
            check_place(fd, name, folder)
        elif os.path.lexists(link):
            raise ConfigError(
                f"{escape(link)} exists, where the link to the repository is to be",
                hint="choose another name for the dataset, or move that away",
            )
    finally:
        os.close(fd)


def in_use(dataset: str, why: str) -> ConfigError:
    """The error for a name that cannot be made a repository."""
    return ConfigError(
        f"the name {dataset} is in use: {why}", hint="clone it with 'dsg clone', or choose another name"
    )

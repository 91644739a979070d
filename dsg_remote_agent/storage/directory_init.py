"""Making a new, empty directory repository."""

from __future__ import annotations

import grp
import os
import stat

from dsg_remote_agent.storage.chain import head_bytes
from dsg_remote_agent.storage.layout import (
    AREA,
    FORMAT_FILE,
    HEAD,
    INIT_PREFIX,
    LOCK,
    MANIFESTS,
    OBJECTS,
    READERS_LOCK,
    RECORDS,
    SETTINGS,
    STAGING,
    TMP,
    Marker,
    manifest_path,
    object_folders,
    record_path,
)
from dsg_remote_agent.storage.livetree import is_ours
from dsg_remote_agent.storage.manifests import BlockPacker
from protocol.errors import ConfigError, NotPermittedError, UsageError
from protocol.manifest import Manifest
from protocol.records import SnapshotRecord
from protocol.tree.posix import PosixTree

__all__ = ["fill_area", "first_record", "make_repository", "share_with"]


def share_with(fd: int, group: str, shown: str) -> None:
    """Give an open folder to a Unix group, with the setgid bit, so that all in it belongs to the group.

    UsageError when there is no such group, NotPermittedError when the folder
    is somebody else's and not shared like this already.
    """
    try:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(
            f"the server has no group {group!r}", hint="'getent group' on the server lists its groups"
        ) from None
    wanted = stat.S_ISGID | 0o770
    found = os.fstat(fd)
    try:
        if found.st_gid != gid:
            os.chown(fd, -1, gid)
        if stat.S_IMODE(os.fstat(fd).st_mode) & wanted != wanted:
            os.chmod(fd, stat.S_IMODE(found.st_mode) | wanted)
    except PermissionError:
        raise NotPermittedError(
            f"{shown} cannot be given to the group {group!r}",
            hint=f"join the group, or ask an administrator: chgrp {group} {shown} && chmod g+rwxs {shown}",
        ) from None


def make_repository(
    tree: PosixTree, shown: str, marker: Marker, user: str, host: str, settings: str
) -> SnapshotRecord:
    """Make an empty repository (snapshot s0) in the folder ``tree``; its record.

    Built beside and renamed into place: a crash leaves a ``.dsg-init-…``
    folder that the next init passes over, never half a repository. ConfigError
    when the folder holds anything. ``settings`` is kept for clones, as it is.
    """
    _refuse_nesting(shown)
    names = tree.names("")
    if AREA in names:
        raise ConfigError(
            f"{shown} has a .dsg folder already",
            hint="clone it with 'dsg clone', or name another folder",
        )
    others = sorted(name for name in names if not is_ours(name))
    if others:
        raise ConfigError(
            f"{shown} is not empty: it holds {others[0]!r}"
            + (f" and {len(others) - 1} more" if len(others) > 1 else ""),
            hint="name a folder that does not exist yet, or an empty one",
        )
    record = first_record(marker, user, host)
    beside = f"{INIT_PREFIX}{marker.repo_id}"
    tree.mkdir(beside)
    fill_area(tree, beside, marker, record, settings)
    tree.make_folders(_in(beside, OBJECTS))
    for folder in object_folders():
        tree.mkdir(_in(beside, folder))
    for path in (LOCK, READERS_LOCK):
        tree.write_bytes(_in(beside, path), b"")
    tree.flush()
    try:
        # A folder with anything in it is never replaced by rename(2): of two inits one fails here.
        tree.move(beside, AREA)
    except OSError as error:
        raise ConfigError(
            f"{shown} became a repository while it was being made here", hint="clone it with 'dsg clone'"
        ) from error
    tree.flush_folder("")
    return record


def first_record(
    marker: Marker, user: str, host: str, manifest: Manifest | None = None, size: int = 0
) -> SnapshotRecord:
    """The record of the snapshot s0: empty, or with the files of ``manifest``, ``size`` bytes in all."""
    manifest = manifest or Manifest.from_entries([], marker.algorithm)
    return SnapshotRecord(
        repo_id=marker.repo_id,
        seq=0,
        manifest=manifest.digest,
        parent="",
        txid="",
        user=user,
        host=host,
        time=marker.created,
        message="",
        entries=len(manifest),
        size=size,
        added=len(manifest),
        changed=0,
        deleted=0,
    )


def fill_area(
    tree: PosixTree,
    area: str,
    marker: Marker,
    record: SnapshotRecord,
    settings: str,
    manifest: Manifest | None = None,
) -> None:
    """Fill the empty folder ``area`` with what every repository's ``.dsg`` holds; not flushed.

    ``manifest``: that of s0 when it is not empty.
    """
    for folder in (RECORDS, MANIFESTS, STAGING, TMP):
        tree.make_folders(_in(area, folder))
    manifest = manifest or Manifest.from_entries([], marker.algorithm)
    with BlockPacker() as packer:
        packer.add(manifest.to_bytes())
        packer.write(tree, _in(area, manifest_path(0)))
    for path, content in (
        (record_path(0), record.to_bytes()),
        (HEAD, head_bytes(record, record.digest)),
        (SETTINGS, settings.encode()),
        (FORMAT_FILE, marker.to_bytes()),
    ):
        tree.write_bytes(_in(area, path), content)


def _refuse_nesting(shown: str) -> None:
    above = os.path.dirname(shown)
    while above != os.path.dirname(above):
        if os.path.lexists(os.path.join(above, FORMAT_FILE)):
            raise ConfigError(
                f"{shown} lies inside {above}, which is a DSG folder itself",
                hint="choose a place outside of every repository and working folder",
            )
        above = os.path.dirname(above)


def _in(beside: str, path: str) -> str:
    return beside + path.removeprefix(AREA)

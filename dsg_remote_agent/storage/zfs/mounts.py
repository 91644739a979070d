"""Mounting datasets, and opening their roots so that what is opened is known to be that dataset."""

from __future__ import annotations

import os
import re
import sys
import time

from dsg_remote_agent.storage.zfs.command import Trouble, Zfs, failure
from protocol.errors import RemoteStorageError
from protocol.paths import escape
from protocol.tree.fs import Capabilities
from protocol.tree.posix import PosixTree
from protocol.tree.syscalls import system

__all__ = [
    "destroy",
    "let_mount",
    "mount",
    "mount_table",
    "mounted_dataset",
    "open_root",
    "open_tree",
    "refuse_without_mounting",
    "unmount",
]

_TRIES = 5
_DELAY_S = 0.03

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Known and not tried out: to try anything a file must be made, and a head must not be written to. The grain
# is that of pools of version 23; a coarser one than true only makes a look read more files.
_CAPABILITIES = Capabilities(
    executable_bit=True,
    symlinks=True,
    case_sensitive=True,
    keeps_normal_form=True,
    swap=False,
    place=False,
    time_grain_ns=1_000_000_000,
)


def open_root(zfs: Zfs, name: str, mountpoint: str, *, mounted: bool, lock: int | None, shown: str) -> int:
    """A readable descriptor of the root of dataset ``name``, which is mounted if need be.

    RemoteStorageError when what is at its mountpoint is something else, or it
    cannot be mounted. ``lock``: as for :meth:`Zfs.run`.
    """
    fd = _open(mountpoint)
    if fd is not None and not mounted and mounted_dataset(fd) != name:
        # To be mounted: some mount a clone by themselves, so it was worth a look.
        os.close(fd)
        fd = None
    if fd is None:
        mount(zfs, name, lock=lock, shown=shown)
        fd = os.open(mountpoint, _FOLDER)
    try:
        found = mounted_dataset(fd)
        if found != name:
            raise RemoteStorageError(
                f"at {escape(mountpoint)} there is {escape(found) or 'nothing'} mounted, and not {name}",
                hint=f"as an administrator: zfs mount {name}",
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def refuse_without_mounting(dataset: str) -> None:
    """NotPermittedError when this account has no way to mount what is made in the repository ``dataset``."""
    if os.geteuid() != 0:
        from dsg_remote_agent.storage.zfs.privileges import refuse_without

        refuse_without(dataset.rpartition("/")[0])


def mount(zfs: Zfs, name: str, *, lock: int | None, shown: str) -> None:
    """Mount ``name``, unless it is; zfs-fuse calls a file system busy for a moment after it was unmounted."""
    for attempt in range(_TRIES):
        time.sleep(_DELAY_S * attempt)
        answer = zfs.mounting("mount", name, lock=lock)
        if answer.good or answer.trouble is Trouble.EXISTS:
            return
        if answer.trouble is not Trouble.BUSY or attempt + 1 == _TRIES:
            raise failure(answer, shown, f"mounting {name}")


def _open(mountpoint: str) -> int | None:
    try:
        return os.open(mountpoint, _FOLDER)
    except FileNotFoundError:
        return None


def open_tree(fd: int) -> PosixTree:
    """The tree of a dataset whose root is ``fd``, which it owns from here on.

    One flush is good for all of it: a snapshot holds whatever was written
    before it was taken, and is durable when ``zfs snapshot`` returns.
    """
    return PosixTree(fd, system().but(syncfs_trusted=lambda _: True), _CAPABILITIES)


def unmount(zfs: Zfs, name: str, *, lock: int | None, limit: float | None = None) -> Trouble:
    """Unmount ``name``, never by force; NONE too when it was not mounted."""
    answer = zfs.mounting("unmount", name, lock=lock, limit=limit)
    return Trouble.NONE if answer.trouble is Trouble.MISSING else answer.trouble


def let_mount(zfs: Zfs, name: str, *, lock: int, shown: str) -> None:
    """Set ``canmount=on``. zfs-fuse mounts it anew for that, which a descriptor in passing may prevent."""
    for attempt in range(_TRIES):
        time.sleep(_DELAY_S * attempt)
        answer = zfs.run("set", "canmount=on", name, lock=lock)
        # It may be set though mounting it anew failed.
        if answer.good or zfs.run("get", "-H", "-o", "value", "canmount", name).out.strip() == "on":
            return
        if answer.trouble is not Trouble.BUSY:
            break
    raise failure(answer, shown, f"letting {name} be mounted")


def destroy(
    zfs: Zfs, name: str, *, lock: int | None, limit: float | None = None, unmounted: bool = False
) -> Trouble:
    """Unmount and destroy the one dataset ``name``, which has no snapshots; NONE too when it is gone.

    zfs-fuse lets go of a file system a moment after it was unmounted: a
    destroy that finds it busy is tried a few times more.
    """
    trouble = Trouble.NONE if unmounted else unmount(zfs, name, lock=lock, limit=limit)
    # Who may not unmount may still destroy what is not mounted, and nothing else.
    if trouble not in (Trouble.NONE, Trouble.DENIED):
        return trouble
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_DELAY_S * attempt)
        trouble = zfs.run("destroy", name, lock=lock, limit=limit).trouble
        if trouble is Trouble.MISSING:
            return Trouble.NONE
        if trouble is not Trouble.BUSY:
            break
    return trouble


def mounted_dataset(fd: int) -> str:
    """The dataset in whose root folder ``fd`` is; '' when it is not the root of any mounted one."""
    if not sys.platform.startswith("linux"):
        return _mounted_elsewhere(fd)
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as told:
        mount = next(line.split()[1] for line in told if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")
            if fields[0] != mount:
                continue
            # proc(5): id parent dev root mountpoint options... - type source options
            source = fields[fields.index("-") + 2]
            root = os.path.samestat(os.fstat(fd), os.stat(_plain(fields[4]), follow_symlinks=False))
            return _plain(source) if fields[3] == "/" and root else ""
    return ""


def mount_table() -> list[tuple[str, str]]:
    """What is mounted where, as (source, folder); nothing where the system does not tell."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            lines = [line.split(" ") for line in mounts]
    except OSError:
        return []
    return [(_plain(fields[fields.index("-") + 2]), _plain(fields[4])) for fields in lines]


def _plain(text: str) -> str:
    """A word of the mount table, where blanks are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _mounted_elsewhere(fd: int) -> str:
    import subprocess

    told = subprocess.run(["/sbin/mount", "-p"], capture_output=True, text=True, check=False).stdout
    for line in told.splitlines():
        source, _, rest = line.partition("\t")
        try:
            if os.path.samestat(os.fstat(fd), os.stat(rest.split("\t")[0].strip())):
                return source.strip()
        except OSError:
            continue
    return ""

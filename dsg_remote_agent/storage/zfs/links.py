"""The link to the head that people on the server use: replaced at once, so that nobody ever misses a file."""

from __future__ import annotations

import os
import stat

from dsg_remote_agent.storage.zfs.names import GENERATIONS
from dsg_remote_agent.storage.zfs.site import Site
from protocol.errors import RemoteStorageError
from protocol.paths import escape

__all__ = ["check_place", "is_current", "mend_link", "set_link"]


def is_current(site: Site, generation: int) -> bool:
    """Whether the link leads to ``generation``."""
    try:
        return os.readlink(site.link) == _target(site, generation)
    except OSError:
        return False


def mend_link(site: Site, generation: int) -> list[str]:
    """Let the link lead to ``generation`` if it does not; a note when that cannot be done."""
    if is_current(site, generation):
        return []
    try:
        set_link(site, generation)
    except (OSError, RemoteStorageError) as error:
        why = error.message if isinstance(error, RemoteStorageError) else error.strerror
        return [f"{escape(site.link)} could not be set to the newest snapshot: {why}"]
    return []


def set_link(site: Site, generation: int) -> None:
    """Let the link lead to ``generation``, durably; needs the lock, as the name beside it is fixed.

    RemoteStorageError when something else than a link stands in its place;
    OSError as the system says. The old link stays then.
    """
    folder, name = os.path.split(site.link)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check_place(fd, name, folder)
        beside = f".{name}.dsg-link"
        try:
            os.unlink(beside, dir_fd=fd)
        except FileNotFoundError:
            pass
        os.symlink(_target(site, generation), beside, dir_fd=fd)
        os.rename(beside, name, src_dir_fd=fd, dst_dir_fd=fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def check_place(fd: int, name: str, folder: str) -> None:
    """RemoteStorageError when in the folder ``fd`` something else than a link has this name."""
    try:
        mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISLNK(mode):
        raise RemoteStorageError(
            f"{escape(os.path.join(folder, name))} is no link, and stands where the link to the head goes",
            hint="move it away; the repository itself is whole",
        )


def _target(site: Site, generation: int) -> str:
    return f"{GENERATIONS}/{os.path.basename(site.link)}/g{generation}"

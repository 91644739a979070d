"""Which machine this is, and whose process: for journals, indexes, locks and attribution."""

from __future__ import annotations

import functools
import os
import pwd
import socket
import uuid

__all__ = ["filesystem_id", "host_name", "login_name", "machine_id"]


@functools.cache
def machine_id() -> str:
    """Text that differs between machines and stays through reboots and renames."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/hostid"):
        try:
            with open(path, "rb") as file:
                text = file.read(100).hex()
        except OSError:
            continue
        if len(text) >= 8:
            return text
    # macOS and the BSDs: the hardware address of a network card. Where there is none, uuid makes one up
    # for this process, which then is a machine of its own: rows are read again, and nothing worse.
    return f"{uuid.getnode():012x}"


def host_name() -> str:
    """This machine's name, for people."""
    return socket.gethostname() or "localhost"


def login_name() -> str:
    """The account's name, else its number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def filesystem_id(path: str | os.PathLike[str] | int) -> int:
    """What tells the file system of ``path`` from others, also after a reboot where it can."""
    # Device numbers of btrfs, ZFS and NFS are handed out anew at each mount; f_fsid comes from the volume.
    return os.statvfs(path).f_fsid or os.stat(path).st_dev

"""A server on which the agent is an ordinary account: real sudo and dsg-zfs-mount, and a delegated ``zfs``.

zfs-fuse lets nobody but root near it and knows no ``zfs allow``. The ``zfs`` on
the account's PATH here does what OpenZFS does for an account that was given
rights: all but mounting, which it refuses in OpenZFS's words. Everything that
is put into system folders is seen in the tests' mount namespace only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

import dsg_remote_agent
from tests.conftest import find_program
from tests.hosts.accounts import Account
from tests.hosts.zfs_fuse import ZfsRoot

__all__ = ["PROGRAM", "RIGHTS", "SOURCE", "Delegation", "delegation", "install", "system_folders"]

SOURCE = Path(dsg_remote_agent.__file__).parent / "zfs_mount.py"
PROGRAM = Path("/usr/local/sbin/dsg-zfs-mount")
CONFIG = Path("/etc/dsg/zfs-mount.conf")
SUDOERS = Path("/etc/sudoers.d")
RIGHTS = "canmount,clone,create,destroy,hold,mount,promote,readonly,release,snapshot,userprop"

# What the account may run as root in place of OpenZFS's kernel, which would let it.
_AS_ROOT = """\
#!/bin/sh
zfs={zfs}
case "$1" in
allow)
    cat {folder}/allow; exit 0;;
create|clone)
    "$zfs" "$@" || exit
    for name; do :; done
    at=$("$zfs" get -H -o value mountpoint "$name")
    # Only zfs-fuse mounts these by themselves. The root folder is its maker's.
    if [ "$1" = create ] && [ "$("$zfs" get -H -o value canmount "$name")" != off ]; then
        "$zfs" mount "$name" 2> /dev/null; chown {uid}:{gid} "$at"
    fi
    for n in 1 2 3 4 5 6; do
        [ "$("$zfs" get -H -o value mounted "$name")" = yes ] || break
        "$zfs" unmount "$name" && break; sleep 0.05
    done
    rmdir "$at" 2> /dev/null
    exit 0;;
destroy)
    if [ "$("$zfs" get -H -o value mounted "$2")" = yes ]; then
        echo "cannot unmount '$2': permission denied" >&2; exit 1
    fi;;
esac
exec "$zfs" "$@"
"""
_DELEGATED = """\
#!/bin/sh
echo "$*" >> {folder}/log
case "$1" in
mount) echo "cannot mount '$2': Insufficient privileges" >&2; exit 1;;
unmount) echo "cannot unmount '$2': permission denied" >&2; exit 1;;
esac
exec sudo -n {folder}/as-root "$@"
"""


@contextlib.contextmanager
def system_folders() -> Iterator[None]:
    """Empty folders over those that an administrator writes to; be in the tests' namespace."""
    covered = [PROGRAM.parent, CONFIG.parent, SUDOERS]
    for folder in covered:
        folder.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(folder))
    try:
        yield
    finally:
        for folder in covered:
            _run("umount", "-l", str(folder))


def install(root: str, account: str = "") -> None:
    """What docs/server.md tells an administrator to do."""
    shutil.copy(SOURCE, PROGRAM)
    PROGRAM.chmod(0o755)
    CONFIG.write_text(f"# made by a test\nroot = {root}\n")
    if account:
        rule = SUDOERS / "dsg-zfs-mount"
        rule.write_text(f'{account} ALL=(root) NOPASSWD: {PROGRAM} ""\n')
        rule.chmod(0o440)


@frozen
class Delegation:
    """An account with rights on ``root``; ``folder`` holds its ``bin`` and the ``log`` of its zfs."""

    account: Account
    root: ZfsRoot
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """For the agent."""
        path = f"{self.folder / 'bin'}:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.account.home)}

    def allow(self, rights: str = RIGHTS) -> None:
        """What ``zfs allow ROOT`` tells."""
        title = f"---- Permissions on {self.root.dataset} "
        told = f"{title:-<70}\nLocal+Descendent permissions:\n\tuser {self.account.name} {rights}\n"
        (self.folder / "allow").write_text(told if rights else "")

    def commands(self) -> list[list[str]]:
        """The words of each command that the agent itself gave."""
        return [line.split() for line in (self.folder / "log").read_text().splitlines()]


@contextlib.contextmanager
def delegation(account: Account, root: ZfsRoot, folder: Path) -> Iterator[Delegation]:
    """The account with all that it needs; take away what is to be missing. In the namespace."""
    if find_program("sudo") is None:
        pytest.skip("sudo not found; to have it: sudo apt-get install -y sudo")
    (folder / "bin").mkdir(parents=True)
    folder.chmod(0o755)
    words = {"folder": folder, "zfs": find_program("zfs"), "uid": account.uid, "gid": account.gid}
    for path, text in ((folder / "as-root", _AS_ROOT), (folder / "bin" / "zfs", _DELEGATED)):
        path.write_text(text.format(**words))
        path.chmod(0o755)
    (folder / "log").touch()
    (folder / "log").chmod(0o666)
    with system_folders():
        found = Delegation(account, root, folder)
        found.allow()
        install(root.dataset, account.name)
        rule = SUDOERS / "delegated-zfs"
        rule.write_text(f"{account.name} ALL=(root) NOPASSWD: {folder / 'as-root'}\n")
        rule.chmod(0o440)
        for path in (root.folder, root.folder / ".gen"):
            os.chown(path, 0, account.gid)
            path.chmod(0o3775)
        yield found


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)

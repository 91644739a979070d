"""What this account may do with ZFS on this server: found out, never asked for.

Root may do everything. Another account needs rights that ``zfs allow`` gives
it, and on Linux the program ``dsg-zfs-mount`` by way of ``sudo -n``, as only
root may mount there; on FreeBSD ``vfs.usermount=1`` lets it mount. What is
missing is told as commands for the administrator, complete, for this account
and this root.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from dsg_remote_agent import zfs_mount
from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.names import GENERATIONS
from protocol.errors import NotPermittedError
from protocol.paths import escape

__all__ = [
    "NEEDED",
    "Right",
    "Way",
    "account",
    "advice",
    "examine_rights",
    "held_rights",
    "mounter",
    "refuse_without",
    "way",
]

# zfs-allow(8): create, clone, destroy, snapshot and promote each need mount too. The rest are what a
# transaction sets, and what 'dsg protect' holds.
NEEDED = (
    *("canmount", "clone", "create", "destroy", "hold", "mount", "promote", "readonly", "release"),
    *("snapshot", "userprop"),
)
# With these an account could have something else mounted, or elsewhere: dsg-zfs-mount refuses to work then.
_DANGEROUS = ("mountpoint", "receive", "rename")
_PLACES = ("/usr/local/sbin/dsg-zfs-mount", "/usr/sbin/dsg-zfs-mount")
_SUDOERS = "/etc/sudoers.d/dsg-zfs-mount"
_LIMIT = 10.0


class Way(Enum):
    """How this account mounts."""

    ROOT = "as root"
    PROGRAM = "by dsg-zfs-mount"
    USER = "as a user, which this system lets it"
    NONE = "not at all"


class Right(NamedTuple):
    """One thing that is needed; ``commands``: what an administrator runs when it is missing."""

    name: str
    ok: bool
    detail: str
    commands: tuple[str, ...] = ()


def way() -> Way:
    """How this account can mount here."""
    if os.geteuid() == 0:
        return Way.ROOT
    if mounter() is not None:
        return Way.PROGRAM
    return Way.USER if _user_mounts() else Way.NONE


def mounter() -> tuple[str, ...] | None:
    """The command that mounts for an account that is not root; None where there is none."""
    program, sudo = _program(), _sudo()
    if program is None or sudo is None or not sys.platform.startswith("linux"):
        return None
    return (sudo, "-n", "--", program)


def _program() -> str | None:
    return next((path for path in _PLACES if os.path.isfile(path)), None)


def _sudo() -> str | None:
    return shutil.which("sudo", path=os.environ.get("PATH", os.defpath) + ":/usr/local/bin:/usr/bin:/bin")


def _user_mounts() -> bool:
    if not sys.platform.startswith("freebsd"):
        return False
    told = subprocess.run(["sysctl", "-n", "vfs.usermount"], capture_output=True, text=True, check=False)
    return told.stdout.strip() == "1"


def refuse_without(root: str) -> None:
    """NotPermittedError, with an administrator's commands, when this account has no way to mount."""
    if way() is Way.NONE:
        raise NotPermittedError(
            f"the account {account()} cannot mount what a sync makes below {root}",
            hint=advice(root),
            facts={"root": root, "account": account()},
        )


def account() -> str:
    """The name of this account."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def advice(root: str) -> str:
    """What an administrator has to do that this account can work below ``root``, ready to paste."""
    if os.geteuid() == 0:
        return "the agent runs as root already: see its message, and whether the pool lets anybody write"
    commands = [command for right in examine_rights(Zfs.find(), root) for command in right.commands]
    if not commands:
        return "all rights that DSG knows of are there; what the server said above tells the rest"
    return "\n".join(["# an administrator of the server runs, as root:", *commands])


def examine_rights(zfs: Zfs, root: str) -> Iterator[Right]:
    """Each thing that an account which is not root needs below ``root``, and whether it is there."""
    yield from _delegation(zfs, root)
    if sys.platform.startswith("linux"):
        yield _installed()
        yield _configured(root)
        yield _allowed()
    else:
        yield Right(
            "user mounts",
            _user_mounts(),
            f"vfs.usermount lets {account()} mount" if _user_mounts() else "users may not mount",
            () if _user_mounts() else ("sysctl vfs.usermount=1", "echo vfs.usermount=1 >> /etc/sysctl.conf"),
        )
    yield from _folders(zfs, root)


# What is delegated


def _delegation(zfs: Zfs, root: str) -> Iterator[Right]:
    answer = zfs.run("allow", root)
    if not answer.good:
        detail = f"what is delegated on {root} cannot be read: {answer.said}"
        yield Right("delegation", False, detail, (_allow(NEEDED, root),))
        return
    held = held_rights(answer.out, root, account(), _groups())
    missing = [right for right in NEEDED if right not in held]
    yield Right(
        "delegation",
        not missing,
        f"{account()} lacks {', '.join(missing)} on {root}"
        if missing
        else f"{account()} has what it needs on {root}",
        (_allow(missing, root),) if missing else (),
    )
    dangerous = [right for right in _DANGEROUS if right in held]
    if dangerous:
        yield Right(
            "too much delegated",
            False,
            f"{account()} has {', '.join(dangerous)} on {root}: anything could be mounted anywhere, "
            "so that dsg-zfs-mount refuses to work",
            (f"zfs unallow -u {shlex.quote(account())} {','.join(dangerous)} {root}",),
        )


def _allow(rights: list[str] | tuple[str, ...], root: str) -> str:
    return f"zfs allow -u {shlex.quote(account())} {','.join(rights)} {root}"


def held_rights(told: str, root: str, user: str, groups: set[str]) -> set[str]:
    """The rights below ``root`` that ``zfs allow root`` tells ``user``, who is in ``groups``, to have.

    Those that hold on ``root`` alone do not count: what is done is done to
    what lies in it; except create and mount, which are needed there too and
    which people give both ways.
    """
    sets: dict[str, set[str]] = {}
    held: set[str] = set()
    section, dataset = "", ""
    for line in told.splitlines():
        header = re.fullmatch(r"-+ Permissions on (\S+) -*", line)
        words = line.split()
        if header:
            dataset = header[1]
        elif not line[:1].isspace():
            section = line.strip()
        elif section == "Permission sets:" and len(words) == 2:
            sets.setdefault(words[0], set()).update(words[1].split(","))
        elif section == "Local+Descendent permissions:" or (
            section == "Descendent permissions:" and dataset != root
        ):
            who, rights = words[:-1], words[-1].split(",")
            if (
                who == ["everyone"]
                or who == ["user", user]
                or (who[:1] == ["group"] and set(who[1:]) & groups)
            ):
                held.update(rights)
    while names := held & sets.keys():
        held = (held - names).union(*(sets[name] for name in names))
    return held


def _groups() -> set[str]:
    found = set()
    for gid in {os.getegid(), *os.getgroups()}:
        try:
            found.add(grp.getgrgid(gid).gr_name)
        except KeyError:
            found.add(str(gid))
    return found


# dsg-zfs-mount


def _installed() -> Right:
    program = _program()
    if program is not None:
        found = os.stat(program)
        if found.st_uid == 0 and not found.st_mode & 0o022:
            return Right("dsg-zfs-mount", True, program)
        return Right(
            "dsg-zfs-mount",
            False,
            f"{program} is not root's alone",
            (f"chown root:root {program} && chmod 0755 {program}",),
        )
    source = zfs_mount.__file__
    if not os.path.isfile(source):
        # The agent came over the wire; the file is where DSG is installed.
        source = "/opt/dsg/lib/python3*/site-packages/dsg_remote_agent/zfs_mount.py"
    return Right(
        "dsg-zfs-mount",
        False,
        "there is no program dsg-zfs-mount, and only root may mount",
        (f"install -o root -g root -m 0755 {source} {_PLACES[0]}",),
    )


def _configured(root: str) -> Right:
    folder = os.path.dirname(zfs_mount.CONFIG)
    cure = (
        f"install -d -o root -g root -m 0755 {folder}",
        f"echo 'root = {root}' > {zfs_mount.CONFIG}",
        f"chown root:root {zfs_mount.CONFIG} && chmod 0644 {zfs_mount.CONFIG}",
    )
    try:
        found = zfs_mount.configured_root()
    except zfs_mount.Stop as stop:
        return Right("its configuration", False, str(stop), cure)
    if found != root:
        return Right(
            "its configuration", False, f"{zfs_mount.CONFIG} names the root {found}, not {root}", cure
        )
    return Right("its configuration", True, f"{zfs_mount.CONFIG} names {root}")


def _allowed() -> Right:
    program = _program() or _PLACES[0]
    line = f'{account()} ALL=(root) NOPASSWD: {program} ""'
    cure = [f"echo '{line}' > {_SUDOERS}", f"chmod 0440 {_SUDOERS}"]
    sudo = _sudo()
    if sudo is None:
        detail = "there is no program sudo"
        return Right("sudo", False, detail, ("apt-get install -y sudo   # or as this system does", *cure))
    try:
        # Of a program that is not there yet sudo tells only by listing all.
        asked = ("-l", "--", program) if _program() else ("-l",)
        told = subprocess.run(
            [sudo, "-n", *asked],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return Right("sudo", False, f"{sudo} does not answer", tuple(cure))
    if told.returncode or program not in told.stdout:
        return Right(
            "sudo", False, f"{account()} may not run {program} as root without a password", tuple(cure)
        )
    return Right("sudo", True, f"{account()} may run {program} as root")


# The folders


def _folders(zfs: Zfs, root: str) -> Iterator[Right]:
    answer = zfs.run("get", "-H", "-o", "value", "mountpoint", root)
    folder = answer.out.rstrip("\n")
    if not answer.good or os.path.basename(folder) != GENERATIONS or not os.path.isabs(folder):
        return  # that is the root dataset's fault, and told there
    links = os.path.dirname(folder)
    bad = [path for path in (links, folder) if not _safe_and_usable(path)]
    group = shlex.quote(_group())
    yield Right(
        "folders",
        not bad,
        f"{escape(', '.join(bad))}: must be root's, and writable with the sticky bit for {account()}"
        if bad
        else f"{escape(links)} and {GENERATIONS} in it are root's, sticky, and writable",
        (f"install -d -o root -g {group} -m 3775 {' '.join(map(shlex.quote, bad))}",) if bad else (),
    )
    above = os.path.dirname(links)
    unsafe = [path for path in _upwards(above) if not _root_owned(path)]
    if unsafe:
        yield Right(
            "folders above",
            False,
            f"{escape(', '.join(unsafe))}: not root's, or others may write there without the sticky bit, "
            "so that dsg-zfs-mount refuses to mount below",
            tuple(f"chown root {p} && chmod go-w {p}" for p in map(shlex.quote, unsafe)),
        )


def _upwards(path: str) -> list[str]:
    found = [path]
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found


def _root_owned(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return True  # missing: told of what should be in it
    others_write = bool(found.st_mode & 0o022) and not found.st_mode & stat.S_ISVTX
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not others_write


def _safe_and_usable(path: str) -> bool:
    needs_root = sys.platform.startswith("linux")
    usable = os.path.isdir(path) and os.access(path, os.R_OK | os.W_OK | os.X_OK)
    return usable and (_root_owned(path) or not needs_root)


def _group() -> str:
    try:
        return grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return str(os.getegid())

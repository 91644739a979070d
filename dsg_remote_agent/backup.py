"""The command ``dsg-zfs-backup``: for the administrator of a ZFS server."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence

from dsg_remote_agent.storage.zfs.backup import back_up, restore
from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.names import parse_dataset, snapshot
from dsg_remote_agent.storage.zfs.streams import Side
from protocol.errors import DsgError, UsageError
from protocol.paths import escape
from protocol.version import VERSION

__all__ = ["main"]

_ABOUT = """
Keeps a copy of a ZFS repository, with all of its snapshots, in a dataset with
a fixed name; and makes a repository of such a copy again. Run it on the
server, as root or with the rights to send, hold and release there.

  dsg-zfs-backup send tank/dsg/survey vault/survey
  dsg-zfs-backup send tank/dsg/survey vault/survey --through 'ssh root@vault'
  dsg-zfs-backup restore vault/survey tank/dsg/survey

What was interrupted is continued by the same command.
"""
_STATUSES = """
exit status: 0 done, or nothing to do; 2 usage; 4 no repository or backup there, or the name is in use;
5 locked; 8 another repository's; 9 zfs failed, or the two have nothing in common; 14 not permitted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="dsg-zfs-backup",
        description=_ABOUT,
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dsg-zfs-backup {VERSION}")
    verbs = parser.add_subparsers(dest="verb", required=True)
    send = verbs.add_parser("send", help="bring a backup up to the newest snapshot")
    send.add_argument("repository", metavar="REPOSITORY", help="the repository's dataset: POOL/…/NAME")
    send.add_argument("backup", metavar="BACKUP", help="the backup's dataset; made the first time")
    back = verbs.add_parser("restore", help="make a new repository from a backup")
    back.add_argument("backup", metavar="BACKUP", help="the backup's dataset")
    back.add_argument("repository", metavar="REPOSITORY", help="the dataset to be made")
    back.add_argument("--group", default="", help="the Unix group that shares the repository")
    for verb in (send, back):
        verb.add_argument(
            "--through",
            default="",
            metavar="COMMAND",
            help="the backup is on another machine: run zfs there through this, as in 'ssh root@vault'",
        )
    found = parser.parse_args(argv)
    os.umask(0o002)
    try:
        return _run(found)
    except DsgError as error:
        sys.stderr.write(f"dsg-zfs-backup: {escape(error.message)}\n")
        if error.hint:
            sys.stderr.write(f"  {escape(error.hint)}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"dsg-zfs-backup: {escape(str(error))}\n")
        return 9
    except KeyboardInterrupt:
        return 130


def _run(found: argparse.Namespace) -> int:
    zfs = Zfs.find()
    repository = parse_dataset(found.repository.removeprefix("zfs:"))
    if parse_dataset(found.backup) == repository and not found.through:
        raise UsageError("the backup and the repository are the same dataset", hint="name two")
    backup = Side(zfs.through(shlex.split(found.through)) if found.through else zfs, found.backup)
    shown = backup.zfs.where(backup.dataset)
    if found.verb == "restore":
        head = restore(backup, zfs, repository, found.group, int(time.time()))
        _say(f"{repository} is restored from {shown}: its newest snapshot is {snapshot(head.seq)}.")
        return 0
    brought = back_up(zfs, repository, backup, lambda text: _say(f"note: {text}"))
    newest = snapshot(brought.newest)
    if brought.base is None:
        _say(f"{shown} is made: it holds all of {repository} up to {newest}.")
    elif brought.base == brought.newest:
        _say(f"{shown} is up to date: {newest}.")
    else:
        _say(f"{shown} is brought from {snapshot(brought.base)} to {newest}.")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(escape(text) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())

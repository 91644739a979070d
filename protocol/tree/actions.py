"""The values of a change to an ordinary folder, and where its parts lie.

A change is a list of actions in canonical order of path, one for each path.
Everything that must be told apart after a crash is told apart by what
``stat`` says: content never needs to be read again.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from protocol.tree.confine import AREA
from protocol.tree.fs import Kind, Stat

__all__ = [
    "AREA",
    "JOURNAL_DECIDED",
    "JOURNAL_PREPARED",
    "OBJECTS",
    "REPLACED",
    "RESCUED",
    "STAGING",
    "TMP",
    "TRASH",
    "Action",
    "Expected",
    "Staged",
    "check_txid",
]

STAGING: Final = f"{AREA}/staging"
TRASH: Final = f"{AREA}/trash"
TMP: Final = f"{AREA}/tmp"  # noqa: S108 - inside the tree, not the machine's
REPLACED: Final = f"{AREA}/replaced"
RESCUED: Final = f"{AREA}/rescued"
OBJECTS: Final = f"{AREA}/history/objects"
JOURNAL_PREPARED: Final = f"{AREA}/journal.prepared"
JOURNAL_DECIDED: Final = f"{AREA}/journal.decided"

_TXID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_txid(txid: str) -> str:
    """``txid`` as it may name a folder; ValueError for anything else."""
    if not _TXID.fullmatch(txid):
        raise ValueError(f"not a transaction id: {txid[:80]!r}")
    return txid


class Expected(NamedTuple):
    """What must stand at a path for an action to touch it: a file or a link, and its stat.

    A tuple, like the two below: a change may have a million of them.
    """

    kind: Kind
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    target: str = ""

    @classmethod
    def of(cls, stat: Stat, target: str = "") -> Expected:
        """What ``stat`` saw; ``target`` for a link."""
        return cls(stat.kind, stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode, target)

    def stands(self, stat: Stat) -> bool:
        """Whether ``stat`` is this, untouched where it was: not even its ctime moved."""
        return stat.ctime_ns == self.ctime_ns and self.came_out(stat)

    def came_out(self, stat: Stat) -> bool:
        """Whether ``stat`` is this after a rename, which changes the ctime and nothing else."""
        return (
            stat.inode == self.inode
            and stat.mtime_ns == self.mtime_ns
            and stat.size == self.size
            and stat.kind is self.kind
        )


class Staged(NamedTuple):
    """One file or link in staging, under its number; the stat it had when it was finished."""

    number: int
    kind: Kind
    size: int
    mtime_ns: int
    inode: int
    executable: bool
    target: str = ""

    def is_at(self, stat: Stat) -> bool:
        """Whether ``stat`` is this very file, wherever it was renamed to, and nobody wrote to it."""
        return (
            stat.inode == self.inode
            and stat.mtime_ns == self.mtime_ns
            and stat.size == self.size
            and stat.kind is self.kind
        )


class Action(NamedTuple):
    """What becomes of one path.

    ``before`` None: nothing may stand there. ``after`` None: it goes.
    ``keep``: where in DSG's area the old thing is moved, needed whenever there
    is one. Below ``.dsg/history/objects/`` a name stands for its content and
    may be there already; anywhere else the name belongs to this action alone,
    and that it exists proves that the old thing was moved there.
    """

    path: str
    before: Expected | None
    after: Staged | None
    keep: str | None = None

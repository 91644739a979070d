"""What :func:`protocol.tree.apply.apply` reports, and the two policies towards the unexpected."""

from __future__ import annotations

import errno
from enum import Enum
from typing import NoReturn

from protocol.tree.fs import Stat
from protocol.value import Value

__all__ = ["Applied", "Held", "HeldBackError", "Phase", "Report", "Unexpected"]

# This path cannot be changed, whoever tries again: the user's file stays, the others go on.
_CANNOT = frozenset(
    [
        errno.EACCES,
        errno.EPERM,
        errno.EBUSY,
        errno.EXDEV,
        errno.ENAMETOOLONG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.ETXTBSY,
    ]
)


class Unexpected(Enum):
    """What to do with a thing that is not what the plan expects."""

    KEEP = "keep"  # it stays where it is, and the path is held (the working folder: the user wins)
    RESCUE = "rescue"  # it is moved to .dsg/rescued (the repository: the decision wins)


class Phase(Enum):
    """Moments inside apply."""

    REMOVED = "removed"  # all deletions are done
    PLACED = "placed"  # everything is done


class Held(Value):
    """A path that was left alone, and why, in words."""

    path: str
    reason: str


class Applied(Value):
    """What became of a change.

    ``held``: paths left as the user has them (with RESCUE: whose new content
    is neither there nor in staging any more). ``rescued``: (path, where its
    unexpected thing is now), those of interrupted runs included. ``stats``:
    paths placed by this run, each with its stat. ``unsure``: paths placed by
    an interrupted run, or changed just after they were placed: their content
    must be hashed before a stat can stand for it.
    """

    held: list[Held]
    rescued: list[tuple[str, str]]
    stats: list[tuple[str, Stat]]
    unsure: list[str]


class HeldBackError(Exception):
    """The action at hand ends here; its path was reported as held."""


class Report:
    """The report while it grows."""

    def __init__(self, unexpected: Unexpected) -> None:
        self.unexpected = unexpected
        self.held: dict[str, str] = {}
        self.rescued: list[tuple[str, str]] = []
        self.stats: list[tuple[str, Stat]] = []
        self.unsure: list[str] = []

    @property
    def keeps(self) -> bool:
        """Whether the policy is KEEP."""
        return self.unexpected is Unexpected.KEEP

    def hold(self, path: str, reason: str) -> NoReturn:
        """Report ``path`` as held and end its action (HeldBackError)."""
        self.held.setdefault(path, reason)
        raise HeldBackError

    def hold_or_raise(self, path: str, error: OSError) -> NoReturn:
        """Hold ``path`` when the error is about this path alone and the policy allows; else raise it."""
        if self.keeps and error.errno in _CANNOT:
            self.hold(path, f"it cannot be changed: {error.strerror}")
        raise error

    def applied(self) -> Applied:
        return Applied([Held(p, r) for p, r in self.held.items()], self.rescued, self.stats, self.unsure)

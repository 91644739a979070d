"""The sync matrix: the 15 states that one path can be in, and what each asks for, as data.

A path has up to three versions: in the working folder (L, local), in the
manifest of the last sync (C, cache) and at the repository's head (R, remote).
Which of them are there, and which of those are the same, makes 15 states and
no others. C is the common ancestor: a side that equals C has not changed.

``STATES`` is the whole of the rule. Nothing else in DSG decides what becomes
of a path, except the check that the merged tree is a possible one
(:mod:`dsg_client.core.clashes`).
"""

from __future__ import annotations

from enum import Enum

from protocol.manifest import Entry, same
from protocol.value import Value

__all__ = ["STATES", "Action", "State", "StateRow", "Take", "classify"]


class Action(Enum):
    """What a sync does with one path."""

    NONE = "none"
    DOWNLOAD = "download"
    UPLOAD = "upload"
    DELETE_LOCAL = "delete on local"
    DELETE_REMOTE = "delete on remote"
    UPDATE_CACHE = "update cache"
    DROP_CACHE = "drop from cache"
    CONFLICT = "conflict"


class Take(Enum):
    """The side whose state of a path wins, be it a version or its absence."""

    LOCAL = "local"
    REMOTE = "remote"


class State(Enum):
    """The 15 states; the values are the names in the design's table."""

    ALL_SAME = "L=C=R"
    REMOTE_CHANGED = "L=C≠R"
    BOTH_CHANGED_ALIKE = "L=R≠C"
    LOCAL_CHANGED = "C=R≠L"
    ALL_DIFFER = "all differ"
    LOCAL_DELETED = "C=R, no L"
    LOCAL_DELETED_REMOTE_CHANGED = "C≠R, no L"
    BOTH_ADDED_ALIKE = "L=R, no C"
    BOTH_ADDED = "L≠R, no C"
    REMOTE_DELETED = "L=C, no R"
    REMOTE_DELETED_LOCAL_CHANGED = "L≠C, no R"
    ONLY_REMOTE = "only R"
    ONLY_CACHE = "only C"
    ONLY_LOCAL = "only L"
    NONE = "none"


class StateRow(Value):
    """One row of the matrix.

    ``pattern`` has a number for each of L, C and R: 0 where it has no entry,
    else the same number for the same version, counted from 1 in the order L,
    C, R. ``if_local`` and ``if_remote`` are the actions when a choice or a
    preference settles a conflict for that side.
    """

    state: State
    pattern: tuple[int, int, int]
    action: Action
    if_local: Action | None = None
    if_remote: Action | None = None


_A = Action
STATES: tuple[StateRow, ...] = (
    StateRow(State.ALL_SAME, (1, 1, 1), _A.NONE),
    StateRow(State.REMOTE_CHANGED, (1, 1, 2), _A.DOWNLOAD),
    StateRow(State.BOTH_CHANGED_ALIKE, (1, 2, 1), _A.UPDATE_CACHE),
    StateRow(State.LOCAL_CHANGED, (1, 2, 2), _A.UPLOAD),
    StateRow(State.ALL_DIFFER, (1, 2, 3), _A.CONFLICT, _A.UPLOAD, _A.DOWNLOAD),
    StateRow(State.LOCAL_DELETED, (0, 1, 1), _A.DELETE_REMOTE),
    StateRow(State.LOCAL_DELETED_REMOTE_CHANGED, (0, 1, 2), _A.CONFLICT, _A.DELETE_REMOTE, _A.DOWNLOAD),
    StateRow(State.BOTH_ADDED_ALIKE, (1, 0, 1), _A.UPDATE_CACHE),
    StateRow(State.BOTH_ADDED, (1, 0, 2), _A.CONFLICT, _A.UPLOAD, _A.DOWNLOAD),
    StateRow(State.REMOTE_DELETED, (1, 1, 0), _A.DELETE_LOCAL),
    StateRow(State.REMOTE_DELETED_LOCAL_CHANGED, (1, 2, 0), _A.CONFLICT, _A.UPLOAD, _A.DELETE_LOCAL),
    StateRow(State.ONLY_REMOTE, (0, 0, 1), _A.DOWNLOAD),
    StateRow(State.ONLY_CACHE, (0, 1, 0), _A.DROP_CACHE),
    StateRow(State.ONLY_LOCAL, (1, 0, 0), _A.UPLOAD),
    StateRow(State.NONE, (0, 0, 0), _A.NONE),
)

_BY_PATTERN = {row.pattern: row for row in STATES}


def classify(local: Entry | None, cache: Entry | None, remote: Entry | None) -> StateRow:
    """The row of the matrix for the three versions of one path. Total: every three have a row."""
    a = 0 if local is None else 1
    b = 0 if cache is None else 1 if local is None or same(cache, local) else 2
    if remote is None:
        c = 0
    elif local is not None and same(remote, local):
        c = a
    elif cache is not None and same(remote, cache):
        c = b
    else:
        c = max(a, b) + 1
    return _BY_PATTERN[a, b, c]

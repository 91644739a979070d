"""What a sync must do, said a second time: over dictionaries, path by path, without product code.

The versions of a path are compared as (kind, content, executable); what is
written here follows the words of the design, not the table in the code.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from attrs import define, field

from protocol.manifest import Entry

from .trees import Tree

Version = tuple[int, bytes, bool]


def version(entry: Entry | None) -> Version | None:
    return None if entry is None else (entry.kind, entry.content, entry.executable)


def decide(local: Entry | None, past: Entry | None, remote: Entry | None) -> str:
    """The action for one path, by asking which side changed since C."""
    a, b, c = version(local), version(past), version(remote)
    here, there = a != b, c != b
    if not here and not there:
        return "none"
    if here and there:
        if a == c:
            return "drop" if a is None else "update"
        return "conflict"
    if here:
        return "delete remote" if a is None else "upload"
    return "delete local" if c is None else "download"


@cache
def places(path: str) -> list[tuple[str, bool]]:
    """Each folder of ``path`` and the path itself, with whether it is a folder."""
    parts = path.split("/")
    return [("/".join(parts[:i]), True) for i in range(1, len(parts))] + [(path, False)]


@cache
def folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def clashing(paths: Iterable[str]) -> set[tuple[str, str]]:
    """Ordered pairs of paths that no file system can, or not every one can, hold together."""
    found = set()
    known = list(paths)
    where = {path: {folded(name): (name, folder) for name, folder in places(path)} for path in known}
    for p in known:
        for q in known:
            if p != q and any(where[q].get(key, place) != place for key, place in where[p].items()):
                found.add((p, q))
    return found


def possible(paths: Iterable[str]) -> bool:
    """Whether one tree can hold these paths."""
    return not clashing(paths)


@define
class Expected:
    """What the plan must hold, by path."""

    actions: dict[str, str] = field(factory=dict)
    impossible: set[str] = field(factory=set)  # of the conflicts, those for the tree's shape


def expect(local: Tree, past: Tree, remote: Tree, prefer: str | None = None) -> Expected:
    """The action for every path that gets one. L and R are possible trees by themselves."""
    result = Expected()
    merged: dict[str, str] = {}  # path -> "local" only, "remote" only, or "both"
    for path in sorted({*local, *past, *remote}):
        a, c = local.get(path), remote.get(path)
        action = decide(a, past.get(path), c)
        if action == "conflict" and prefer == "local":
            action = "delete remote" if a is None else "upload"
        elif action == "conflict" and prefer == "remote":
            action = "delete local" if c is None else "download"
        if action != "none":
            result.actions[path] = action
        if action in ("upload", "download", "update", "none") or (action == "conflict" and a and c):
            merged[path] = "both" if a and c else "local" if a else "remote"
    pairs = clashing(merged)
    if prefer is None:
        result.impossible = {path for pair in pairs for path in pair if merged[path] != "both"}
        result.actions.update(dict.fromkeys(result.impossible, "conflict"))
        return result
    loser = "remote" if prefer == "local" else "local"
    for path, rival in pairs:
        if merged[path] == loser and merged[rival] != loser:
            result.actions[path] = f"delete {loser}"
    return result

"""What a sync must come to, said plainly over dictionaries: no product code, no table of states.

A sync is a three-way merge with C as the common ancestor: a side that equals C
has not changed, and the other side's state holds, be it a version or an
absence. Where both changed, and not alike, the path is in conflict. What comes
out must be a tree that every file system can hold: no file where a folder is,
no two names that differ only in case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from tests.e2e.oracle import Tree, Version

__all__ = ["Merge", "clashes", "merge"]


@frozen
class Merge:
    """``tree`` is what L, C and R all hold afterwards; with ``conflicts`` nothing happens instead."""

    tree: Tree
    conflicts: frozenset[str]
    disputed: frozenset[str]  # the paths that a preference settled, or that are conflicts


def merge(local: Tree, cache: Mapping[str, Version], remote: Tree, prefer: str | None = None) -> Merge:
    """The merge of three trees; ``prefer`` is ``local``, ``remote`` or None."""
    tree: Tree = {}
    disputed: set[str] = set()
    for path in {*local, *cache, *remote}:
        here, before, there = local.get(path), cache.get(path), remote.get(path)
        if here == there or there == before:
            outcome = here
        elif here == before:
            outcome = there
        else:
            disputed.add(path)
            if prefer is None:
                outcome = here if there is not None else None  # undecided; but something stands there
            else:
                outcome = here if prefer == "local" else there
        if outcome is not None:
            tree[path] = outcome
    # L and R are possible trees by themselves: of two paths that clash each side has one.
    for mine, theirs in clashes(tree):
        disputed |= {path for path in (mine, theirs) if (path in local) != (path in remote)}
    if prefer is None:
        return Merge(tree, frozenset(disputed), frozenset(disputed))
    preferred, other = (local, remote) if prefer == "local" else (remote, local)
    for one, two in clashes(tree):
        if one in preferred and two in other and two not in preferred:
            tree.pop(two, None)
    return Merge(tree, frozenset(), frozenset(disputed))


def clashes(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Ordered pairs of paths that no file system, or not every one, can hold together."""
    found = []
    places = {path: _places(path) for path in paths}
    for one, mine in places.items():
        for two, theirs in places.items():
            if one != two and any(theirs.get(key, place) != place for key, place in mine.items()):
                found.append((one, two))
    return found


def _places(path: str) -> dict[str, tuple[str, bool]]:
    """Each folder of ``path`` and the path itself: folded, as it is spelled and whether it is a folder."""
    parts = path.split("/")
    names = [("/".join(parts[:depth]), depth < len(parts)) for depth in range(1, len(parts) + 1)]
    return {name.casefold(): (name, is_folder) for name, is_folder in names}

"""Clashes: what keeps the merged result of a sync from being a possible tree.

A *node* is a place in a tree: a file or link by its path, a folder by its path
and a trailing slash. A tree is possible when no two nodes have the same
:func:`protocol.paths.collision_key`: then no file stands where a folder is,
and no two names differ only in case or normal form.

L and R are possible trees by themselves, so that a clash has an *added* path
in it: one that the plan brings to a side that did not have it. Only the added
paths' nodes are held; the rest of the tree streams past them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum

from dsg_client.core.states import Take
from protocol.manifest import Entry
from protocol.paths import collision_key
from protocol.value import Value

__all__ = ["Clash", "Node", "Origin", "Rival", "find_clashes", "settle_clashes"]


class Origin(Enum):
    """On which side an added path is now."""

    LOCAL = "local"  # the plan uploads it
    REMOTE = "remote"  # the plan downloads it


class Node(Value):
    """One place of a clash and who stands at or below it.

    ``added`` are paths that the plan adds; ``both`` and ``outside`` are one
    path each, for all that stand there anyway: in scope (on both sides), and
    out of scope (on the remote side only).
    """

    spelled: str
    added: tuple[str, ...]
    both: Entry | None
    outside: Entry | None


class Clash(Value):
    """Two or more nodes that no file system could hold, or not every one."""

    nodes: tuple[Node, ...]


class Rival(Value):
    """What an added path cannot stand together with, perhaps one of many.

    ``file_and_folder``: one of the two is a folder of the other's path; else
    they differ only in case or normal form. ``other`` is the path of an added
    entry, or an entry that stands anyway.
    """

    file_and_folder: bool
    other: str | Entry


def find_clashes(
    added: Iterable[str],
    standing: Callable[[], Iterable[Entry]],
    in_scope: Callable[[str], bool] | None,
) -> list[Clash]:
    """The clashes of a merged tree, innermost first.

    ``added`` in canonical order, and re-iterable; ``standing()`` gives the
    other entries of the merged tree, in canonical order, each time it is
    called: once, and once more when there is a clash.
    """
    table: dict[str, str] = {}
    keys: set[str] = set()
    for node in _nodes(added):
        key = collision_key(node)
        if table.setdefault(key.rstrip("/"), node) != node:
            keys.add(key.rstrip("/"))
    if not table:
        return []
    _pass_by(standing(), table, keys)
    if not keys:
        return []
    return _collect(keys, added, standing(), in_scope)


def _nodes(paths: Iterable[str]) -> Iterator[str]:
    """The nodes of a tree with these paths: each folder once as often as its contents stand apart."""
    known = ""
    for path in paths:
        folder = path.rpartition("/")[0]
        if folder and folder != known:
            yield from _folders(folder)
            known = folder
        yield path


def _folders(folder: str) -> Iterator[str]:
    """The nodes of ``folder`` and the folders it is in, outermost first."""
    at = folder.find("/")
    while at >= 0:
        yield folder[: at + 1]
        at = folder.find("/", at + 1)
    yield folder + "/"


def _pass_by(standing: Iterable[Entry], table: Mapping[str, str], keys: set[str]) -> None:
    """Add to ``keys`` the key of each node of ``standing`` that is in ``table`` as another node."""
    folder = ""
    skipped: str | None = None  # a folder at and below which nothing was added
    for entry in standing:
        path = entry[0]
        if skipped is not None and path.startswith(skipped):
            continue
        parent = path.rpartition("/")[0]
        if parent != folder:
            folder = parent
            skipped = None
            for node in _folders(parent) if parent else ():
                key = collision_key(node)[:-1]
                known = table.get(key)
                if known is None:
                    skipped = node
                    break
                if known != node:
                    keys.add(key)
            if skipped is not None:
                continue
        key = collision_key(path)
        known = table.get(key)
        if known is not None and known != path:
            keys.add(key)


class _Found:
    def __init__(self) -> None:
        self.added: list[str] = []
        self.both: Entry | None = None
        self.outside: Entry | None = None


def _collect(
    keys: set[str],
    added: Iterable[str],
    standing: Iterable[Entry],
    in_scope: Callable[[str], bool] | None,
) -> list[Clash]:
    found: dict[str, dict[str, _Found]] = {key: {} for key in sorted(keys, key=lambda k: (-k.count("/"), k))}
    for path in added:
        for key, node in _places(path):
            if key in found:
                found[key].setdefault(node, _Found()).added.append(path)
    for entry in standing:
        for key, node in _places(entry[0]):
            if key in found:
                at = found[key].setdefault(node, _Found())
                if in_scope is None or in_scope(entry[0]):
                    at.both = at.both or entry
                else:
                    at.outside = at.outside or entry
    return [
        Clash(tuple(Node(spelled, tuple(n.added), n.both, n.outside) for spelled, n in nodes.items()))
        for nodes in found.values()
        if len(nodes) > 1
    ]


def _places(path: str) -> Iterator[tuple[str, str]]:
    for node in _nodes((path,)):
        yield collision_key(node).rstrip("/"), node


def settle_clashes(
    clashes: Sequence[Clash],
    origins: Mapping[str, Origin],
    choice: Callable[[str], Take | None],
    prefer: Take | None,
) -> tuple[dict[str, tuple[Take, Rival]], dict[str, Rival]]:
    """Which added paths go, by choice or preference, and which stay conflicts.

    ``origins`` has every added path. An added path goes when the side that
    wins does not have it: an upload when remote wins, a download when local
    wins. A choice is obeyed; a preference lets a path go only where it clashes
    with something that the preferred side has, and never against a choice.
    What stands on both sides, or out of scope, never goes.

    Returns the winner and the rival of each path that goes, and the rival of
    each path that is still in a clash.
    """
    rivals = _rivals(clashes, {})
    chosen = {path: choice(path) for path in rivals}
    goes = {p: take for p, take in chosen.items() if take is not None and take.value != origins[p].value}
    if prefer is not None:
        losing = [
            path
            for clash in clashes
            for node, others in _meetings(clash, goes)
            if any(_held_by(other, prefer, origins, goes) for other in others)
            for path in node.added
            if chosen[path] is None and origins[path].value != prefer.value
        ]
        goes.update(dict.fromkeys(losing, prefer))
    return {path: (take, rivals[path]) for path, take in goes.items()}, _rivals(clashes, goes)


def _rivals(clashes: Sequence[Clash], goes: Collection[str]) -> dict[str, Rival]:
    """The nearest rival of each added path that is in a clash when those that go are gone."""
    rivals: dict[str, Rival] = {}
    for clash in clashes:
        for node, others in _meetings(clash, goes):
            other = others[0]
            rival = Rival(node.spelled.rstrip("/") == other.spelled.rstrip("/"), _example(other, goes))
            for path in node.added:
                if path not in goes:
                    rivals.setdefault(path, rival)
    return rivals


def _meetings(clash: Clash, goes: Collection[str]) -> Iterator[tuple[Node, list[Node]]]:
    """Each node of a clash at which something is left, with the others of which that is true."""
    live = [n for n in clash.nodes if n.both or n.outside or any(p not in goes for p in n.added)]
    if len(live) > 1:
        for node in live:
            yield node, [other for other in live if other is not node]


def _held_by(node: Node, side: Take, origins: Mapping[str, Origin], goes: Collection[str]) -> bool:
    """Whether ``side`` has something at this node that stays."""
    if node.both is not None or (node.outside is not None and side is Take.REMOTE):
        return True
    return any(path not in goes and origins[path].value == side.value for path in node.added)


def _example(node: Node, goes: Collection[str]) -> str | Entry:
    for path in node.added:
        if path not in goes:
            return path
    found = node.both or node.outside
    assert found is not None
    return found

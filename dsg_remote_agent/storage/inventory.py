"""What lies in a tree that no manifest tells of yet: its names are checked, then its files are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dsg_remote_agent.storage.content import version_of
from dsg_remote_agent.storage.livetree import live_runs
from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex, row_of
from protocol.errors import PathsRefusedError
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.paths import check_link_target, collisions, escape, path_problem, sort_key
from protocol.tree.fs import Kind, TreeFS
from protocol.value import Value

__all__ = ["Inventory", "check_names", "take_inventory"]

_SHOWN = 200  # of what is refused, in the message
_FACTS = 1000

Tick = Callable[[], None]


class Inventory(Value):
    """All files and links of a tree as version 0, and the stat of each as it was read."""

    manifest: Manifest
    index: StatIndex

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(entry.size for entry in self.manifest if entry.kind == FILE)


def check_names(tree: TreeFS, shown: str, tick: Tick) -> None:
    """PathsRefusedError, with all of it, when ``tree`` holds what no manifest can. Reads no file.

    Names that are not allowed, links that lead out, fifos, sockets, devices,
    and names that differ only in case or normal form.
    """
    refused: list[tuple[str, str]] = []

    def paths() -> Iterator[str]:
        for prefix, names, numbers in live_runs(tree):
            tick()
            for name, live in zip(names, numbers, strict=True):
                path = prefix + name
                problem = path_problem(path) or _other_problem(tree, path, live)
                if problem:
                    refused.append((path, problem))
                else:
                    yield path

    twins = list(collisions(paths()))
    refused += [(b, f"differs from {escape(a)} only in case or Unicode normal form") for a, b in twins]
    if not refused:
        return
    refused.sort()
    count = len(refused)
    lines = [f"\n  {escape(path)}: {why}" for path, why in refused[:_SHOWN]]
    if count > _SHOWN:
        lines.append(f"\n  ... and {count - _SHOWN} more")
    raise PathsRefusedError(
        f"{count} {'path' if count == 1 else 'paths'} in {shown} cannot be synced:{''.join(lines)}",
        hint="rename or remove them there, then run the same command again",
        facts={
            "problems": [{"path": escape(path), "reason": why} for path, why in refused[:_FACTS]],
            "count": count,
        },
    )


def _other_problem(tree: TreeFS, path: str, live: tuple[int, ...]) -> str | None:
    if not live:
        return "is neither a file nor a link"
    try:
        return check_link_target(path, tree.readlink(path)) if tree.stat(path).kind is Kind.LINK else None
    except FileNotFoundError:
        return None  # gone since


def take_inventory(
    tree: TreeFS, algorithm: str, who: str, looked_ns: int, tick: Tick, known: Inventory | None = None
) -> Inventory:
    """Read the files of ``tree``, whose names were checked, as ``who``'s in snapshot 0.

    ``known``: an earlier inventory; what stats as it did then is not read
    again. ``looked_ns``: the time now. A file that changes while it is read has
    an unknown row, so that a later comparison reads it again.
    """
    index = StatIndex()
    before = _Before(known)

    def entries() -> Iterator[Entry]:
        for prefix, names, numbers in live_runs(tree):
            for name, live in zip(names, numbers, strict=True):
                tick()
                entry = before.find(prefix + name, live)
                if entry is not None:
                    index.append(IndexRow._make(live))
                    yield entry
                    continue
                read = _read(tree, prefix + name, algorithm, who)
                if read is not None:
                    index.append(read[1] if read[1] == live else UNKNOWN)
                    yield read[0]

    manifest = Manifest.from_entries(entries(), algorithm)
    return Inventory(manifest, index.settled(tree, looked_ns))


class _Before:
    """What an earlier inventory knew, asked for in canonical order."""

    def __init__(self, known: Inventory | None) -> None:
        self._rows: Iterator[tuple[Entry, tuple[int, ...]]] = (
            iter(()) if known is None else zip(known.manifest, known.index.numbers(), strict=True)
        )
        self._next = next(self._rows, None)

    def find(self, path: str, live: tuple[int, ...]) -> Entry | None:
        """The entry of ``path`` when it still stats as it did."""
        key = sort_key(path)
        while self._next is not None and sort_key(self._next[0].path) < key:
            self._next = next(self._rows, None)
        if self._next is None or self._next[0].path != path:
            return None
        entry, row = self._next
        return entry if row == live and row[1] else None


def _read(tree: TreeFS, path: str, algorithm: str, who: str) -> tuple[Entry, IndexRow] | None:
    """What stands at ``path``, and its row after that; None when it is gone, or was no such name before."""
    try:
        stat = tree.stat(path)
        version = version_of(tree, path, stat, algorithm, None)
        after = row_of(tree.stat(path))
    except FileNotFoundError:
        return None
    if version is None or path_problem(path):
        return None
    kind, content, executable = version
    if kind == LINK and check_link_target(path, content.decode("utf-8", "replace")):
        return None
    size, mtime_ns = (stat.size, stat.mtime_ns) if kind == FILE else (0, 0)
    return Entry(path, kind, content, executable, size, mtime_ns, who, 0), after

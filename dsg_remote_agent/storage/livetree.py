"""The live tree of a repository as runs of neighbours with their numbers, whole or in two parts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from dsg_remote_agent.storage.layout import AREA, INIT_PREFIX
from protocol.paths import sort_key
from protocol.tree.fs import Kind, TreeFS

__all__ = ["Part", "Run", "is_ours", "live_runs"]


def is_ours(name: str) -> bool:
    """Whether a name at the repository's top is DSG's own: its area, or what a crash left of making one."""
    return name == AREA or name.startswith((INIT_PREFIX, ".dsg-probe-"))


class Run(NamedTuple):
    """Files, links and others that stand together in one folder: names and numbers as in a Glance."""

    prefix: str  # the folder with a "/" behind it, or ""
    names: list[str]
    numbers: list[tuple[int, ...]]


class Part(NamedTuple):
    """What stands before the folder ``edge`` in canonical order, or (``beyond``) it and what comes after."""

    edge: str
    beyond: bool

    @property
    def key(self) -> str:
        """Less than or equal to the keys of all paths beyond the edge, and greater than all others."""
        return sort_key(self.edge) + "\0"

    def enters(self, folder: str) -> bool:
        """Whether something of it may be in ``folder``."""
        return self.edge.startswith(folder + "/") or (sort_key(folder) >= sort_key(self.edge)) == self.beyond

    def of(self, run: Run) -> Run:
        """What of ``run`` belongs to it, when its folder is entered."""
        prefix, names, numbers = run
        if not self.edge.startswith(prefix):
            return run
        at = bisect_left(names, self.key, key=lambda name: sort_key(prefix + name))
        cut = slice(at, None) if self.beyond else slice(at)
        return Run(prefix, names[cut], numbers[cut])


def live_runs(tree: TreeFS, part: Part | None = None) -> Iterator[Run]:
    """The live tree, or a part of it, but for its folders and ``.dsg``, in canonical order.

    A folder that cannot be read raises: what is not seen is never taken for
    deleted. One that vanishes meanwhile is taken as empty.
    """
    stack = [_runs_in(tree, "")]
    while stack:
        for item in stack[-1]:
            if not isinstance(item, str):
                yield item if part is None else part.of(item)
            elif part is None or part.enters(item):
                stack.append(_runs_in(tree, item))
                break
        else:
            stack.pop()


def _runs_in(tree: TreeFS, folder: str) -> Iterator[Run | str]:
    """The runs of one folder and, each where it belongs among them, the paths of the folders in it."""
    prefix = f"{folder}/" if folder else ""
    try:
        for names, numbers, kinds in tree.glance(folder):
            start = 0
            apart = [name for name, kind in kinds.items() if kind is Kind.FOLDER]
            if not folder:
                apart = sorted({*apart, *filter(is_ours, names)})
            for name in apart:
                at = names.index(name, start)
                if at > start:
                    yield Run(prefix, names[start:at], numbers[start:at])
                if folder or not is_ours(name):
                    yield prefix + name
                start = at + 1
            if start < len(names):
                yield Run(prefix, names[start:], numbers[start:])
    except FileNotFoundError:
        if not folder:
            raise

"""The last look before the decision: every path that a transaction touches is still as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dsg_remote_agent.storage.statindex import IndexRow, row_if
from protocol.errors import OutsideChangeError
from protocol.paths import escape
from protocol.tree.change import Action
from protocol.tree.fs import Kind, TreeFS

__all__ = ["check_planned"]

_SHOWN = 100


def check_planned(tree: TreeFS, actions: Iterable[Action], adopted: Mapping[str, IndexRow]) -> None:
    """Look at every planned path; OutsideChangeError names those that changed under the transaction.

    ``adopted`` paths must still be as they were taken in (an unknown row: must
    still be gone).
    """
    look = _Look(tree, actions)
    found = [action.path for action in actions if not look.fits(action)]
    found += [path for path, row in adopted.items() if not look.fits_row(path, row)]
    if found:
        shown = ", ".join(escape(path) for path in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise OutsideChangeError(
            f"changed on the server while the sync ran: {shown}{more}",
            hint="sync again; if somebody works in the repository's folder itself, use 'dsg adopt'",
            facts={"paths": found[:_SHOWN], "more": max(0, len(found) - _SHOWN)},
        )


class _Look:
    def __init__(self, tree: TreeFS, actions: Iterable[Action]) -> None:
        self._tree = tree
        self._actions = actions
        self._removed: set[str] | None = None
        self._folder = ""
        self._names: set[str] | None = None

    def _goes(self, path: str) -> bool:
        if self._removed is None:
            # Only made when a file takes a folder's place or the other way round: rare.
            self._removed = {action.path for action in self._actions if action.before is not None}
        return path in self._removed

    def fits(self, action: Action) -> bool:
        path, before = action.path, action.before
        if before is None and self._is_new(path):
            return True
        try:
            stat = self._tree.stat(path)
        except FileNotFoundError:
            return before is None
        except OSError:
            # A file or link stands where the path needs a folder: fine if that one goes.
            return before is None and self._parent_goes(path)
        if before is None:
            return stat.kind is Kind.FOLDER and self._empties(path)
        if not before.stands(stat):
            return False
        return before.kind is not Kind.LINK or self._tree.readlink(path) == before.target

    def _is_new(self, path: str) -> bool:
        """Whether a folder that was just looked into lacks this name: cheaper than a stat for each."""
        folder, _, name = path.rpartition("/")
        if folder != self._folder:
            self._folder, self._names = folder, None
            return False
        if self._names is None:
            try:
                self._names = self._tree.names(folder)
            except FileNotFoundError:
                self._names = set()
            except OSError:
                return False
        return name not in self._names

    def fits_row(self, path: str, row: IndexRow) -> bool:
        try:
            stat = self._tree.stat(path)
        except OSError:
            return not row.ctime_ns
        if not row.ctime_ns:
            return stat.kind is Kind.FOLDER
        return row_if(row, stat)

    def _parent_goes(self, path: str) -> bool:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            try:
                if self._tree.stat(parent).kind is not Kind.FOLDER:
                    return self._goes(parent)
            except OSError:
                return False
        return False

    def _empties(self, folder: str) -> bool:
        """Whether everything in a folder goes, so that a file can take its place."""
        for name, stat in self._tree.scan(folder):
            path = f"{folder}/{name}"
            if not (self._empties(path) if stat.kind is Kind.FOLDER else self._goes(path)):
                return False
        return True

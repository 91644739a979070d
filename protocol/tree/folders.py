"""Folders during an apply: made because something is put into them, removed because they were emptied."""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Callable
from typing import NoReturn

from protocol.paths import escape, sort_key
from protocol.tree.fs import Kind, Stat, TreeFS
from protocol.tree.report import Report

__all__ = ["ABSENT", "IN_THE_WAY", "TRIES", "Folders", "look"]

# The path is not there, seen through whatever stands in its way.
ABSENT = frozenset([errno.ENOENT, errno.ENOTDIR, errno.ELOOP])
IN_THE_WAY = frozenset([errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY, errno.EISDIR])
TRIES = 8  # against someone who keeps putting things in the way
_LISTINGS = 16


def look(tree: TreeFS, path: str) -> Stat | None:
    """The stat of ``path``; None when it is not there, or cannot be since its folder is none."""
    try:
        return tree.stat(path)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise


class Folders:
    """Knows which folders exist, which will be needed, and which lost a file."""

    def __init__(self, tree: TreeFS, report: Report, move_away: Callable[[str], object]) -> None:
        """``move_away`` rescues what stands where a folder must be."""
        self.tree = tree
        self.report = report
        self.move_away = move_away
        self._known = {""}
        self._lasting: set[str] = set()
        self._emptied: set[str] = set()
        self._listings: dict[str, set[str]] = {}

    def forget(self) -> None:
        """What was known to exist is not any more."""
        self._known = {""}

    def make_for(self, path: str) -> None:
        """Make the folder that ``path`` will be in; HeldBackError when something else is in its place."""
        folder = path.rpartition("/")[0]
        if folder in self._known:
            return
        for _ in range(TRIES):
            try:
                self.tree.make_folders(folder)
            except OSError as error:
                if error.errno not in IN_THE_WAY:
                    self.report.hold_or_raise(path, error)
                self._clear_obstacle(path, folder)
            else:
                self._known.add(folder)
                return
        self._keeps_changing(path)

    def make_own_for(self, path: str) -> None:
        """The same in DSG's own area, where nothing may be in the way: OSError."""
        folder = path.rpartition("/")[0]
        if folder not in self._known:
            self.tree.make_folders(folder)
            self._known.add(folder)

    def _clear_obstacle(self, path: str, folder: str) -> None:
        parts = folder.split("/")
        for i in range(1, len(parts) + 1):
            ancestor = "/".join(parts[:i])
            now = look(self.tree, ancestor)
            if now is not None and now.kind is not Kind.FOLDER:
                if self.report.keeps:
                    self.report.hold(path, f"{escape(ancestor)!r} is not a folder")
                self.move_away(ancestor)
                return

    def _keeps_changing(self, path: str) -> NoReturn:
        self.report.hold_or_raise(path, OSError(errno.EBUSY, "its folder keeps changing", path))

    # Names

    def has_exactly(self, path: str) -> bool:
        """Whether the folder's listing holds this very name, not one that the system takes for it.

        On a file system that folds case, ``A`` is found where ``a`` stands:
        deleting by the looked-up name would delete the wrong file.
        """
        folder, _, name = path.rpartition("/")
        names = self._listings.get(folder)
        if names is None:
            try:
                names = self.tree.names(folder)
            except OSError as error:
                if error.errno in ABSENT:
                    return False
                self.report.hold_or_raise(path, error)
            if not self.tree.capabilities.keeps_normal_form:
                names |= {unicodedata.normalize("NFC", listed) for listed in names}
            if len(self._listings) >= _LISTINGS:
                self._listings.pop(next(iter(self._listings)))
            self._listings[folder] = names
        return name in names

    # Removing

    def note_needed(self, path: str) -> None:
        """Something will be put at ``path``: its folders are not worth removing."""
        folder = path.rpartition("/")[0]
        while folder and folder not in self._lasting:
            self._lasting.add(folder)
            folder = folder.rpartition("/")[0]

    def note_deleted(self, path: str) -> None:
        """``path`` is deleted by this change: its folder may be empty now."""
        self._emptied.add(path.rpartition("/")[0])

    def remove_emptied(self, *, needed_too: bool = False) -> None:
        """Remove the noted folders that are empty, and those above that become so."""
        full: set[str] = set() if needed_too else set(self._lasting)
        for start in sorted(self._emptied, key=sort_key, reverse=True):
            folder = start
            while folder and folder not in full:
                try:
                    self.tree.rmdir(folder)
                except FileNotFoundError:
                    pass
                except OSError:
                    full.add(folder)  # not empty, or not ours to remove: it stays
                    break
                folder = folder.rpartition("/")[0]

    def remove_if_hollow(self, path: str) -> bool:
        """Remove a folder that holds nothing but folders; False, and nothing removed, when it holds more."""
        folders = [path]
        try:
            for folder in folders:
                for name, stat in self.tree.scan(folder):
                    if stat.kind is not Kind.FOLDER:
                        return False
                    folders.append(f"{folder}/{name}")
            for folder in reversed(folders):
                self.tree.rmdir(folder)
        except OSError:
            return False
        return True

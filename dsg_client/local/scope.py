"""Which paths are synced: ``data_dirs``, ``ignore``, and the names that never are.

The answer for a path depends on the path and the rules alone, never on what
is on disk, so that it is the same for L, C and R.

* A path is in scope when one of the *folders* above it is a data folder: a
  component equal to a name in ``data_dirs``, anywhere in the path. Everything
  below a data folder is in scope, also hidden files.
* ``"*"`` in ``data_dirs`` takes every path without a hidden component (one
  that begins with a dot).
* Outside data folders, hidden folders and those of package installers
  (:data:`~dsg_client.local.never.OUTSIDE_ONLY`) are not searched for data
  folders, unless named in ``data_dirs`` themselves: a virtual environment is
  full of folders called ``input``.
* What ``ignore`` matches is out of scope, and so is every name that
  :mod:`dsg_client.local.never` lists, with all below it.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from enum import IntEnum

from dsg_client.local.ignore import IgnoreRules
from dsg_client.local.never import LIST_VERSION, OUTSIDE_ONLY, is_never_synced
from protocol.manifest import Entry

__all__ = ["DEFAULT_DATA_DIRS", "Scope", "Zone"]

DEFAULT_DATA_DIRS = ("input", "output", "frozen")


class Zone(IntEnum):
    """What a folder is to the scope."""

    CLOSED = 0  # nothing below is in scope
    SEARCH = 1  # its files are not in scope; a folder below may be a data folder
    VISIBLE = 2  # all but hidden names are in scope ("*")
    DATA = 3  # everything is in scope


class Scope:
    """The rules of one tree, ready to be asked."""

    __slots__ = ("_data", "_ignore", "_last", "_star", "data_dirs", "digest", "ignore")

    def __init__(self, data_dirs: Iterable[str] = DEFAULT_DATA_DIRS, ignore: Iterable[str] = ()) -> None:
        """Raises ConfigError for an ignore pattern that is not one."""
        self.data_dirs = tuple(sorted({unicodedata.normalize("NFC", name) for name in data_dirs}))
        self.ignore = tuple(ignore)
        self._data = frozenset(self.data_dirs) - {"*"}
        self._star = "*" in self.data_dirs
        self._ignore = IgnoreRules(self.ignore) if self.ignore else None
        self._last: tuple[str, Zone] = ("", self.top)
        #: Equal for equal rules: kept in C, so that a change of rules can be announced.
        self.digest = hashlib.sha256(
            json.dumps([LIST_VERSION, self.data_dirs, self.ignore], separators=(",", ":")).encode(
                "utf-8", "surrogatepass"
            )
        ).hexdigest()

    def __repr__(self) -> str:
        return f"Scope(data_dirs={self.data_dirs!r}, ignore={self.ignore!r})"

    @property
    def top(self) -> Zone:
        """The zone of the tree's root."""
        return Zone.VISIBLE if self._star else Zone.SEARCH

    @property
    def has_ignore(self) -> bool:
        """Whether there are patterns, so that files of a zone must be asked one by one."""
        return self._ignore is not None

    def enter(self, zone: Zone, path: str, name: str) -> Zone:
        """The zone of the folder ``path``, whose last component is ``name`` and whose parent has ``zone``."""
        if zone is Zone.CLOSED or is_never_synced(name):
            return Zone.CLOSED
        if zone is not Zone.DATA:
            if not name.isascii():
                # A folder that a Mac named in NFD must be found before its name can be refused.
                name = unicodedata.normalize("NFC", name)
            if name in self._data:
                zone = Zone.DATA
            elif name.startswith(".") or (zone is Zone.SEARCH and name in OUTSIDE_ONLY):
                return Zone.CLOSED
        if self._ignore is not None and self._ignore.ignores_folder(path):
            return Zone.CLOSED
        return zone

    def holds(self, zone: Zone, path: str, name: str) -> bool:
        """Whether the file or link ``path`` is in scope, given its folder's zone and its own name."""
        if zone < Zone.VISIBLE or (zone is Zone.VISIBLE and name.startswith(".")) or is_never_synced(name):
            return False
        return self._ignore is None or not self._ignore.ignores_file(path)

    def ignores(self, path: str) -> bool:
        """Whether the patterns ignore the file ``path`` (the folders above it were entered)."""
        return self._ignore is not None and self._ignore.ignores_file(path)

    def zone(self, folder: str) -> Zone:
        """The zone of a folder (``''`` is the root)."""
        if not folder:
            return self.top
        known, zone = self._last
        if folder == known:
            return zone
        if known and folder.startswith(known + "/"):
            at = len(known) + 1
        else:
            zone, at = self.top, 0
        while zone is not Zone.CLOSED:
            end = folder.find("/", at)
            path = folder if end < 0 else folder[:end]
            zone = self.enter(zone, path, path[at:])
            if end < 0:
                break
            at = end + 1
        # One tuple: several threads may ask.
        self._last = (folder, zone)
        return zone

    def in_scope(self, path: str) -> bool:
        """Whether a file or link at ``path`` is synced."""
        folder, _, name = path.rpartition("/")
        return self.holds(self.zone(folder), path, name)

    def filter(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries that are in scope."""
        in_scope = self.in_scope
        return (entry for entry in entries if in_scope(entry[0]))

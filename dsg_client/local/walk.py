"""Walking the working folder: which files are in scope, folder by folder, in canonical order.

Reads only. Every folder is opened relative to its parent's descriptor and
never through a link, so that a folder exchanged for a link while the walk
goes on cannot lead it out of the tree.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

from dsg_client.local.findings import Findings
from dsg_client.local.hashing import OpenFolder
from dsg_client.local.names import are_plain, check_name, may_collide
from dsg_client.local.never import is_never_synced
from dsg_client.local.scope import Scope, Zone
from protocol.errors import LocalChangedError
from protocol.paths import PathProblem, collision_key, escape

__all__ = ["Run", "Walk"]

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Levels of folders whose descriptors stay open; those above are opened again when the walk comes back.
_KEEP_OPEN = 32
_raw_name = attrgetter("name")
# Python decodes names by the locale; paths are UTF-8 everywhere.
_NATIVE_UTF8 = sys.getfilesystemencoding().lower() in ("utf-8", "utf8")


class Run(NamedTuple):
    """Neighbours in one folder that are not folders: files, links and worse, in order, all in scope."""

    folder: OpenFolder
    prefix: str  # the folder's path with a slash at the end; '' for the root
    items: list[os.DirEntry[str]]
    fresh: bool  # the items' own stat() may be used: the descriptor they were listed by is still open


class _Level:
    """A folder that the walk is in."""

    __slots__ = (
        "folder",
        "fresh",
        "key",
        "parts",
        "populated",
        "prefix",
        "problem",
        "raw",
        "spelled",
        "zone",
    )

    def __init__(self, folder: OpenFolder, prefix: str, raw: str, zone: Zone) -> None:
        found = os.fstat(folder.fd)
        self.folder: OpenFolder | None = folder
        self.key = (found.st_dev, found.st_ino)
        self.prefix = prefix
        self.raw = raw  # the prefix as the file system spells it
        self.zone = zone
        self.fresh = True
        # What is left to visit, last first: a folder with its zone, or neighbours that are not folders.
        self.parts: list[tuple[os.DirEntry[str], Zone] | list[os.DirEntry[str]]] = []
        self.populated = False  # something in scope is below
        self.problem: PathProblem | None = None  # of its own name; counts when something in scope is below
        self.spelled: dict[str, str] | None = None  # collision key -> name, when two names may collide


class Walk:
    """One walk. Iterating it yields the runs; what cannot be synced goes to ``findings``."""

    def __init__(self, root: str, scope: Scope, findings: Findings, *, to_nfc: bool = False) -> None:
        """``to_nfc``: the file system spells names its own way, so that NFD is not the user's doing."""
        self._root = root
        self._scope = scope
        self._findings = findings
        self._to_nfc = to_nfc
        #: Names from the system are the components of paths as they are.
        self.plain_spelling = _NATIVE_UTF8 and not to_nfc
        self._levels: list[_Level] = []
        self._device = 0

    def __iter__(self) -> Iterator[Run]:
        try:
            top = _Level(OpenFolder(os.open(self._root, _FLAGS & ~os.O_NOFOLLOW)), "", "", self._scope.top)
        except OSError as error:
            self._findings.unreadable_paths.append(("", error.strerror or str(error)))
            return
        self._device = top.key[0]
        self._enter(top)
        levels = self._levels
        while levels:
            level = levels[-1]
            if not level.parts:
                self._leave()
                continue
            part = level.parts.pop()
            folder = level.folder or self._open_again(level)
            if isinstance(part, list):
                level.populated = True
                yield Run(folder, level.prefix, part, level.fresh)
            else:
                self._descend(level, folder, *part)

    def spell(self, item: os.DirEntry[str]) -> str:
        """The last component of ``item``'s path; ``item.name`` itself where :attr:`plain_spelling`."""
        name = item.name
        if name.isascii() or self.plain_spelling:
            return name
        if not _NATIVE_UTF8:
            name = os.fsencode(name).decode("utf-8", "surrogateescape")
        return unicodedata.normalize("NFC", name) if self._to_nfc else name

    def close(self) -> None:
        """Let go of all folders."""
        self._levels.clear()

    # Going down

    def _descend(self, level: _Level, folder: OpenFolder, item: os.DirEntry[str], zone: Zone) -> None:
        name = self.spell(item)
        path = level.prefix + name
        try:
            child = _Level(
                OpenFolder(os.open(item.name, _FLAGS, dir_fd=folder.fd)),
                path + "/",
                f"{level.raw}{item.name}/",
                zone,
            )
        except OSError as error:
            self._findings.failed(path, error)
            return
        if child.key[0] != self._device and zone >= Zone.VISIBLE:
            self._findings.unreadable_paths.append((path, "another file system is mounted here"))
            return
        finding = check_name(path, name)
        if finding is not None:
            child.problem = finding.problem
        self._enter(child)

    def _enter(self, level: _Level) -> None:
        assert level.folder is not None
        self._levels.append(level)
        if len(self._levels) > _KEEP_OPEN:
            above = self._levels[-1 - _KEEP_OPEN]
            above.folder, above.fresh = None, False
        try:
            with os.scandir(level.folder.fd) as listing:
                items = list(listing)
            items.sort(key=_raw_name if self.plain_spelling else self.spell)
            if level.zone >= Zone.VISIBLE:
                self._sort_out(level, items)
            else:
                self._search(level, items)
        except OSError as error:
            self._findings.failed(level.prefix.rstrip("/"), error)
        level.parts.reverse()

    def _search(self, level: _Level, items: list[os.DirEntry[str]]) -> None:
        """Outside data folders only folders count."""
        for item in items:
            if item.is_dir(follow_symlinks=False):
                name = self.spell(item)
                zone = self._scope.enter(level.zone, level.prefix + name, name)
                if zone is not Zone.CLOSED:
                    level.parts.append((item, zone))
            elif item.is_symlink() and item.name in self._scope.data_dirs and item.is_dir():
                self._findings.warnings.append(
                    PathProblem(
                        level.prefix + item.name,
                        "is a link to a folder, and links are not followed: nothing in it is synced",
                    )
                )
        if may_collide([part[0].name for part in level.parts if not isinstance(part, list)]):
            level.spelled = {}

    def _sort_out(self, level: _Level, items: list[os.DirEntry[str]]) -> None:
        """Split a listing into runs and folders, without what is out of scope or refused."""
        names = list(map(_raw_name if self.plain_spelling else self.spell, items))
        plain = are_plain(level.prefix, names)
        if may_collide(names):
            level.spelled = {}
        one_by_one = not plain or level.spelled is not None
        ignores = self._scope.ignores if self._scope.has_ignore else None
        run: list[os.DirEntry[str]] = []
        for item in items:
            if item.is_dir(follow_symlinks=False):
                name = self.spell(item)
                zone = level.zone
                if one_by_one or ignores or name in self._scope.data_dirs:
                    zone = self._scope.enter(zone, level.prefix + name, name)
                if zone is not Zone.CLOSED:
                    if run:
                        level.parts.append(run)
                        run = []
                    level.parts.append((item, zone))
            elif one_by_one:
                if self._is_wanted(level, self.spell(item)):
                    run.append(item)
            elif ignores is None or not ignores(level.prefix + item.name):
                run.append(item)
        if run:
            level.parts.append(run)

    def _is_wanted(self, level: _Level, name: str) -> bool:
        if is_never_synced(name) or (level.zone is Zone.VISIBLE and name.startswith(".")):
            return False
        path = level.prefix + name
        if self._scope.ignores(path):
            return False
        self._spelled(level, name)
        finding = check_name(path, name)
        if finding is None:
            return True
        level.populated = True
        if finding.warning:
            self._findings.not_portable(finding.problem)
            return True
        self._findings.refuse(finding.problem)
        return False

    def _spelled(self, level: _Level, name: str) -> None:
        """Note a name that is in scope; refuse it when another differs only in case or normal form."""
        if level.spelled is None:
            return
        known = level.spelled.setdefault(collision_key(name), name)
        if known != name:
            self._findings.refuse(
                PathProblem(
                    level.prefix + name,
                    f"differs only in case or normal form from '{escape(level.prefix + known)}', "
                    "and many systems cannot hold both",
                )
            )

    # And up

    def _leave(self) -> None:
        level = self._levels.pop()
        if not level.populated or not self._levels:
            return
        above = self._levels[-1]
        above.populated = True
        self._spelled(above, level.prefix[len(above.prefix) : -1])
        if level.problem is not None:
            finding = check_name(level.problem.path, level.prefix[len(above.prefix) : -1])
            if finding is not None and finding.warning:
                self._findings.not_portable(level.problem)
            else:
                self._findings.refuse(level.problem)

    def _open_again(self, level: _Level) -> OpenFolder:
        """The folder of a level whose descriptor was closed; LocalChangedError when it is another now."""
        folder = OpenFolder(os.open(self._root, _FLAGS & ~os.O_NOFOLLOW))
        path = level.raw.rstrip("/")
        try:
            for name in path.split("/"):
                if name:
                    folder = OpenFolder(os.open(name, _FLAGS, dir_fd=folder.fd))
            found = os.fstat(folder.fd)
            same = (found.st_dev, found.st_ino) == level.key
        except OSError:
            same = False
        if not same:
            raise LocalChangedError(
                f"the folder '{escape(path)}' was moved while the working folder was being read",
                hint="Run the command again when no program is writing there.",
                facts={"changed": [{"path": path, "reason": "moved"}]},
            )
        level.folder = folder
        return folder

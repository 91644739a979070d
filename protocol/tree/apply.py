"""Applying a decided change to a folder, from wherever a crash left it.

Rules:

1. Nothing that was not expected is ever lost. A thing is first renamed out of
   the tree to a name of its own, then compared with what was expected, and
   only then put where it is kept; a look before the rename alone would leave a
   gap in which an edit can slip through.
2. What is not as expected stays (``KEEP``: the working folder, the user's file
   wins) or is moved to ``.dsg/rescued`` (``RESCUE``: the repository, the
   decision wins). Both are reported.
3. Every step can be repeated. Where an action stands is read from the names
   and stats on disk alone: the staged thing (``staging/{txid}/{number}``), the
   thing taken out (``staging/{txid}/out-{position}``, or in the staged thing's
   place after a swap), the kept thing, and the path itself.
4. All deletions come before any creation, so that a file can become a folder
   and ``A`` can become ``a`` on a file system that takes them for one.
"""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Callable
from enum import Enum

from attrs import Factory, define, frozen

from protocol.paths import escape, sort_key
from protocol.tree.actions import (
    OBJECTS,
    REPLACED,
    RESCUED,
    STAGING,
    Action,
    Expected,
    Staged,
)
from protocol.tree.fs import Kind, Stat, TreeFS
from protocol.tree.journal import Journal

__all__ = ["Applied", "Held", "Phase", "Unexpected", "apply", "rescue"]

# The path is not there, seen through whatever stands in its way.
_ABSENT = frozenset([errno.ENOENT, errno.ENOTDIR, errno.ELOOP])
_IN_THE_WAY = frozenset([errno.EEXIST, errno.ENOTDIR, errno.ELOOP])
# This path cannot be changed, whoever tries again: the user's file stays, the others go on.
_CANNOT = frozenset(
    [
        errno.EACCES,
        errno.EPERM,
        errno.EBUSY,
        errno.EXDEV,
        errno.ENAMETOOLONG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.ETXTBSY,
    ]
)
_TRIES = 8  # against someone who keeps putting things in the way


class Unexpected(Enum):
    """What to do with a thing that is not what the plan expects."""

    KEEP = "keep"
    RESCUE = "rescue"


class Phase(Enum):
    """Moments inside :func:`apply`."""

    REMOVED = "removed"  # all deletions are done
    PLACED = "placed"  # everything is done


@frozen
class Held:
    """A path that was left alone, and why, in words."""

    path: str
    reason: str


@frozen
class Applied:
    """What became of a change.

    ``held``: paths left as the user has them (RESCUE: whose new content was
    gone already). ``rescued``: (path, where its unexpected thing is now).
    ``stats``: the stat of each placed path that still is exactly what was
    placed; one that is neither here nor held was placed and changed since.
    """

    held: list[Held]
    rescued: list[tuple[str, str]]
    stats: list[tuple[str, Stat]]


def apply(
    tree: TreeFS,
    journal: Journal,
    unexpected: Unexpected,
    reach: Callable[[Phase], object] = Phase,
) -> Applied:
    """Make the tree what the decided journal says; to be repeated until it returns.

    OSError (a full disk, an I/O error; with RESCUE also a path that cannot be
    changed): what is done stays done, the journal stays, and applying again
    goes on from there. ``reach`` is called at each Phase.
    """
    run = _Run(tree, journal, unexpected)
    run.remove()
    reach(Phase.REMOVED)
    run.put()
    reach(Phase.PLACED)
    return Applied([Held(p, r) for p, r in run.held.items()], run.rescued, run.stats)


def rescue(tree: TreeFS, area: str, source: str, path: str) -> str | None:
    """Move ``source`` to ``{area}/{path}``, or ``{area}~2/…`` where that is taken; None when it vanished."""
    for attempt in range(1, 10_000):
        target = f"{area if attempt == 1 else f'{area}~{attempt}'}/{path}"
        try:
            tree.make_folders(target.rpartition("/")[0])
            tree.place(source, target)
        except FileNotFoundError:
            if _look(tree, source) is None:
                return None
            raise
        except OSError as error:
            if error.errno in _IN_THE_WAY or error.errno in (errno.ENOTEMPTY, errno.EISDIR):
                continue
            raise
        return target
    raise OSError(errno.EEXIST, "no free name to rescue it to", source)


def _look(tree: TreeFS, path: str) -> Stat | None:
    try:
        return tree.stat(path)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


class _HeldBackError(Exception):
    """This action ends here; the path was reported as held."""


@define
class _Run:
    tree: TreeFS
    journal: Journal
    unexpected: Unexpected
    held: dict[str, str] = Factory(dict)
    rescued: list[tuple[str, str]] = Factory(list)
    stats: list[tuple[str, Stat]] = Factory(list)
    _staging: str = ""
    _area: str = ""
    _slots: set[str] = Factory(set)  # names in staging when this run began
    _folders: set[str] = Factory(lambda: {""})  # known to exist
    _listed: dict[str, set[str]] = Factory(dict)
    _lasting: set[str] = Factory(set)  # folders of what is put
    _emptied: set[str] = Factory(set)  # folders of what was deleted

    def __attrs_post_init__(self) -> None:
        txid = self.journal.txid
        self._staging = f"{STAGING}/{txid}"
        self._area = f"{REPLACED if self.unexpected is Unexpected.KEEP else RESCUED}/{txid}"
        self.tree.make_folders(self._staging)
        self._slots = self.tree.names(self._staging)

    # The two passes

    def remove(self) -> None:
        for position, action in enumerate(self.journal.actions):
            folder = action.path.rpartition("/")[0]
            if action.after is not None:
                self._note_lasting(folder)
                continue
            self._emptied.add(folder)
            try:
                self._delete(position, action)
            except _HeldBackError:
                pass
        self._remove_emptied()

    def put(self) -> None:
        for position, action in enumerate(self.journal.actions):
            if action.after is None:
                continue
            try:
                if action.before is None:
                    self._create(action.path, action.after)
                else:
                    self._replace(position, action, action.before, action.after)
            except _HeldBackError:
                pass
        if self.held:
            # Folders that were left for what then could not be put into them.
            self._lasting.clear()
            self._remove_emptied()

    # One action

    def _delete(self, position: int, action: Action) -> None:
        path, before = action.path, action.before
        assert before is not None
        out = self._out(position)
        if out in self._slots:
            self._settle(f"{self._staging}/{out}", action, before)
        now = _look(self.tree, path) if self._stands(path) else None
        if now is None or now.kind is Kind.FOLDER:
            return
        if self._is_untouched(path, now, before):
            self._take_out(position, action, before)
        else:
            self._clear(path, "it was changed")

    def _create(self, path: str, after: Staged) -> None:
        slot = f"{self._staging}/{after.number}"
        for _ in range(_TRIES):
            self._make_folder_of(path)
            try:
                self.tree.place(slot, path)
            except FileExistsError:
                pass
            except FileNotFoundError:
                self._folders = {""}  # someone removed a folder, or the staged thing is gone
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR):
                    self._hold_or_raise(path, error)
                self._folders = {""}
            else:
                self._placed(path, after)
                return
            now = _look(self.tree, path)
            if now is not None and after.is_at(now):
                self._drop_second_name(slot, after)
                self.stats.append((path, now))
                return
            if _look(self.tree, slot) is None:
                self._hold(path, "it was changed or removed after it had been placed")
            if now is None:
                continue
            if now.kind is Kind.FOLDER and self._remove_empty_folders(path):
                continue
            self._clear(path, "something else stands there")
        self._hold_or_raise(path, OSError(errno.EBUSY, "it keeps changing", path))

    def _replace(self, position: int, action: Action, before: Expected, after: Staged) -> None:
        path, tree = action.path, self.tree
        slot = f"{self._staging}/{after.number}"
        out = self._out(position)
        if out in self._slots:
            self._settle(f"{self._staging}/{out}", action, before)
            self._create(path, after)
            return
        now = _look(tree, path)
        if now is not None and self._is_untouched(path, now, before):
            if tree.capabilities.swap:
                self._exchange(slot, action, before, after)
            else:
                self._take_out(position, action, before)
                self._create(path, after)
            return
        # Something else stands there: ours, placed by an interrupted run, or a stranger's.
        in_slot = _look(tree, slot)
        if in_slot is not None and in_slot.inode != after.inode:
            # The exchange was done; what came out waits to be kept.
            if before.came_out(in_slot):
                self._keep(slot, action)
            elif now is not None and after.is_at(now):
                self._return_or_rescue(slot, path, after)
            else:
                self._rescue(slot, path)
            if now is not None and after.is_at(now):
                self._placed(path, after)
        elif now is not None and after.is_at(now):
            self._drop_second_name(slot, after)
            self.stats.append((path, now))
        elif now is None:
            if not self._was_kept(action) and self.unexpected is Unexpected.KEEP:
                self._hold(path, "it was deleted")
            self._create(path, after)
        elif in_slot is None:
            self._hold(path, "it was changed after it had been placed")
        else:
            self._clear(path, "it was changed")
            self._create(path, after)

    # Taking out, and what came out

    def _take_out(self, position: int, action: Action, before: Expected) -> None:
        out = f"{self._staging}/{self._out(position)}"
        try:
            self.tree.place(action.path, out)
        except FileNotFoundError:
            if self.unexpected is Unexpected.KEEP and action.after is not None:
                self._hold(action.path, "it was deleted")
            return
        except OSError as error:
            self._hold_or_raise(action.path, error)
        self._settle(out, action, before)

    def _settle(self, out: str, action: Action, before: Expected) -> None:
        """Keep what came out if it is what was expected; else give it back, or rescue it."""
        came = _look(self.tree, out)
        if came is None:
            return
        if before.came_out(came):
            self._keep(out, action)
            return
        if self.unexpected is Unexpected.RESCUE:
            self._rescue(out, action.path)
            return
        try:
            self._make_folder_of(action.path)
            self.tree.place(out, action.path)
        except (OSError, _HeldBackError):
            self._rescue(out, action.path)
        self._hold(action.path, "it was changed at that very moment")

    def _exchange(self, slot: str, action: Action, before: Expected, after: Staged) -> None:
        path, tree = action.path, self.tree
        try:
            tree.swap(slot, path)
        except FileNotFoundError:
            if _look(tree, path) is not None:
                self._hold(path, "its new content is gone from staging")
            if self.unexpected is Unexpected.KEEP:
                self._hold(path, "it was deleted")
            self._create(path, after)
            return
        except OSError as error:
            self._hold_or_raise(path, error)
        came = tree.stat(slot)
        if before.came_out(came):
            self._keep(slot, action)
        else:
            self._return_or_rescue(slot, path, after)
        self._placed(path, after)

    def _return_or_rescue(self, slot: str, path: str, after: Staged) -> None:
        """``slot`` holds an unexpected thing that a swap with ``path`` brought out."""
        tree = self.tree
        if self.unexpected is Unexpected.RESCUE:
            self._rescue(slot, path)
            return
        try:
            tree.swap(slot, path)
        except OSError:
            # The path went meanwhile, or cannot be written any more.
            try:
                tree.place(slot, path)
            except OSError:
                self._rescue(slot, path)
        else:
            if not after.is_at(tree.stat(slot)):
                # Edited again in between: the newest version belongs at the path.
                try:
                    tree.swap(slot, path)
                finally:
                    self._rescue(slot, path)
        self._hold(path, "it was changed at that very moment")

    def _keep(self, source: str, action: Action) -> None:
        keep = action.keep
        assert keep is not None
        self._make_folder_of(keep)
        try:
            if keep.startswith(f"{OBJECTS}/"):
                self.tree.move(source, keep)
            else:
                self.tree.place(source, keep)
        except OSError as error:
            if error.errno not in _IN_THE_WAY and error.errno not in (errno.ENOTEMPTY, errno.EISDIR):
                raise
            self._rescue(source, action.path)

    def _rescue(self, source: str, path: str) -> None:
        where = rescue(self.tree, self._area, source, path)
        if where is not None:
            self.rescued.append((path, where))

    def _clear(self, path: str, reason: str) -> None:
        """An unexpected thing stands at ``path``: hold the action, or move the thing away."""
        if self.unexpected is Unexpected.KEEP:
            self._hold(path, reason)
        self._rescue(path, path)

    # Small questions

    def _out(self, position: int) -> str:
        return f"out-{position}"

    def _is_untouched(self, path: str, now: Stat, before: Expected) -> bool:
        if not before.stands(now):
            return False
        if before.kind is not Kind.LINK:
            return True
        try:
            return self.tree.readlink(path) == before.target
        except OSError:
            return False

    def _was_kept(self, action: Action) -> bool:
        return action.keep is not None and _look(self.tree, action.keep) is not None

    def _stands(self, path: str) -> bool:
        """Whether the folder's listing holds exactly this name, not one that the system takes for it."""
        folder, _, name = path.rpartition("/")
        names = self._listed.get(folder)
        if names is None:
            try:
                names = self.tree.names(folder)
            except OSError as error:
                if error.errno not in _ABSENT | {errno.EACCES}:
                    raise
                # Unreadable: the action itself will say what is wrong with the folder.
                return error.errno == errno.EACCES
            if not name.isascii() and not self.tree.capabilities.keeps_normal_form:
                names |= {unicodedata.normalize("NFC", n) for n in names}
            if len(self._listed) >= 16:
                self._listed.pop(next(iter(self._listed)))
            self._listed[folder] = names
        return name in names

    def _placed(self, path: str, after: Staged) -> None:
        now = _look(self.tree, path)
        if now is not None and after.is_at(now):
            self.stats.append((path, now))

    def _drop_second_name(self, slot: str, after: Staged) -> None:
        # A place that was a link and an unlink may have been stopped between the two.
        second = _look(self.tree, slot)
        if second is not None and second.inode == after.inode:
            self.tree.unlink(slot)

    def _hold(self, path: str, reason: str) -> None:
        self.held.setdefault(path, reason)
        raise _HeldBackError

    def _hold_or_raise(self, path: str, error: OSError) -> None:
        if self.unexpected is Unexpected.KEEP and error.errno in _CANNOT:
            self._hold(path, f"it cannot be changed: {error.strerror}")
        raise error

    # Folders

    def _make_folder_of(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if folder in self._folders:
            return
        for _ in range(_TRIES):
            try:
                self.tree.make_folders(folder)
            except OSError as error:
                if error.errno not in _IN_THE_WAY:
                    self._hold_or_raise(path, error)
                obstacle = self._obstacle(folder)
                if obstacle is not None:
                    self._clear_ancestor(path, obstacle)
            else:
                self._folders.add(folder)
                return
        self._hold_or_raise(path, OSError(errno.EBUSY, "its folder keeps changing", folder))

    def _obstacle(self, folder: str) -> str | None:
        parts = folder.split("/")
        for i in range(1, len(parts) + 1):
            ancestor = "/".join(parts[:i])
            now = _look(self.tree, ancestor)
            if now is not None and now.kind is not Kind.FOLDER:
                return ancestor
        return None

    def _clear_ancestor(self, path: str, ancestor: str) -> None:
        if self.unexpected is Unexpected.KEEP:
            self._hold(path, f"{escape(ancestor)!r} is not a folder")
        self._rescue(ancestor, ancestor)

    def _note_lasting(self, folder: str) -> None:
        while folder and folder not in self._lasting:
            self._lasting.add(folder)
            folder = folder.rpartition("/")[0]

    def _remove_emptied(self) -> None:
        full: set[str] = set()
        for start in sorted(self._emptied, key=sort_key, reverse=True):
            folder = start
            while folder and folder not in full and folder not in self._lasting:
                try:
                    self.tree.rmdir(folder)
                except FileNotFoundError:
                    pass
                except OSError:
                    full.add(folder)  # not empty, or not ours to remove: it stays
                    break
                folder = folder.rpartition("/")[0]

    def _remove_empty_folders(self, path: str) -> bool:
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

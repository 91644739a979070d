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
from collections.abc import Callable

from protocol.tree.actions import AREA, REPLACED, STAGING, Action, Expected, Staged
from protocol.tree.folders import IN_THE_WAY, TRIES, look
from protocol.tree.fs import Kind, Stat, TreeFS
from protocol.tree.journal import Journal
from protocol.tree.report import Applied, HeldBackError, Phase, Report, Unexpected
from protocol.tree.taking import Taking, rescue_area

__all__ = ["apply"]


def apply(
    tree: TreeFS,
    journal: Journal,
    unexpected: Unexpected,
    reach: Callable[[Phase], object] = Phase,
    *,
    flushed: bool = False,
) -> Applied:
    """Make the tree what the decided journal says; to be repeated until it returns.

    OSError (a full disk, an I/O error; with RESCUE also a path that cannot be
    changed): what is done stays done, the journal stays, and applying again
    goes on from there. ``reach`` is called at each Phase. ``flushed``: this
    process made the decision itself, and saw it become durable.
    """
    if not flushed:
        # After a crash the decision may have been read before it was durable.
        tree.flush_folder(AREA)
        _note_changed(tree, journal, unexpected)
    run = _Run(tree, journal, Report(unexpected))
    run.remove()
    reach(Phase.REMOVED)
    run.put()
    reach(Phase.PLACED)
    return run.report.applied()


def _note_changed(tree: TreeFS, journal: Journal, unexpected: Unexpected) -> None:
    """Have the flush before the journal goes cover what was applied by somebody who did not come to it."""
    noted = set()

    def note(folder: str) -> None:
        while folder not in noted:
            noted.add(folder)
            tree.note_changed(folder)
            folder = folder.rpartition("/")[0]

    for action in journal.actions:
        note(action.path.rpartition("/")[0])
        if action.keep is not None:
            note(action.keep.rpartition("/")[0])
    area, _, own = rescue_area(journal.txid, unexpected).rpartition("/")
    if look(tree, area) is not None:
        for name in tree.names(area):
            if name.partition("~")[0] == own:
                _note_below(note, tree, f"{area}/{name}")


def _note_below(note: Callable[[str], None], tree: TreeFS, folder: str) -> None:
    note(folder)
    for name, found in tree.scan(folder):
        if found.kind is Kind.FOLDER:
            _note_below(note, tree, f"{folder}/{name}")


class _Run:
    def __init__(self, tree: TreeFS, journal: Journal, report: Report) -> None:
        self.tree = tree
        self.journal = journal
        self.report = report
        self._staging = f"{STAGING}/{journal.txid}"
        self._taking = Taking(tree, journal.txid, report)
        self._folders = self._taking.folders
        tree.make_folders(self._staging)
        self._slots = tree.names(self._staging)  # when this run began

    def remove(self) -> None:
        """The first pass: deletions."""
        for position, action in enumerate(self.journal.actions):
            if action.after is not None:
                self._folders.note_needed(action.path)
            elif action.before is not None:
                self._folders.note_deleted(action.path)
                try:
                    self._delete(position, action, action.before)
                except HeldBackError:
                    pass
        self._folders.remove_emptied()

    def put(self) -> None:
        """The second pass: creations and replacements."""
        planned = set()
        for position, action in enumerate(self.journal.actions):
            if action.keep is not None and action.keep.startswith(f"{REPLACED}/"):
                planned.add(action.keep)
            if action.after is None:
                continue
            try:
                if action.before is None:
                    self._create(action.path, action.after)
                else:
                    self._replace(position, action, action.before, action.after)
            except HeldBackError:
                pass
        if self.report.held:
            # Folders were left for what then could not be put into them.
            self._folders.remove_emptied(needed_too=True)
        self._taking.add_earlier_rescues(planned)

    def _delete(self, position: int, action: Action, before: Expected) -> None:
        path = action.path
        out = self._out(position)
        if out is not None:
            self._taking.settle(out, action, before)
        now = self._look(path) if self._folders.has_exactly(path) else None
        # A folder there means that the file is gone: this change may need the folder.
        if now is None or now.kind is Kind.FOLDER:
            return
        if self._is_untouched(path, now, before):
            self._taking.take_out(self._new_out(position), action, before)
        else:
            self._taking.clear(path, "it was changed")

    def _create(self, path: str, after: Staged) -> None:
        slot = f"{self._staging}/{after.number}"
        for _ in range(TRIES):
            self._folders.make_for(path)
            try:
                self.tree.place(slot, path)
            except OSError as error:
                if error.errno not in IN_THE_WAY and error.errno != errno.ENOENT:
                    self.report.hold_or_raise(path, error)
                self._folders.forget()
            else:
                self._note(path, after, self._look(path))
                return
            now = self._look(path)
            if now is not None and after.is_at(now):
                self._drop_second_name(slot, after)
                self.report.unsure.append(path)
                return
            if look(self.tree, slot) is None:
                self.report.hold(path, "it was changed or removed after it had been placed")
            if now is None or (now.kind is Kind.FOLDER and self._folders.remove_if_hollow(path)):
                continue
            self._taking.clear(path, "something else stands there")
        self.report.hold_or_raise(path, OSError(errno.EBUSY, "it keeps changing", path))

    def _replace(self, position: int, action: Action, before: Expected, after: Staged) -> None:
        path = action.path
        out = self._out(position)
        if out is not None:
            self._taking.settle(out, action, before)
            self._create(path, after)
            return
        now = self._look(path)
        if now is None or not self._is_untouched(path, now, before):
            self._resume_replace(action, before, after, now)
        elif self.tree.capabilities.swap:
            self._exchange(action, before, after)
        else:
            self._taking.take_out(self._new_out(position), action, before)
            self._create(path, after)

    def _resume_replace(self, action: Action, before: Expected, after: Staged, now: Stat | None) -> None:
        """Something else stands there: ours, placed by an interrupted run, or a stranger's; or nothing."""
        path = action.path
        slot = f"{self._staging}/{after.number}"
        in_slot = look(self.tree, slot)
        is_ours = now is not None and after.is_at(now)
        if in_slot is not None and in_slot.inode != after.inode:
            # The exchange was done; what came out waits to be judged.
            if before.came_out(in_slot):
                self._taking.keep(slot, action)
            elif is_ours:
                self._taking.swap_back(slot, path, after)
            else:
                self._taking.rescue(slot, path)
            self.report.unsure.append(path)
        elif is_ours:
            self._drop_second_name(slot, after)
            self.report.unsure.append(path)
        elif now is None:
            if self.report.keeps and not self._was_kept(action):
                self.report.hold(path, "it was deleted")
            self._create(path, after)
        elif in_slot is None:
            self.report.hold(path, "it was changed after it had been placed")
        else:
            self._taking.clear(path, "it was changed")
            self._create(path, after)

    def _exchange(self, action: Action, before: Expected, after: Staged) -> None:
        path, tree = action.path, self.tree
        slot = f"{self._staging}/{after.number}"
        try:
            came, now = tree.swap(slot, path)
        except FileNotFoundError:
            if self._look(path) is not None:
                self.report.hold(path, "its new content is gone from staging")
            if self.report.keeps:
                self.report.hold(path, "it was deleted")
            self._create(path, after)
            return
        except OSError as error:
            self.report.hold_or_raise(path, error)
        if before.came_out(came or tree.stat(slot)):
            self._taking.keep(slot, action)
        else:
            self._taking.swap_back(slot, path, after)
        self._note(path, after, now)

    def _out(self, position: int) -> str | None:
        """What an interrupted run took out for this action, if it did."""
        name = f"out-{position}"
        return f"{self._staging}/{name}" if name in self._slots else None

    def _new_out(self, position: int) -> str:
        return f"{self._staging}/out-{position}"

    def _look(self, path: str) -> Stat | None:
        try:
            return look(self.tree, path)
        except OSError as error:
            self.report.hold_or_raise(path, error)

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
        return action.keep is not None and look(self.tree, action.keep) is not None

    def _note(self, path: str, after: Staged, now: Stat | None) -> None:
        """Report ``path`` as placed; ``now``: seen as soon after that as could be."""
        if now is not None and after.is_at(now):
            self.report.stats.append((path, now))
        else:
            self.report.unsure.append(path)

    def _drop_second_name(self, slot: str, after: Staged) -> None:
        # A place that was a link and an unlink may have been stopped between the two.
        second = look(self.tree, slot)
        if second is not None and second.inode == after.inode:
            self.tree.unlink(slot)

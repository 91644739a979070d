"""The working folder's half of a transaction: stage, check, prepare, decide, settle.

Everything here is synchronous and runs in a thread. Until ``decide`` (or the
server's decision) nothing in L or C changes; ``abandon`` removes what was
staged. After it, :func:`settle` carries the journal out, from any crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from dsg_client.core.merge import kept_beside
from dsg_client.core.plan import Change, Plan
from dsg_client.local.cache import CACHE_PATH, Cache, decode_cache, encode_cache, load_cache
from dsg_client.local.index import FileClock, IndexChanges
from dsg_client.sync.localtree import LocalTree
from dsg_client.sync.transfer import changed_error
from protocol.errors import DsgError, InternalError, LocalStorageError, Outcome, PathsRefusedError
from protocol.manifest import FILE, LINK, Manifest
from protocol.paths import escape, sort_key
from protocol.transaction import Failpoints, Step
from protocol.tree.arrive import Arrivals
from protocol.tree.change import (
    REPLACED,
    STAGING,
    TRASH,
    Action,
    Applied,
    Expected,
    Journal,
    Phase,
    SourceChangedError,
    Staged,
    Staging,
    Unexpected,
    apply,
    decide,
    finish,
    write_prepared,
)
from protocol.tree.folders import look
from protocol.tree.fs import Kind, Stat, TreeFS
from protocol.value import Value

__all__ = ["LocalSide", "Settled", "settle", "storage_error", "storage_errors"]

CACHE_LIMIT = 1 << 33
_SPACE_MARGIN = 16 << 20  # bytes left free for journal, cache and everybody else


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn OSError into LocalStorageError with its meaning and a way out."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error


def storage_error(what: str, error: OSError) -> LocalStorageError:
    """``error`` while doing ``what``, in words."""
    import errno

    cures = {
        errno.ENOSPC: "Free some space on this disk, then run the command again.",
        errno.EDQUOT: "Your quota on this disk is used up: free some space, then run the command again.",
        errno.EROFS: "The file system is mounted read-only.",
        errno.EACCES: "Check the permissions of the folder and of .dsg in it.",
        errno.EPERM: "Check the permissions of the folder and of .dsg in it.",
        errno.EIO: "The disk reports an I/O error: check it before you go on.",
    }
    where = f" at {escape(str(error.filename))}" if error.filename else ""
    return LocalStorageError(
        f"{what} failed{where}: {error.strerror or error}",
        hint=cures.get(error.errno or 0, "Look at the file system, then run the command again."),
        facts={"errno": error.errno, "path": error.filename and str(error.filename)},
    )


class LocalSide:
    """One transaction's work in the folder ``tree``."""

    def __init__(
        self, tree: TreeFS, plan: Plan, local: LocalTree, txid: str, algorithm: str, failpoints: Failpoints
    ) -> None:
        self._tree = tree
        self._plan = plan
        self._txid = txid
        self._failpoints = failpoints
        self._staging = Staging(tree, txid)
        self._staged: dict[str, Staged] = {}
        self._expected = local.expected(
            {change.path for change in plan.uploads}
            | {change.path for change in plan.downloads if change.before is not None}
            | {entry.path for entry in plan.delete_local}
        )
        #: The downloads whose content must travel, in canonical order; they have the first staging numbers.
        self.wanted = [change.after for change in plan.downloads if change.moves_content]
        self.arrivals = Arrivals(self._staging, self.wanted, algorithm, lambda: None)

    # Before anything moves.

    def check_room(self) -> None:
        """Space, devices and what stands in the way of downloads.

        LocalStorageError or PathsRefusedError; nothing was touched.
        """
        with storage_errors("Looking at the working folder"):
            need, free = self._plan.download_bytes, self._tree.free_bytes()
            if need and need + _SPACE_MARGIN > free:
                raise LocalStorageError(
                    f"not enough space: the sync brings {need:,} bytes, and {free:,} are free here",
                    hint="Free some space on this disk, then run 'dsg sync' again.",
                    facts={"needed": need, "free": free},
                )
            problems = list(self._obstacles())
        if problems:
            raise PathsRefusedError(
                f"{len(problems)} downloads cannot be placed:\n"
                + "\n".join(f"  {path}: {why}" for path, why in problems[:50]),
                hint="Move what stands in the way, then run 'dsg sync' again.",
                facts={"paths": [{"path": path, "reason": why} for path, why in problems]},
            )

    def _obstacles(self) -> Iterable[tuple[str, str]]:
        going = {entry.path for entry in self._plan.delete_local}
        known: dict[str, str | None] = {"": None}

        def folder_problem(folder: str) -> str | None:
            if folder in known:
                return known[folder]
            problem = folder_problem(folder.rpartition("/")[0])
            if problem is None and folder not in going:
                stat = look(self._tree, folder)
                if stat is None:
                    pass
                elif stat.kind is not Kind.FOLDER:
                    problem = f"{escape(folder)} is not a folder here"
                elif stat.device != self._tree.device:
                    problem = f"{escape(folder)} is on another file system"
                elif not self._tree.may_change(folder):
                    problem = f"the folder {escape(folder)} cannot be written by you"
            known[folder] = problem
            return problem

        for change in self._plan.downloads:
            problem = folder_problem(change.path.rpartition("/")[0])
            if problem is None and change.before is None:
                problem = self._stands_there(change.path, going)
            if problem is not None:
                yield change.path, problem
        for entry in self._plan.delete_local:
            problem = folder_problem(entry.path.rpartition("/")[0])
            if problem is not None:
                yield entry.path, problem

    def _stands_there(self, path: str, going: set[str]) -> str | None:
        """Why a new file cannot be placed at ``path`` once the plan's deletions are done."""
        stat = look(self._tree, path)
        if stat is None:
            return None
        if stat.kind is not Kind.FOLDER:
            return None if path in going else "something that is not synced stands there"
        folders = [path]
        for folder in folders:
            for name, below in self._tree.scan(folder):
                inner = f"{folder}/{name}"
                if below.kind is Kind.FOLDER:
                    folders.append(inner)
                elif inner not in going:
                    return f"a folder with files that are not synced stands there: {escape(inner)}"
        return None

    # Staging.

    def open(self) -> None:
        """Make the staging folder."""
        with storage_errors("Making the staging folder"):
            self._staging.open()

    def expected_stat(self, path: str, stat: Stat) -> bool:
        """Whether ``stat`` is what was scanned at ``path``."""
        expected = self._expected.get(path)
        return expected is not None and expected.stands(stat)

    def stage_rest(self) -> None:
        """Stage links, and files that only change their executable bit. LocalChangedError when one moved."""
        number = len(self.wanted)
        with storage_errors("Staging"):
            for change in self._plan.downloads:
                if change.moves_content:
                    continue
                if change.after.kind == LINK:
                    self._staged[change.path] = self._staging.link(number, change.after.content.decode())
                else:
                    self._staged[change.path] = self._copy(number, change)
                number += 1

    def _copy(self, number: int, change: Change) -> Staged:
        entry = change.after
        try:
            return self._staging.copy(
                number,
                change.path,
                self._expected.get(change.path),
                executable=entry.executable,
                mtime_ns=entry.mtime_ns,
            )
        except (SourceChangedError, FileNotFoundError):
            raise changed_error([change.path]) from None

    def stage_cache(self, cache: Cache) -> None:
        """Stage the C that will hold when all is done."""
        with storage_errors("Staging the cache"):
            path = f"{self._staging.folder}/cache"
            try:
                self._tree.unlink(path)
            except FileNotFoundError:
                pass
            self._tree.write_bytes(path, encode_cache(cache))
            # The flush of all that was staged may have been before.
            self._tree.flush_folder(self._staging.folder)

    def flush(self) -> None:
        """Make all that was staged durable.

        Where nothing is brought, that is the folder for C alone: the flush of a
        whole file system would wait for whatever else this machine is writing.
        """
        with storage_errors("Flushing the staged files"):
            if self._plan.downloads:
                self._tree.flush()
            else:
                self._tree.flush_folder(STAGING)

    # The last look, and the journal.

    def check_unchanged(self) -> None:
        """Every planned path of L is still what was scanned; LocalChangedError names those that are not."""
        moved = [
            change.path
            for change in (*self._plan.uploads, *self._plan.downloads)
            if not self._still(change.path)
        ]
        moved += [entry.path for entry in self._plan.delete_local if not self._still(entry.path)]
        moved += [entry.path for entry in self._plan.delete_remote if not self._still(entry.path)]
        if moved:
            raise changed_error(sorted(moved, key=sort_key))

    def _still(self, path: str) -> bool:
        expected = self._expected.get(path)
        try:
            now = look(self._tree, path)
        except OSError as error:
            raise storage_error("Looking at the planned files", error) from error
        if expected is None:
            # A folder may stand where a file will be: what is in it was checked and goes first.
            return now is None or now.kind is Kind.FOLDER
        if now is None or not expected.stands(now):
            return False
        return now.kind is not Kind.LINK or self._tree.readlink(path) == expected.target

    def prepare(self, machine: str, root: tuple[int, int], meta: dict[str, Any]) -> None:
        """Write the journal, PREPARED and durable."""
        with storage_errors("Writing the journal"):
            write_prepared(self._tree, Journal(self._txid, machine, root, meta, self._actions()))

    def _actions(self) -> list[Action]:
        kept = {entry.path for entry in self._plan.kept}
        actions = []
        arrived = {entry.path: number for number, entry in enumerate(self.wanted)}
        for number, change in enumerate(self._plan.downloads):
            staged = self._staged.get(change.path) or self.arrivals.staged(arrived[change.path])
            if staged is None:
                raise InternalError(f"{escape(change.path)} was to be downloaded and did not arrive")
            actions.append(self._action(change.path, staged, kept, f"d{number}"))
        for number, entry in enumerate(self._plan.delete_local):
            actions.append(self._action(entry.path, None, kept, f"x{number}"))
        actions.sort(key=lambda action: sort_key(action.path))
        return actions

    def _action(self, path: str, after: Staged | None, kept: set[str], name: str) -> Action:
        before: Expected | None = self._expected.get(path)
        keep = None
        if before is not None:
            keep = f"{REPLACED}/{self._txid}/{path}" if path in kept else f"{TRASH}/{self._txid}/{name}"
        return Action(path, before, after, keep)

    def decide(self) -> None:
        """Make the journal DECIDED."""
        with storage_errors("Writing the journal"):
            decide(self._tree)

    def abandon(self) -> None:
        """Remove what was staged, before there is a journal; never raises: the next sync sweeps."""
        self.arrivals.close()
        try:
            self._staging.discard()
        except OSError:
            pass


class Settled(Value):
    """What became of a decided transaction: paths held back, and things moved to safety."""

    held: tuple[tuple[str, str], ...]
    rescued: tuple[tuple[str, str], ...]


def settle(
    tree: TreeFS,
    journal: Journal,
    failpoints: Failpoints,
    note_placed: Callable[[IndexChanges], None],
    clock: FileClock | None,
) -> Settled:
    """Carry out the decided ``journal``: apply, write C, remove the journal. Repeatable from any crash.

    ``note_placed`` gets the stat index's rows for what was placed.
    LocalStorageError leaves the journal; running any command again goes on.
    The outcome of every error from here is that the transaction is committed.
    """
    try:
        return _settle(tree, journal, failpoints, note_placed, clock)
    except DsgError as error:
        error.outcome = Outcome.COMMITTED
        raise


def _settle(
    tree: TreeFS,
    journal: Journal,
    failpoints: Failpoints,
    note_placed: Callable[[IndexChanges], None],
    clock: FileClock | None,
) -> Settled:

    def reach(phase: Phase) -> None:
        failpoints.reach(Step.LOCAL_TRASHED if phase is Phase.REMOVED else Step.LOCAL_APPLIED)

    with storage_errors("Applying the changes (the server has committed; run 'dsg recover' to go on)"):
        applied = apply(tree, journal, Unexpected.KEEP, reach)
        staged = f"{Staging(tree, journal.txid).folder}/cache"
        try:
            tree.stat(staged)
        except FileNotFoundError:
            pass  # an interrupted run has put it in place already
        else:
            _place_cache(tree, journal, staged, applied)
        failpoints.reach(Step.CACHE_WRITTEN)
        # Without actions L is as it was, and C is all that took its place.
        saved = finish(tree, journal, only_area=not any(True for _ in journal.actions))
        note_placed(_placed_rows(tree, applied, clock))
        failpoints.reach(Step.LOCAL_FINISHED)
    return Settled(tuple((held.path, held.reason) for held in applied.held), (*applied.rescued, *saved))


def _place_cache(tree: TreeFS, journal: Journal, staged: str, applied: Applied) -> None:
    if applied.held:
        new = decode_cache(tree.read_bytes(staged, CACHE_LIMIT))
        held = {item.path for item in applied.held}
        old = [entry for entry in load_cache(tree) if entry.path in held]
        rest = (entry for entry in new if entry.path not in held)
        mixed = new.but(manifest=Manifest.from_entries(kept_beside(rest, old), new.manifest.algorithm))
        beside = f"{Staging(tree, journal.txid).folder}/cache.held"
        try:
            tree.unlink(beside)
        except FileNotFoundError:
            pass
        tree.write_bytes(beside, encode_cache(mixed))
        tree.move(beside, CACHE_PATH)
        tree.unlink(staged)
    else:
        tree.move(staged, CACHE_PATH)


def _placed_rows(tree: TreeFS, applied: Applied, clock: FileClock | None) -> IndexChanges:
    changes = IndexChanges()
    placed = dict(applied.stats)
    if placed:
        for entry in load_cache(tree):
            stat = placed.get(entry.path)
            if stat is not None and entry.kind == FILE:
                changes.put_placed(entry.path, stat, entry.content, clock)
    return changes

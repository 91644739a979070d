"""What changed in a repository's folder without DSG: found by stat, confirmed by hashing."""

from __future__ import annotations

import time
from collections.abc import Callable

from dsg_remote_agent.storage.base import MAX_SHOWN
from dsg_remote_agent.storage.beside import Beside
from dsg_remote_agent.storage.comparing import Known, compare, is_same
from dsg_remote_agent.storage.content import version_of
from dsg_remote_agent.storage.livetree import Part
from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex, row_of
from protocol.errors import OutsideChangeError
from protocol.manifest import Entry, Manifest
from protocol.messages import OutsideChanges
from protocol.paths import escape
from protocol.tree.folders import look
from protocol.tree.fs import TreeFS
from protocol.value import Value

__all__ = ["Seen", "describe", "examine", "outside_error"]

PATIENCE_S = 5.0
WORTH_TWO = 4000  # entries from which on two processes look sooner than one
MAX_SHOWN_BYTES = 512 * 1024  # an answer is one frame
_LONGEST = 16_000  # characters; what is longer is counted only


class Seen(Value):
    """The outcome of one examination: what differs, and the index as it is now known.

    ``clock_ns``: the file system's time before the first file was read (None: none had to be).
    """

    outside: OutsideChanges
    index: StatIndex
    clock_ns: int | None


class _Found:
    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.modified: list[str] = []
        self.deleted: list[str] = []
        self.added: list[str] = []
        self.total = 0

    def note(self, paths: list[str], path: str) -> None:
        self.total += 1
        if len(paths) < MAX_SHOWN:
            paths.append(path)

    def outside(self) -> OutsideChanges:
        """What was found; modified and deleted come first, as they decide whether a sync may go on."""
        room, size = MAX_SHOWN, MAX_SHOWN_BYTES
        shown: list[tuple[str, ...]] = []
        for paths in (self.modified, self.deleted, self.added):
            kept = []
            for path in map(safe_text, paths):
                if not room or len(path) * 4 > size:
                    break
                if len(path) > _LONGEST:
                    continue
                room -= 1
                size -= len(path) * 4
                kept.append(path)
            shown.append(tuple(kept))
        return OutsideChanges(
            modified=shown[0],
            deleted=shown[1],
            added=shown[2],
            more=self.total - sum(map(len, shown)),
        )


def safe_text(path: str) -> str:
    """A name as it can travel: what is not UTF-8 is shown as escapes (no such path can be synced)."""
    return escape(path) if any(0xD800 <= ord(c) <= 0xDFFF for c in path) else path


def examine(
    tree: TreeFS,
    manifest: Manifest,
    index: StatIndex,
    *,
    note: Callable[[str], None],
    clock: Callable[[], int] = lambda: 0,
    tick: Callable[[], None] = lambda: None,
    passed_over: Callable[[str], bool] = lambda _: False,
    skip: int = 0,
) -> Seen:
    """Compare the live tree with the head's ``manifest``; needs no lock.

    A path whose stat fits its index row is not read. Any other is hashed, and
    its row refreshed when the content is still the manifest's. ``passed_over``
    tells the paths that a running apply is about to change. ``note`` and ``clock``
    are called when reading begins, which may take long; ``tick`` now and then:
    any of them may raise. The first ``skip`` added paths are
    not told: a client that has them goes on from there.
    """
    assert len(manifest) == len(index)
    known = Known(manifest, index)
    outcome = _Outcome(tree, manifest.algorithm, index, note, clock, passed_over, skip)
    # A little beyond the middle: the second process has to be begun.
    near = len(manifest) * 21 // 40 if len(manifest) >= WORTH_TWO else 0
    edge = manifest.row(near)[0].rpartition("/")[0] if near else ""
    if not edge:
        compare(tree, known, outcome, tick)
    else:
        # The second half is nearly always as it should be, which another process can say.
        with Beside(lambda tick: is_same(tree, manifest, index, Part(edge, True), near, tick)) as second:
            begun = time.monotonic()
            compare(tree, known, outcome, tick, Part(edge, False))
            # It has as much to do. Should it ever hang, nobody is to wait for it.
            if not second.yes(tick, PATIENCE_S + 4 * (time.monotonic() - begun)):
                compare(tree, known, outcome, tick, Part(edge, True))
    return Seen(outcome.found.outside(), outcome.fresh or index, outcome.clock_ns)


class _Outcome:
    """Notes what differs, and reads what must be read; a :class:`Taker`."""

    def __init__(
        self,
        tree: TreeFS,
        algorithm: str,
        index: StatIndex,
        note: Callable[[str], None],
        clock: Callable[[], int],
        passed_over: Callable[[str], bool],
        skip: int,
    ) -> None:
        self._tree = tree
        self._algorithm = algorithm
        self._index = index
        self._note = note
        self._clock = clock
        self._passed_over = passed_over
        self.found = _Found(skip)
        self.fresh: StatIndex | None = None  # made when it differs
        self.clock_ns: int | None = None

    def added(self, path: str, live: tuple[int, ...]) -> None:
        if not live or self._passed_over(path):
            return
        if self.found.skip:
            self.found.skip -= 1
        else:
            self.found.note(self.found.added, path)

    def deleted(self, known: Known) -> None:
        path = known.rows[0][0]
        if not self._passed_over(path):
            self.found.note(self.found.deleted, path)
        self._put(known.at, UNKNOWN)
        known.drop(1)

    def both(self, known: Known, live: tuple[int, ...]) -> None:
        entry, row = Entry._make(known.rows[0]), known.numbers[0]
        if row != live or not row[1]:
            self._put(known.at, self._look(entry))
        known.drop(1)

    def _look(self, entry: Entry) -> IndexRow:
        """Read what stands there; its row, unknown when it is not the entry's content."""
        path = entry.path
        if self._passed_over(path):
            return UNKNOWN
        if self.clock_ns is None:
            self._note("hashing")
            self.clock_ns = self._clock()
        # It was listed before the file was asked for, perhaps before the clock was.
        stat = look(self._tree, path)
        if stat is None:
            self.found.note(self.found.deleted, path)
        elif version_of(self._tree, path, stat, self._algorithm, entry) == entry.version:
            return row_of(stat)
        else:
            self.found.note(self.found.modified, path)
        return UNKNOWN

    def _put(self, at: int, row: IndexRow) -> None:
        self.fresh = self.fresh or self._index.copy()
        self.fresh.put(at, row)


def describe(outside: OutsideChanges, limit: int = 5) -> str:
    """The changed paths in one line, for a message."""
    groups = []
    for word, paths in (("changed", outside.modified), ("gone", outside.deleted), ("new", outside.added)):
        if paths:
            shown = ", ".join(escape(path) for path in paths[:limit])
            groups.append(
                f"{word}: {shown}" + (f" and {len(paths) - limit} more" if len(paths) > limit else "")
            )
    return "; ".join(groups)


def outside_error(shown: str, outside: OutsideChanges) -> OutsideChangeError:
    """The refusal of a sync while the repository ``shown`` is not what its head says."""
    return OutsideChangeError(
        f"{shown} was changed outside DSG ({describe(outside)})",
        hint="look at these files on the server; 'dsg adopt' takes them in as they are",
        facts={
            "modified": list(outside.modified),
            "deleted": list(outside.deleted),
            "added": list(outside.added),
            "more": outside.more,
        },
    )

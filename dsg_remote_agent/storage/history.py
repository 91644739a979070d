"""Reading the files of a snapshot, newest or old, beside a running sync."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from dsg_remote_agent.storage.base import Source, Wanted
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.content import open_sized, read_if
from dsg_remote_agent.storage.layout import READERS_LOCK, object_path
from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.pruning import read_stock
from dsg_remote_agent.storage.statindex import IndexRow, row_if
from dsg_remote_agent.storage.stock import missing
from protocol.errors import IntegrityError, LockedError
from protocol.manifest import FILE, Manifest
from protocol.paths import sort_key
from protocol.tree.change import JournalState, Staged, read_journal
from protocol.tree.fs import Lock, ReadFile
from protocol.tree.staging import Staging

__all__ = ["LiveRows", "SnapshotFiles"]

# Long enough for any move under way, on a busy machine too: 0.3 s in all.
_TRIES = 8
_DELAY_S = 0.01


class SnapshotFiles:
    """See :class:`dsg_remote_agent.storage.base.SnapshotReader`.

    Holds the readers' lock, shared: only cleaning takes it exclusively. The
    writer is not in the way: what it removes from the live tree is in the
    history before anybody can miss it, so that a second look finds it.
    """

    def __init__(self, place: Place, seq: int | None) -> None:
        self._place = place
        self._lock: Lock | None = _shared_lock(place)
        try:
            self._head = place.chain.head()
            newest = self._head.seq
            if seq is not None and seq < newest:
                error = missing(place.shown, seq, newest, read_stock(place, newest))
                if error is not None:
                    raise error
            self.raw, self.record = place.chain.wanted(self._head, seq)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def manifest(self) -> Manifest:
        return self._place.manifest(self._head, self.record.seq)

    def manifest_blocks(self) -> Iterator[bytes]:
        return self._place.manifest_blocks(self._head, self.record.seq)

    def sources(self, wanted: Iterable[Wanted]) -> Iterator[Source]:
        finder = _Finder(self._place, self._head)
        for one in wanted:
            yield Source(one, finder.open(one))


def _shared_lock(place: Place) -> Lock:
    try:
        lock = place.tree.lock(READERS_LOCK, shared=True)
    except FileNotFoundError:
        raise IntegrityError(
            f"{place.shown}/{READERS_LOCK} is missing",
            hint=f"make it again: touch {READERS_LOCK} in the repository's folder",
        ) from None
    if lock is not None:
        return lock
    raise LockedError(f"{place.shown} is being cleaned", hint="wait until that is finished")


class _Finder:
    """Opens content by path and digest, for paths in canonical order.

    The order of looking: the live path when head and index say that it has
    this content; the history; when it is the head's, the staged file of a
    journal that is decided and not yet applied; the live path by hashing it. A
    miss may be a move under way, so all are tried again with a fresh head.
    """

    def __init__(self, place: Place, head: Head) -> None:
        self._place = place
        self._from(head)

    def _from(self, head: Head) -> None:
        self._head = head
        self._live = LiveRows(self._place, head)
        self._staged: dict[str, tuple[str, Staged]] | None = None if head.unapplied else {}

    def open(self, wanted: Wanted) -> ReadFile | None:
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_DELAY_S * attempt)
                head = self._place.chain.head()
                if (head.digest, head.unapplied) != (self._head.digest, self._head.unapplied):
                    self._from(head)
            opened = self._try_open(wanted)
            if opened is not None:
                return opened
        return None

    def _try_open(self, wanted: Wanted) -> ReadFile | None:
        row = self._live.row_of(wanted)
        if row is not None and row.ctime_ns:
            opened = self._open(wanted.path, wanted)
            if opened is not None:
                if row_if(row, opened.stat()):
                    return opened
                opened.close()
        opened = self._open(object_path(wanted.content), wanted)
        if opened is None and row is not None:
            opened = self._open_staged(wanted)
        return opened or self._hashed(wanted)

    def _hashed(self, wanted: Wanted) -> ReadFile | None:
        opened = self._open(wanted.path, wanted)
        return opened and read_if(opened, wanted, self._place.marker.algorithm)

    def _open(self, path: str, wanted: Wanted) -> ReadFile | None:
        return open_sized(self._place.tree, path, wanted)

    def _open_staged(self, wanted: Wanted) -> ReadFile | None:
        if self._staged is None:
            self._staged = {}
            found = read_journal(self._place.tree)
            if found is not None and found[0] is JournalState.DECIDED:
                staging = Staging(self._place.tree, found[1].txid)
                for action in found[1].actions:
                    if action.after is not None:
                        self._staged[action.path] = staging.path(action.after.number), action.after
        if wanted.path not in self._staged:
            return None
        path, staged = self._staged[wanted.path]
        opened = self._open(path, wanted)
        # An exchange puts what was replaced into the staged file's place, until it is kept.
        if opened is not None and not staged.is_at(opened.stat()):
            opened.close()
            return None
        return opened


class LiveRows:
    """The index rows of head entries that have the wanted content, for paths in canonical order."""

    def __init__(self, place: Place, head: Head) -> None:
        manifest = place.manifest(head, head.seq)
        self._pairs = zip(manifest, place.index(head, manifest), strict=True)
        self._next = next(self._pairs, None)

    def row_of(self, wanted: Wanted) -> IndexRow | None:
        key = sort_key(wanted.path)
        while self._next is not None and sort_key(self._next[0].path) < key:
            self._next = next(self._pairs, None)
        if self._next is None or self._next[0].path != wanted.path:
            return None
        entry, row = self._next
        return row if entry.kind == FILE and entry.content == wanted.content else None

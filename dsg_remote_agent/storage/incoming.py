"""What a transaction takes in, whatever the backend: changes, contents, and what is adopted."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from dsg_remote_agent.storage.adopt import Adopted
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.merge import ChangeRows, Merged, Numbered
from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.statindex import StatIndex
from protocol.codec import Buffer
from protocol.errors import OutsideChangeError, RemoteProtocolError, RemoteStorageError
from protocol.manifest import FILE, Entry, Manifest
from protocol.messages import OutsideChanges
from protocol.paths import escape, sort_key
from protocol.records import SnapshotRecord
from protocol.transaction import Step as Moment
from protocol.tree.arrive import Arrivals
from protocol.tree.change import Staged, Staging

__all__ = ["Incoming"]

# What the journal, manifest and folders need beside the files themselves, roughly.
_SPARE_BYTES = 4 * 1024 * 1024


class Incoming:
    """Changes against ``base``, whose ``manifest`` and ``index`` are given; contents go into ``staging``.

    ``place`` is the tree that staging and adopted files are in.
    """

    def __init__(
        self, place: Place, base: Head, manifest: Manifest, index: StatIndex, staging: Staging
    ) -> None:
        self.seq = base.seq + 1  # of the snapshot being made
        self.adopted = Adopted(place.tree, manifest.algorithm, self.seq)
        self._place = place
        self._base = base
        self._manifest = manifest
        self._index = index
        self._staging = staging
        self._rows = ChangeRows()
        self._arrivals: Arrivals | None = None

    def change(self, changes: Iterable[Entry | str], free: int) -> int:
        """Take the changes, in canonical order; RemoteStorageError when ``free`` bytes are too few."""
        if len(self._rows) or self._arrivals is not None:
            raise RemoteProtocolError("the changes of this transaction were sent already")
        wanted = 0
        for change in changes:
            if isinstance(change, Entry):
                if change.seq != self.seq:
                    raise RemoteProtocolError(
                        f"a change of {change.path!r} is for snapshot s{change.seq}, not s{self.seq}"
                    )
                wanted += change.size if change.kind == FILE else 0
            self._rows.append(change)
        if wanted and wanted + _SPARE_BYTES > free:
            raise RemoteStorageError(
                f"the changes need {wanted + _SPARE_BYTES:,} bytes; {self._place.shown} has {free:,} free",
                hint="free space on the server and sync again; nothing was changed",
                facts={"needed": wanted, "free": free, "path": self._place.shown},
            )
        return len(self._rows)

    def receive(self, payloads: Iterable[Buffer]) -> tuple[int, int]:
        """Stage contents; (files, bytes) of this call."""
        if self._arrivals is None:
            self._arrivals = Arrivals(
                self._staging,
                self._rows,
                self._manifest.algorithm,
                lambda: self._place.failpoints.reach(Moment.UPLOAD_STARTED),
            )
        arrivals = self._arrivals
        files, size = arrivals.files, arrivals.bytes
        try:
            for payload in payloads:
                arrivals.feed(payload)
            arrivals.end()
        finally:
            arrivals.close()
        self._place.failpoints.reach(Moment.UPLOADED)
        return arrivals.files - files, arrivals.bytes - size

    def staged(self, number: int) -> Staged | None:
        """The staged content of a change; None when none came."""
        return None if self._arrivals is None else self._arrivals.staged(number)

    def adopt(self, paths: Iterable[str], who: str) -> Iterator[Entry | str]:
        """Take in what stands at ``paths``; see :meth:`Adopted.take`."""
        yield from self.adopted.take(self._manifest, self._index, paths, who)

    def refuse_unadopted(self, outside: OutsideChanges) -> None:
        """OutsideChangeError when something changed or deleted outside DSG was not adopted."""
        left = [path for path in (*outside.modified, *outside.deleted) if path not in self.adopted.rows]
        if left or (self.leaves_unadopted(outside) and not self.adopted.rows):
            raise OutsideChangeError(
                f"{len(left)} paths that were changed on the server are not adopted, first {escape(left[0])}"
                if left
                else "changes made on the server are not adopted",
                hint="run 'dsg adopt'",
            )

    def leaves_unadopted(self, outside: OutsideChanges) -> bool:
        """Whether paths may have been changed or deleted beyond those that were told, and so adopted."""
        # Added paths that nobody adopts stay as they are, however many: no action of ours touches them.
        return bool(outside.more and (outside.modified or outside.deleted))

    def changes(self) -> Iterator[Numbered]:
        """The client's changes with their numbers and, numbered -1, what is adopted; each path once."""
        own = ((sort_key(path_of(change)), number, change) for number, change in enumerate(self._rows))
        adopted = ((sort_key(path), -1, change) for path, change in self.adopted.changes())
        last: tuple[str, Entry | str] | None = None
        # At equal paths the adopted one (-1) comes first.
        for key, number, change in heapq.merge(adopted, own, key=lambda item: item[:2]):
            if last is not None and last[0] == key:
                if last[1] != change:
                    raise RemoteProtocolError(f"{path_of(change)!r} is adopted and changed at once")
                continue
            last = (key, change)
            yield number, change

    def record(self, txid: str, merged: Merged, message: str, user: str, host: str) -> SnapshotRecord:
        """The record of the snapshot that ``merged`` is to be."""
        return SnapshotRecord(
            repo_id=self._place.marker.repo_id,
            seq=self.seq,
            manifest=merged.digest,
            parent=self._base.digest,
            txid=txid,
            user=user,
            host=host,
            time=self._place.now(),
            message=message,
            entries=merged.entries,
            size=merged.size,
            added=merged.added,
            changed=merged.changed,
            deleted=merged.deleted,
        )


def path_of(change: Entry | str) -> str:
    """The path that a change is of."""
    return change if isinstance(change, str) else change.path

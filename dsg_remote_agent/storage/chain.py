"""The chain of snapshot records on disk, and its head.

``.dsg/records/{seq}`` holds each record's canonical bytes, ``.dsg/head`` names
the newest. A journal that is decided but not yet applied *is* the head: the
decision is the commit, publishing follows. Nothing here needs a lock: a reader
sees the old head or the new one. What is missing or damaged is an
IntegrityError that says what to do, never an empty history.
"""

from __future__ import annotations

import json
from typing import Any

from dsg_remote_agent.storage.layout import FORMAT, HEAD, RECORDS, Marker, record_path, replace_bytes
from protocol.digest import parse_tagged
from protocol.errors import HeadMovedError, IntegrityError, WrongRepositoryError
from protocol.records import MAX_RECORD_BYTES, SnapshotRecord
from protocol.tree.change import JOURNAL_DECIDED, JournalState, read_journal
from protocol.tree.fs import TreeFS
from protocol.value import Value

__all__ = ["Chain", "Head", "head_bytes", "head_moved"]

MAX_HEAD_BYTES = 4096
_RESTORE = "restore it from a backup of the repository's .dsg folder; nothing was changed"


class Head(Value):
    """The newest committed snapshot. ``unapplied``: its journal is decided and not yet carried out."""

    record: SnapshotRecord
    raw: bytes
    digest: str
    unapplied: bool

    @property
    def seq(self) -> int:
        return self.record.seq


def head_bytes(record: SnapshotRecord, digest: str) -> bytes:
    """The content of ``.dsg/head`` that names ``record``."""
    fields = {"format": FORMAT, "seq": record.seq, "record": digest, "txid": record.txid}
    return json.dumps(fields).encode() + b"\n"


class Chain(Value):
    """The records of the repository in ``tree``; ``shown`` is its path for messages."""

    tree: TreeFS
    marker: Marker
    shown: str

    def head(self) -> Head:
        """The head; IntegrityError when it, or its record, is missing or damaged."""
        unapplied = self._unapplied()
        return unapplied or self._published()

    def _unapplied(self) -> Head | None:
        try:
            self.tree.stat(JOURNAL_DECIDED)
        except FileNotFoundError:
            return None
        found = read_journal(self.tree)
        if found is None or found[0] is not JournalState.DECIDED:
            return None  # finished between the two looks
        raw = found[1].meta.get("record")
        if not isinstance(raw, bytes):
            raise IntegrityError(
                f"the decided journal of {self.shown} names no snapshot",
                hint=f".dsg/journal.decided: {_RESTORE}",
            )
        return self._head_of(raw, None, unapplied=True)

    def _published(self) -> Head:
        seq, digest = self._named()
        return self._head_of(self._stored(seq), digest, unapplied=False)

    def _named(self) -> tuple[int, str]:
        try:
            found: Any = json.loads(self.tree.read_bytes(HEAD, MAX_HEAD_BYTES))
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                raise ValueError("it is not a head of format 1")
            seq, digest = found.get("seq"), found.get("record")
            if type(seq) is not int or seq < 0 or not isinstance(digest, str):
                raise ValueError("its fields are damaged")
            parse_tagged(digest)
        except FileNotFoundError:
            raise self._broken(HEAD, "is missing") from None
        except ValueError as error:
            raise self._broken(HEAD, f"cannot be read: {error}") from None
        return seq, digest

    def _broken(self, path: str, what: str) -> IntegrityError:
        hint = _RESTORE
        if path == HEAD:
            hint += (
                "; if the newest file in .dsg/records is the last sync that you know of, remove .dsg/head "
            )
            hint += "and run 'dsg recover', which writes it anew from there"
        return IntegrityError(f"{self.shown}/{path} {what}", hint=hint, facts={"path": path})

    def _head_of(self, raw: bytes, digest: str | None, *, unapplied: bool) -> Head:
        try:
            record = SnapshotRecord.from_bytes(raw, digest)
        except IntegrityError as error:
            raise IntegrityError(
                f"the newest snapshot of {self.shown}: {error.message}",
                hint=f"{RECORDS} and {HEAD}: {_RESTORE}",
                facts={"path": RECORDS},
            ) from None
        if record.repo_id != self.marker.repo_id:
            raise WrongRepositoryError(
                f"the newest record of {self.shown} belongs to the repository {record.repo_id}, "
                f"its format file says {self.marker.repo_id}",
                hint=_RESTORE,
            )
        return Head(record, raw, digest or record.digest, unapplied)

    def _stored(self, seq: int) -> bytes:
        path = record_path(seq)
        try:
            return self.tree.read_bytes(path, MAX_RECORD_BYTES)
        except FileNotFoundError:
            raise self._broken(path, "is missing") from None

    def parents(self, head: Head, down_to: int) -> list[tuple[bytes, SnapshotRecord]]:
        """The records from ``head`` down to ``down_to``, newest first, each checked by the one after it."""
        chain = [(head.raw, head.record)]
        while chain[-1][1].seq > down_to:
            newer = chain[-1][1]
            chain.append(self._parent(newer))
        return chain

    def _parent(self, newer: SnapshotRecord) -> tuple[bytes, SnapshotRecord]:
        raw = self._stored(newer.seq - 1)
        try:
            older = SnapshotRecord.from_bytes(raw, newer.parent)
        except IntegrityError as error:
            raise self._broken(record_path(newer.seq - 1), f"is damaged: {error.message}") from None
        if older.seq != newer.seq - 1 or older.repo_id != newer.repo_id:
            raise self._broken(record_path(newer.seq - 1), "does not belong before the record after it")
        return raw, older

    def holds(self, head: Head, digest: str) -> bool:
        """Whether the record ``digest`` is in the chain that ends in ``head``."""
        record = head.record
        if head.digest == digest:
            return True
        while record.seq > 0:
            if record.parent == digest:
                return True
            record = self._parent(record)[1]
        return False

    def at(self, head: Head, seq: int) -> tuple[bytes, SnapshotRecord]:
        """The record ``seq`` of the chain that ends in ``head``; seq must be in it."""
        return self.parents(head, seq)[-1]

    def wanted(self, head: Head, seq: int | None) -> tuple[bytes, SnapshotRecord]:
        """The record of the snapshot that a reader wants (None: the head); IntegrityError for a newer one."""
        seq = head.seq if seq is None else seq
        if seq > head.seq:
            raise IntegrityError(
                f"{self.shown} has no snapshot s{seq}; its newest is s{head.seq}",
                hint="was the repository restored from an older copy?",
            )
        return self.at(head, seq)

    def range(self, head: Head, first: int, last: int) -> list[bytes]:
        """Raw records ``first`` to ``last``, oldest first, each checked against the one after it."""
        last = min(last, head.seq)
        if last < max(first, 0):
            return []
        # Only the asked-for stretch is linked to its successor; the client checks the whole.
        top = (head.raw, head.record) if last == head.seq else self._parent(self._loose(head, last + 1))
        chain = [top]
        while chain[-1][1].seq > max(first, 0):
            chain.append(self._parent(chain[-1][1]))
        return [raw for raw, _ in reversed(chain)]

    def _loose(self, head: Head, seq: int) -> SnapshotRecord:
        return head.record if seq == head.seq else SnapshotRecord.from_bytes(self._stored(seq))

    def committed(self, txid: str, seq: int) -> bytes | None:
        """The record that ``txid`` made, when it is the snapshot ``seq`` of the chain; else None.

        When only the decided journal says so, its folder is flushed first: what
        is called committed stays so after a power cut.
        """
        head = self.head()
        if seq < 1 or head.seq < seq:
            return None
        raw, record = self.at(head, seq)
        if record.txid != txid:
            return None
        if head.unapplied and record.seq == head.seq:
            self.tree.flush_folder(".dsg")
        return raw

    def publish(self, record: SnapshotRecord, *, durable: bool = True) -> None:
        """Write the record's file, then the head that names it. Repeatable; needs the lock.

        Without ``durable`` a crash of the machine may bring back what was there before.
        """
        self.tree.make_folders(RECORDS)
        # Also when it is there: who put it there may not have lived to flush it.
        replace_bytes(self.tree, record_path(record.seq), record.to_bytes(), durable=durable)
        replace_bytes(self.tree, HEAD, head_bytes(record, record.digest), durable=durable)


def head_moved(shown: str, head: Head, base: str) -> HeadMovedError:
    """The refusal of a transaction whose ``base`` is not the head any more."""
    return HeadMovedError(
        f"{shown} is at snapshot s{head.seq}: another sync committed meanwhile",
        hint="sync again",
        facts={"head": head.digest, "seq": head.seq, "base": base},
    )

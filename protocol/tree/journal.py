"""The journal: the durable list of what a transaction will do to a folder.

The file (``docs/formats.md``): ``DSGJ1\\n``, a msgpack map ``{txid, machine,
root, meta}``, one msgpack array ``[path, before, after, keep]`` for each
action, the number of actions, and the SHA-256 of all before it (32 bytes).
``before`` is nil or ``[kind, size, mtime_ns, ctime_ns, inode, target]``,
``after`` nil or ``[number, kind, size, mtime_ns, inode, executable, target]``;
kind 0 is a file, 1 a link.

Its name is its state: ``journal.prepared``, renamed to ``journal.decided``.
That rename, once the folder is flushed, is the commit record.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import msgpack

from protocol.errors import IntegrityError, VersionError
from protocol.paths import escape, sort_key
from protocol.tree.actions import (
    AREA,
    JOURNAL_DECIDED,
    JOURNAL_PREPARED,
    TMP,
    Action,
    Expected,
    Staged,
    check_txid,
)
from protocol.tree.confine import encode
from protocol.tree.fs import Kind, TreeFS
from protocol.tree.staging import Staging
from protocol.value import Value

__all__ = ["Journal", "JournalState", "decide", "discard_prepared", "read_journal", "write_prepared"]

_MAGIC = b"DSGJ1\n"
_DIGEST_BYTES = 32
_WRITE_BYTES = 1 << 18
_LIMIT = 1 << 33  # more than ten million actions with long names
_KINDS = (Kind.FILE, Kind.LINK)


class JournalState(Enum):
    """What the journal on disk says about its transaction."""

    PREPARED = "prepared"  # outcome not known here
    DECIDED = "decided"  # committed: apply and finish


class Journal(Value):
    """A transaction's actions, in canonical order of path; ``actions`` can be iterated many times.

    ``machine`` and ``root`` (device, inode) say where it was written: stats in
    a copied folder mean nothing. ``meta`` is the caller's.
    """

    txid: str
    machine: str
    root: tuple[int, int]
    meta: Mapping[str, Any]
    actions: Iterable[Action]


class _Encoded(Value):
    """Actions decoded while iterating: a million of them are not kept as objects."""

    rows: bytes
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Action]:
        rows = msgpack.Unpacker(
            io.BytesIO(self.rows),
            use_list=False,
            read_size=1 << 18,
            max_buffer_size=1 << 24,
            unicode_errors="surrogateescape",
        )
        for _ in range(self.count):
            path, before, after, keep = rows.unpack()
            yield Action(path, _expected(before), _staged(after), keep)


def _expected(row: Any) -> Expected | None:
    return row if row is None else Expected(_KINDS[row[0]], *row[1:])


def _staged(row: Any) -> Staged | None:
    return row if row is None else Staged(row[0], _KINDS[row[1]], *row[2:])


def _row(action: Action) -> tuple[Any, ...]:
    path, before, after, keep = action
    return (
        path,
        before and (_KINDS.index(before.kind), *before[1:]),
        after and (after.number, _KINDS.index(after.kind), *after[2:]),
        keep,
    )


def check_actions(actions: Iterable[Action]) -> Iterator[Action]:
    """The same actions, each checked; ValueError for one that cannot be applied safely."""
    previous = ""
    for action in actions:
        path, before, after, keep = action
        key = sort_key(path)
        if key <= previous:
            raise ValueError(f"{escape(path)!r} is out of order")
        previous = key
        try:
            encode(path)
            if keep is not None:
                encode(keep)
        except OSError:
            raise ValueError(f"{escape(path)!r} is not a plain relative path") from None
        if path.partition("/")[0].casefold() == AREA:
            raise ValueError(f"{escape(path)!r} lies in DSG's own folder")
        if (keep is None) != (before is None):
            raise ValueError(f"{escape(path)!r}: what is removed needs a place to be kept, and only that")
        if keep is not None and not keep.startswith(f"{AREA}/"):
            raise ValueError(f"{escape(path)!r} would be kept outside DSG's own folder")
        if before is None and after is None:
            raise ValueError(f"{escape(path)!r}: nothing to do")
        yield action


def write_prepared(tree: TreeFS, journal: Journal) -> None:
    """Write the journal as PREPARED; when this returns, it is durable.

    What it speaks of in staging must have been flushed before. OSError EEXIST
    when there is a journal already; ValueError for actions out of order or
    outside the tree. A failure leaves at most a file in ``.dsg/tmp``.
    """
    for existing in (JOURNAL_DECIDED, JOURNAL_PREPARED):
        if _exists(tree, existing):
            raise FileExistsError(errno.EEXIST, "another transaction's journal waits to be settled", existing)
    tree.make_folders(TMP)
    path = f"{TMP}/journal-{check_txid(journal.txid)}"
    try:
        tree.unlink(path)
    except FileNotFoundError:
        pass
    written = tree.create(path)
    try:
        _write(written.write, journal)
        written.finish(executable=False, mtime_ns=None, durable=True)
    except BaseException:
        written.close()
        tree.unlink(path)
        raise
    tree.place(path, JOURNAL_PREPARED)
    tree.flush_folder(AREA)


def _write(write: Callable[[bytes], None], journal: Journal) -> None:
    digest = hashlib.sha256()
    packer = msgpack.Packer(autoreset=False, unicode_errors="surrogateescape")

    def flush() -> None:
        piece = packer.bytes()
        packer.reset()
        digest.update(piece)
        write(piece)

    digest.update(_MAGIC)
    write(_MAGIC)
    packer.pack(
        {
            "txid": journal.txid,
            "machine": journal.machine,
            "root": list(journal.root),
            "meta": dict(journal.meta),
        }
    )
    count = size = 0
    for action in check_actions(journal.actions):
        packer.pack(_row(action))
        count += 1
        size += 1
        if size == 1000:
            flush()
            size = 0
    packer.pack(count)
    flush()
    write(digest.digest())


def read_journal(tree: TreeFS) -> tuple[JournalState, Journal] | None:
    """The journal in the tree, or None when there is none.

    IntegrityError when it is damaged (nothing is changed, the file stays);
    VersionError when a newer DSG wrote it.
    """
    for state, path in ((JournalState.DECIDED, JOURNAL_DECIDED), (JournalState.PREPARED, JOURNAL_PREPARED)):
        try:
            encoded = tree.read_bytes(path, _LIMIT)
        except FileNotFoundError:
            continue
        if encoded[:4] == _MAGIC[:4] and encoded[: len(_MAGIC)] != _MAGIC:
            raise VersionError(
                f"{path} was written by a newer version of DSG",
                hint="Run the newer version here, or update this one.",
                facts={"path": path},
            )
        try:
            return state, _parse(encoded)
        except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
            raise IntegrityError(
                f"the journal {path} is damaged: {error}",
                hint=_WAY_OUT[state],
                facts={"path": path},
            ) from None
    return None


_WAY_OUT = {
    JournalState.PREPARED: (
        "Nothing of this transaction has touched the files yet. Move the journal aside, then run "
        "'dsg status': it compares the files as they are with the repository."
    ),
    JournalState.DECIDED: (
        "The transaction is committed and its changes may be half applied; what was removed lies under "
        ".dsg/trash, .dsg/history or .dsg/replaced, and what was still to come under .dsg/staging. Copy "
        "the folder .dsg aside, move the journal out of it, and run 'dsg status' to see which files differ."
    ),
}


def _parse(encoded: bytes) -> Journal:
    if not encoded.startswith(_MAGIC) or len(encoded) < len(_MAGIC) + _DIGEST_BYTES:
        raise ValueError("it is cut short or not a journal")
    body, digest = memoryview(encoded)[:-_DIGEST_BYTES], encoded[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its checksum does not fit")
    unpacker = msgpack.Unpacker(
        io.BytesIO(body[len(_MAGIC) :]),
        use_list=False,
        max_buffer_size=1 << 24,
        unicode_errors="surrogateescape",
    )
    head = unpacker.unpack()
    rows_at = len(_MAGIC) + unpacker.tell()
    count = 0
    while not isinstance(row := unpacker.unpack(), int):
        _check_row(row)
        count += 1
    if row != count:
        raise ValueError(f"it says {row} actions and holds {count}")
    actions = _Encoded(bytes(body[rows_at:]), count)
    for _ in check_actions(actions):
        pass
    device, inode = head["root"]
    return Journal(check_txid(head["txid"]), head["machine"], (device, inode), head["meta"], actions)


_BEFORE = (int, int, int, int, int, str)
_AFTER = (int, int, int, int, int, bool, str)


def _check_row(row: Any) -> None:
    path, before, after, keep = row
    if not isinstance(path, str) or not isinstance(keep, (str, type(None))):
        raise ValueError("an action's path is not text")
    for fields, types, kind_at in ((before, _BEFORE, 0), (after, _AFTER, 1)):
        if fields is None:
            continue
        if len(fields) != len(types) or any(type(f) is not t for f, t in zip(fields, types, strict=True)):
            raise ValueError(f"{escape(path)!r}: a field has the wrong type")
        if fields[kind_at] not in (0, 1) or (kind_at and fields[0] < 0):
            raise ValueError(f"{escape(path)!r}: a number is out of range")


def decide(tree: TreeFS) -> None:
    """Make the PREPARED journal DECIDED. Its return is the commit: from here on only forward.

    An error leaves it in doubt on disk: read the journal again before anything is concluded.
    """
    tree.move(JOURNAL_PREPARED, JOURNAL_DECIDED)
    tree.flush_folder(AREA)


def discard_prepared(tree: TreeFS) -> None:
    """Undo a PREPARED transaction: its journal goes, then its staging. Nothing to do without one."""
    try:
        encoded = tree.read_bytes(JOURNAL_PREPARED, _LIMIT)
    except FileNotFoundError:
        return
    tree.unlink(JOURNAL_PREPARED)
    tree.flush_folder(AREA)
    try:
        txid = _parse(encoded).txid
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException):
        return  # damaged: its staging is an orphan now, for sweep
    Staging(tree, txid).discard()


def _exists(tree: TreeFS, path: str) -> bool:
    try:
        tree.stat(path)
    except FileNotFoundError:
        return False
    return True

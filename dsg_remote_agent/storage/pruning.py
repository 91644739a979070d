"""The directory backend's retention: what is protected, what was pruned, and removing what nobody needs.

Contents lie once in the history, whoever needs them. So a snapshot is pruned
by one line, ``.dsg/pruned``, after which nobody reads it; its manifest, and the
contents that no manifest names any more, are removed behind that. A crash
leaves some of them, until the next prune or ``dsg recover`` goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dsg_remote_agent.storage.base import Notice
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.layout import (
    MANIFESTS,
    OBJECTS,
    PROTECTED_FILE,
    PRUNED,
    READERS_LOCK,
    manifest_path,
    object_path,
    replace_bytes,
    stands,
)
from dsg_remote_agent.storage.manifests import inflate_blocks
from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.stock import PROTECTED, Stock
from protocol.errors import IntegrityError, LockedError, VersionError
from protocol.manifest import FILE
from protocol.tree.fs import TreeFS

__all__ = ["mark_pruned", "protect", "read_pruned", "read_stock", "sweep"]

_FORMAT = 1
_MAX_BYTES = 16 * 1024 * 1024
_MOST_SEQ = 1 << 40
_DIGITS = frozenset("0123456789abcdef")


def read_stock(place: Place, newest: int) -> Stock:
    """Which snapshots up to ``newest`` are there, and which are protected."""
    pruned = read_pruned(place)[0] - {newest}
    protected = set(_read(place, PROTECTED_FILE, "protected"))
    present = frozenset(range(newest + 1)) - pruned
    return Stock(present, dict.fromkeys(protected & present, PROTECTED))


def read_pruned(place: Place) -> tuple[frozenset[int], bool]:
    """The numbers of pruned snapshots, and whether all that was theirs has been removed."""
    found: list[int] = []
    fields = _fields(place, PRUNED)
    for item in _list(place, PRUNED, fields, "pruned"):
        if not isinstance(item, list) or len(item) != 2 or not _is_range(item):
            raise _damaged(place, PRUNED)
        found.extend(range(item[0], item[1] + 1))
    return frozenset(found), fields.get("swept", True) is True


def mark_pruned(place: Place, head: Head, seqs: Iterable[int]) -> None:
    """From now on the snapshots ``seqs`` are pruned. Needs the repository's lock.

    LockedError while anybody reads from the repository: it may be one of them.
    """
    before, swept = read_pruned(place)
    wanted = before.union(seqs) - {head.seq}
    # Who opens one after this lock was held sees the mark; who opened one before holds the lock.
    lock = place.tree.lock(READERS_LOCK)
    if lock is None:
        raise LockedError(
            f"somebody reads from {place.shown}, perhaps from a snapshot that is to be pruned",
            hint="try again when their clone or sync is finished; nothing was changed",
        )
    try:
        _write_pruned(place, wanted, swept=swept and wanted == before)
    finally:
        lock.release()


def sweep(place: Place, head: Head, notice: Notice) -> int:
    """Remove what only pruned snapshots needed; how many contents. Needs the lock; repeatable.

    Every kept manifest is read first: when one is damaged, nothing is removed.
    """
    pruned, swept = read_pruned(place)
    if swept:
        return 0
    notice("removing pruned snapshots")
    tree = place.tree
    unneeded = set(_objects(tree))
    for _, record in place.chain.parents(head, 0):
        if record.seq in pruned and record.seq != head.seq:
            continue
        blocks = place.manifest_blocks(head, record.seq)
        for entry in inflate_blocks(blocks, record.manifest, record.seq, place.shown):
            if entry.kind == FILE:
                unneeded.discard(entry.content)
    for content in unneeded:
        _unlink(tree, object_path(content))
    left = tree.names(MANIFESTS)
    for seq in pruned - {head.seq}:
        path = manifest_path(seq)
        if path.rpartition("/")[2] in left:
            _unlink(tree, path)
    tree.flush()
    _write_pruned(place, pruned, swept=True)
    return len(unneeded)


def protect(place: Place, seq: int, on: bool) -> None:
    """Have every policy keep snapshot ``seq``, or no longer. Needs the lock; repeatable."""
    before = set(_read(place, PROTECTED_FILE, "protected"))
    after = before | {seq} if on else before - {seq}
    if after != before:
        _write(place, PROTECTED_FILE, {"protected": sorted(after)})


def _objects(tree: TreeFS) -> Iterable[bytes]:
    for folder in tree.names(OBJECTS):
        for name in tree.names(f"{OBJECTS}/{folder}"):
            # Nothing else is ours.
            if len(name) == 64 and name.startswith(folder) and _DIGITS.issuperset(name):
                yield bytes.fromhex(name)


def _unlink(tree: TreeFS, path: str) -> None:
    try:
        tree.unlink(path)
    except FileNotFoundError:
        pass  # removed before a crash


def _write_pruned(place: Place, pruned: Iterable[int], *, swept: bool) -> None:
    ranges: list[list[int]] = []
    for seq in sorted(pruned):
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1][1] = seq
        else:
            ranges.append([seq, seq])
    _write(place, PRUNED, {"pruned": ranges, "swept": swept})


def _write(place: Place, path: str, fields: dict[str, Any]) -> None:
    replace_bytes(place.tree, path, json.dumps({"format": _FORMAT, **fields}).encode() + b"\n")


def _read(place: Place, path: str, name: str) -> list[int]:
    found = _list(place, path, _fields(place, path), name)
    if not all(type(item) is int for item in found):
        raise _damaged(place, path)
    return found


def _list(place: Place, path: str, fields: dict[str, Any], name: str) -> list[Any]:
    found = fields.get(name, [])
    if not isinstance(found, list):
        raise _damaged(place, path)
    return found


def _is_range(item: list[Any]) -> bool:
    return all(type(seq) is int for seq in item) and 0 <= item[0] <= item[1] < _MOST_SEQ


def _fields(place: Place, path: str) -> dict[str, Any]:
    """What a file says; nothing when it is not there."""
    if not stands(place.tree, path):
        return {}
    try:
        found: Any = json.loads(place.tree.read_bytes(path, _MAX_BYTES))
    except ValueError:
        raise _damaged(place, path) from None
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise _damaged(place, path)
    if found["format"] > _FORMAT:
        raise VersionError(
            f"{place.shown}/{path} has format {found['format']}; this agent reads format {_FORMAT}",
            hint="install a newer DSG on the server",
        )
    return found


def _damaged(place: Place, path: str) -> IntegrityError:
    return IntegrityError(
        f"{place.shown}/{path} is damaged",
        hint="restore it from a backup of the repository's .dsg folder; nothing was changed",
        facts={"path": path},
    )

"""The new manifest from the old one and the changes, as a stream, with everything checked on the way.

Base manifest and changes are both in canonical order, so that one pass over
both gives the new manifest; what is kept of a million entries is their encoded
bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgpack

from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex
from protocol.codec import Buffer
from protocol.digest import hasher
from protocol.errors import PathsRefusedError, RemoteProtocolError
from protocol.manifest import FILE, Entry, Manifest, Row
from protocol.paths import collision_key, sort_key
from protocol.splice import PART_BYTES, Ahead, Parts
from protocol.value import Value

__all__ = ["ChangeRows", "Merged", "Numbered", "Step", "merge"]

_MAGIC = b"DSGM1\n"
_SHOWN = 100

Numbered = tuple[int, Entry | str]  # a change with its number, by which its content was sent


class ChangeRows:
    """Changes in canonical order, kept as encoded bytes, with access by number."""

    def __init__(self) -> None:
        self._encoded = bytearray()
        self._starts = array("Q")
        self._last_key = ""
        self._pack = msgpack.Packer().pack

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, change: Entry | str) -> None:
        """Add the next; RemoteProtocolError when it does not stand after the one before."""
        path = change if isinstance(change, str) else change.path
        key = sort_key(path)
        if key <= self._last_key:
            raise RemoteProtocolError(f"the change of {path!r} is out of order or given twice")
        self._last_key = key
        self._starts.append(len(self._encoded))
        self._encoded += self._pack((change,) if isinstance(change, str) else change)

    def __getitem__(self, number: int) -> Entry | str:
        end = self._starts[number + 1] if number + 1 < len(self._starts) else len(self._encoded)
        return _decode(msgpack.unpackb(memoryview(self._encoded)[self._starts[number] : end], use_list=False))

    def __iter__(self) -> Iterator[Entry | str]:
        for number in range(len(self)):
            yield self[number]


def _decode(row: tuple[Any, ...]) -> Entry | str:
    if len(row) == 1:
        path = row[0]
        assert isinstance(path, str)
        return path
    return Entry._make(row)


class Merged(Value):
    """The new manifest as its canonical bytes, what the record says of it, and its stat index.

    The bytes are ``head`` and then ``parts``.

    ``index`` has the base's rows; those of the entries numbered ``brought``,
    which are the changes that are no deletes, are unknown.
    """

    head: bytes
    parts: list[Buffer]
    digest: str
    entries: int
    size: int
    added: int
    changed: int
    deleted: int
    index: StatIndex
    brought: array[int]


class Step(NamedTuple):
    """One change against the base: ``was`` with its index row, and what is to be (``entry`` None: a delete).

    ``number`` is the change's number.
    """

    number: int
    path: str
    entry: Entry | None
    was: Entry | None
    row: IndexRow | None


def merge(
    base: Manifest,
    index: StatIndex,
    changes: Iterable[Numbered],
    on_step: Callable[[Step], None],
    on_part: Callable[[Buffer], None] = lambda _: None,
    *,
    size: int,
) -> Merged:
    """The new manifest; every change is given to ``on_step``, every part of it to ``on_part``, in order.

    ``index`` has a row for each entry of ``base``, whose files have ``size`` bytes. RemoteProtocolError for a
    delete of what the base does not have, and when a file would stand where
    another's folder is; PathsRefusedError when new names differ from others
    only in case or normal form.
    """
    ahead = Ahead(base)
    parts = Parts(on_part)
    carried = StatIndex()
    brought = array("Q")
    pack = msgpack.Packer().pack
    added = changed = deleted = 0
    for number, change in changes:
        entry = None if isinstance(change, str) else change
        path = change if isinstance(change, str) else change.path
        first = ahead.number
        passed, was = ahead.go_to(path)
        at = ahead.number - (was is not None)
        parts.add(passed)
        carried.extend(index, first, at)
        if was is not None:
            size -= _size(was)
        elif entry is None:
            raise RemoteProtocolError(f"{path!r} is to be deleted, and the head does not have it")
        on_step(Step(number, path, entry, was, None if was is None else index[at]))
        if entry is None:
            deleted += 1
            continue
        added += was is None
        changed += was is not None
        size += _size(entry)
        parts.add(pack(entry))
        brought.append(len(carried))
        carried.append(UNKNOWN)
    parts.add(ahead.rest())
    carried.extend(index, ahead.number, len(base))
    done = parts.end()
    if added:
        # Only a new path can be in the way of another.
        _check_tree(done, base)
    head: bytes = _MAGIC + msgpack.packb((base.algorithm, len(carried)))
    sums = hasher(base.algorithm)
    for part in (head, *done):
        sums.update(part)
    return Merged(
        head=head,
        parts=done,
        digest=f"{base.algorithm}:{sums.digest().hex()}",
        entries=len(carried),
        size=size,
        added=added,
        changed=changed,
        deleted=deleted,
        index=carried,
        brought=brought,
    )


def _size(row: Row) -> int:
    return row[4] if row[1] == FILE else 0


def _check_tree(parts: Iterable[Buffer], base: Manifest) -> None:
    """Refuse the entries encoded in ``parts`` when they are no possible tree, or make names collide."""
    names = _Names()
    pairs: list[tuple[str, str]] = []
    for part in parts:
        unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=0)
        # A part may be the whole base: the unpacker copies what it is fed.
        for at in range(0, len(part), PART_BYTES):
            unpacker.feed(part[at : at + PART_BYTES])
            for row in unpacker:
                pair = names.enter(row[0])
                if pair:
                    pairs.append(pair)
    pairs = _new_pairs(pairs, base)
    if pairs:
        raise _refuse(pairs)


def _refuse(pairs: list[tuple[str, str]]) -> PathsRefusedError:
    shown = "; ".join(f"{a!r} and {b!r}" for a, b in pairs[:5])
    more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    return PathsRefusedError(
        f"names that differ only in case or in normal form: {shown}{more}",
        hint="rename one of each pair: some computers hold both as one file",
        facts={"collisions": [list(pair) for pair in pairs[:_SHOWN]]},
    )


class _Names:
    """Notices names in one folder that collide, and a file that would be a folder.

    Takes the paths in canonical order, and keeps only the names of the folders that the
    current path is in.
    """

    def __init__(self) -> None:
        self._names: list[dict[str, str]] = [{}]  # of the root, then of each open folder
        self._open: list[str] = []
        self._prefix = ""  # of the paths in the innermost open folder
        self._previous = "/"  # no path begins so

    def enter(self, path: str) -> tuple[str, str] | None:
        """Take the next path; a pair of colliding paths, if it makes one.

        RemoteProtocolError when the path before would have to be a folder.
        """
        if path.startswith(self._prefix):
            # Nearly every path is in the folder of the one before it.
            name = path[len(self._prefix) :]
            if "/" not in name:
                self._previous = path
                known = self._names[-1].setdefault(collision_key(name), name)
                return None if known == name else (self._prefix + known, path)
        if path.startswith(self._previous + "/"):
            raise RemoteProtocolError(f"{self._previous!r} would be both a file and a folder")
        self._previous = path
        parts = path.split("/")
        last = len(parts) - 1
        depth = 0
        while depth < len(self._open) and depth < last and self._open[depth] == parts[depth]:
            depth += 1
        del self._open[depth:], self._names[depth + 1 :]
        pair = None
        for level in range(depth, last + 1):
            name = parts[level]
            known = self._names[level].setdefault(collision_key(name), name)
            if known != name:
                pair = pair or ("/".join([*parts[:level], known]), "/".join([*parts[:level], name]))
            if level < last:
                self._open.append(name)
                self._names.append({})
        self._prefix = path[: len(path) - len(parts[last])]
        return pair


def _new_pairs(pairs: list[tuple[str, str]], base: Manifest) -> list[tuple[str, str]]:
    """The pairs that the base did not have already: those are not this transaction's fault."""
    if not pairs:
        return pairs
    sought = {sort_key(path) for pair in pairs for path in pair}
    found = set()
    for entry in base:
        parts = entry.path.split("/")
        for depth in range(len(parts)):
            key = "\0".join(parts[: depth + 1])
            if key in sought:
                found.add(key)
    return [pair for pair in pairs if not all(sort_key(path) in found for path in pair)]

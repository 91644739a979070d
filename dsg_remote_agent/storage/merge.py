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

from dsg_remote_agent.storage.statindex import IndexRow, StatIndex
from protocol.digest import hasher
from protocol.errors import PathsRefusedError, RemoteProtocolError
from protocol.manifest import FILE, Entry, Manifest
from protocol.paths import collision_key, sort_key
from protocol.value import Value

__all__ = ["ChangeRows", "Merged", "Numbered", "Step", "merge", "steps"]

_MAGIC = b"DSGM1\n"
_PART_BYTES = 1 << 20
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
    """The new manifest as its canonical bytes in parts, and what the record says of it."""

    parts: list[bytes]
    digest: str
    entries: int
    size: int
    added: int
    changed: int
    deleted: int


class _Counts:
    def __init__(self) -> None:
        self.added = self.changed = self.deleted = 0


class Step(NamedTuple):
    """One change against the base: ``was`` with its index row, and what is to be (``entry`` None: a delete).

    ``number`` is the change's number.
    """

    number: int
    path: str
    entry: Entry | None
    was: Entry | None
    row: IndexRow | None


def steps(base: Manifest, index: StatIndex, changes: Iterable[Numbered]) -> Iterator[Step | Entry]:
    """Base and numbered changes merged in canonical order: each change a Step, each untouched entry itself.

    ``index`` has a row for each entry of ``base``. RemoteProtocolError for a
    delete of what the base does not have.
    """
    numbered = iter(changes)
    coming = next(numbered, None)
    coming_path, coming_key = _key(coming)
    rest = enumerate(base)
    for at, entry in rest:
        path = entry[0]
        if path != coming_path:
            key = sort_key(path)
            while coming is not None and coming_key < key:
                yield _step(coming, coming_path, None, None)
                coming = next(numbered, None)
                coming_path, coming_key = _key(coming)
        if path == coming_path and coming is not None:
            yield _step(coming, path, entry, index[at])
            coming = next(numbered, None)
            coming_path, coming_key = _key(coming)
        else:
            yield entry
        if coming is None:
            break
    for _, entry in rest:
        yield entry
    while coming is not None:
        yield _step(coming, coming_path, None, None)
        coming = next(numbered, None)
        coming_path, coming_key = _key(coming)


def _key(coming: Numbered | None) -> tuple[str, str]:
    if coming is None:
        return "", ""
    change = coming[1]
    path = change if isinstance(change, str) else change.path
    return path, sort_key(path)


def _step(coming: Numbered, path: str, was: Entry | None, row: IndexRow | None) -> Step:
    number, change = coming
    if isinstance(change, str):
        if was is None:
            raise RemoteProtocolError(f"{path!r} is to be deleted, and the head does not have it")
        return Step(number, path, None, was, row)
    return Step(number, path, change, was, row)


def merge(
    base: Manifest, index: StatIndex, changes: Iterable[Numbered], on_step: Callable[[Step], None]
) -> Merged:
    """The new manifest; every change is given to ``on_step`` in order.

    RemoteProtocolError when a file would stand where another's folder is;
    PathsRefusedError when new names differ from others only in case or normal
    form.
    """
    counts = _Counts()
    parts: list[bytes] = []
    packer = msgpack.Packer(autoreset=False)
    pack = packer.pack
    entries = size = waiting = 0
    for item in steps(base, index, changes):
        if isinstance(item, Step):
            on_step(item)
            if item.entry is None:
                counts.deleted += 1
                continue
            counts.added += item.was is None
            counts.changed += item.was is not None
            entry = item.entry
        else:
            entry = item
        entries += 1
        if entry[1] == FILE:
            size += entry[4]
        pack(entry)
        waiting += 1
        if waiting >= 8192:
            parts.append(packer.bytes())
            packer.reset()
            waiting = 0
    parts.append(packer.bytes())
    if counts.added:
        # Only a new path can be in the way of another.
        _check_tree(parts, base)
    head: bytes = _MAGIC + msgpack.packb((base.algorithm, entries))
    sums = hasher(base.algorithm)
    for part in (head, *parts):
        sums.update(part)
    return Merged(
        [head, *parts],
        f"{base.algorithm}:{sums.digest().hex()}",
        entries,
        size,
        counts.added,
        counts.changed,
        counts.deleted,
    )


def _check_tree(parts: Iterable[bytes], base: Manifest) -> None:
    """Refuse the entries encoded in ``parts`` when they are no possible tree, or make names collide."""
    names = _Names()
    pairs: list[tuple[str, str]] = []
    previous = ""
    previous_key = "\0"
    for part in parts:
        unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=0)
        unpacker.feed(part)
        for path, *_ in unpacker:
            key = sort_key(path)
            if key.startswith(previous_key + "\0"):
                raise RemoteProtocolError(f"{previous!r} would be both a file and a folder")
            previous, previous_key = path, key
            pair = names.enter(path)
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
    """Notices names in one folder that collide, as paths come by in canonical order.

    Keeps only the names of the folders that the current path is in.
    """

    def __init__(self) -> None:
        self._names: list[dict[str, str]] = [{}]  # of the root, then of each open folder
        self._open: list[str] = []

    def enter(self, path: str) -> tuple[str, str] | None:
        """Take the next path; a pair of colliding paths, if it makes one."""
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

"""What a scan found: entries of L, and the numbers by which it can later be told that nobody touched them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from protocol.manifest import FILE, Entry

__all__ = ["Identity", "Scanned", "Stretch"]

# (size, mtime_ns, ctime_ns, inode), as the file system gave them.
Identity = tuple[int, int, int, int]


class Scanned(NamedTuple):
    """An entry of L, and its numbers."""

    entry: Entry
    identity: Identity


class Stretch(NamedTuple):
    """Neighbours in L, all files or all links: column by column, which costs a fraction of an object each."""

    kind: int
    paths: list[str]
    contents: list[bytes]
    executables: list[bool]
    sizes: list[int]
    mtimes_ns: list[int]
    ctimes_ns: list[int]
    inodes: list[int]

    @classmethod
    def of_one(cls, entry: Entry, identity: Identity) -> Stretch:
        """A single entry."""
        path, kind, content, executable, *_ = entry
        size, mtime_ns, ctime_ns, inode = identity
        return cls(kind, [path], [content], [executable], [size], [mtime_ns], [ctime_ns], [inode])

    def part(self, begin: int, end: int) -> Stretch:
        """Those from ``begin`` to before ``end``."""
        own = slice(begin, end)
        return Stretch(
            self.kind,
            self.paths[own],
            self.contents[own],
            self.executables[own],
            self.sizes[own],
            self.mtimes_ns[own],
            self.ctimes_ns[own],
            self.inodes[own],
        )

    def entries(self) -> Iterator[Entry]:
        """The entries; a link's have no size and no time."""
        kind = self.kind
        _, paths, contents, executables, sizes, mtimes_ns, _, _ = self
        for path, content, executable, size, mtime_ns in zip(
            paths, contents, executables, sizes, mtimes_ns, strict=True
        ):
            if kind == FILE:
                yield Entry(path, kind, content, executable, size, mtime_ns)
            else:
                yield Entry(path, kind, content, False, 0, 0)

    def scanned(self) -> Iterator[Scanned]:
        """The entries with their numbers."""
        identities = zip(self.sizes, self.mtimes_ns, self.ctimes_ns, self.inodes, strict=True)
        return map(Scanned, self.entries(), identities)

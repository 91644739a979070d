"""What a file system cannot hold is not a difference.

A memory stick has no executable bits and no links. Taken as it is, L would
say that every program lost its bit and every link was deleted. So the bit of
a file is what C says, else R; and a link that R has counts as being in L.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from protocol.manifest import FILE, LINK, Entry
from protocol.paths import sort_key
from protocol.tree.fs import Capabilities

__all__ = ["supply_lacking"]


def supply_lacking(
    local: Iterable[Entry], cached: Iterable[Entry], remote: Iterable[Entry], capabilities: Capabilities
) -> Iterator[Entry]:
    """``local`` with what its file system cannot hold taken from the others; all in canonical order.

    ``local`` itself where nothing is lacking. A link that is supplied has
    size and mtime 0; the user should be told of it.
    """
    if capabilities.executable_bit and capabilities.symlinks:
        yield from local
        return
    known, newest = _Reader(cached), _Reader(remote)
    for entry in local:
        key = sort_key(entry.path)
        yield from _links_before(newest, key, capabilities)
        before, after = known.at(key), newest.at(key)
        if not capabilities.executable_bit and entry.kind == FILE:
            source = before if before is not None and before.kind == FILE else after
            executable = source is not None and source.kind == FILE and source.executable
            entry = entry._replace(executable=executable)  # noqa: PLW2901 the one that goes on
        yield entry
    yield from _links_before(newest, None, capabilities)


def _links_before(remote: _Reader, key: str | None, capabilities: Capabilities) -> Iterator[Entry]:
    for entry in remote.before(key):
        if entry.kind == LINK and not capabilities.symlinks:
            yield Entry(entry.path, LINK, entry.content, False, 0, 0)


class _Reader:
    """Entries read up to a key."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = iter(entries)
        self._next: Entry | None = next(self._entries, None)

    def before(self, key: str | None) -> Iterator[Entry]:
        """The entries that stand before ``key``; None: all that are left."""
        while self._next is not None and (key is None or sort_key(self._next.path) < key):
            entry, self._next = self._next, next(self._entries, None)
            yield entry

    def at(self, key: str) -> Entry | None:
        """The entry at ``key``, if there is one; those before it are dropped."""
        for _ in self.before(key):
            pass
        found = self._next
        if found is None or sort_key(found.path) != key:
            return None
        self._next = next(self._entries, None)
        return found

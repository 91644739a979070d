"""Small trees for the tests of core: made by hand, compared as plain dictionaries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from protocol.manifest import FILE, LINK, Entry

Tree = dict[str, Entry]


def file(path: str, text: str = "x", *, executable: bool = False, who: str = "", seq: int = 0) -> Entry:
    """A file entry holding ``text``."""
    raw = text.encode()
    return Entry(
        path, FILE, hashlib.sha256(raw).digest(), executable, len(raw), 1_700_000_000_000_000_000, who, seq
    )


def link(path: str, target: str, *, who: str = "", seq: int = 0) -> Entry:
    """A link entry."""
    return Entry(path, LINK, target.encode(), False, len(target), 0, who, seq)


def tree(*entries: Entry | None) -> Tree:
    """Entries as a dictionary; None is left out."""
    return {entry.path: entry for entry in entries if entry is not None}


def in_order(entries: Tree | Iterable[Entry]) -> list[Entry]:
    """Entries sorted by path, component by component: written without the product's sort key."""
    found = entries.values() if isinstance(entries, dict) else entries
    return sorted(found, key=lambda entry: entry.path.split("/"))


def versions(entries: Iterable[Entry]) -> dict[str, tuple[int, bytes, bool]]:
    """Path to what equality compares."""
    return {e.path: (e.kind, e.content, e.executable) for e in entries}

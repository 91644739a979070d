"""The stat index carried from one snapshot to the next, against a dictionary."""

from __future__ import annotations

import random

from dsg_remote_agent.storage.place import next_index
from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex
from protocol.manifest import FILE, Entry, Manifest
from protocol.paths import sort_key

SEQ = 7


def manifest(entries: dict[str, int]) -> Manifest:
    """Paths with the snapshot that brought each."""
    made = [Entry(path, FILE, bytes(32), False, 1, 1, "x", seq) for path, seq in entries.items()]
    return Manifest.from_entries(sorted(made, key=lambda entry: sort_key(entry.path)))


def test_rows_follow_their_paths(rng: random.Random) -> None:
    names = [f"{folder}{name}" for folder in ("", "a/", "a.b/", "b/c/") for name in ("x", "y", "z", "z.txt")]
    for _ in range(400):
        base = {name: rng.randrange(1, SEQ) for name in names if rng.random() < 0.6}
        new = {name: seq for name, seq in base.items() if rng.random() < 0.7}
        new |= {name: SEQ for name in names if rng.random() < 0.3}
        rows = {path: IndexRow(1, number, 2, 3) for number, path in enumerate(sorted(base, key=sort_key), 1)}
        index = StatIndex()
        for row in rows.values():
            index.append(row)
        found = next_index(manifest(base), index, manifest(new), SEQ)
        expected = [UNKNOWN if new[path] == SEQ else rows[path] for path in sorted(new, key=sort_key)]
        assert list(found) == expected

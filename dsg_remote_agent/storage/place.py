"""One directory repository: its tree and what its parts need to know about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import field, frozen

from dsg_remote_agent.storage.chain import Chain, Head
from dsg_remote_agent.storage.layout import STAGING, Marker, manifest_path, stands
from dsg_remote_agent.storage.manifests import damaged, inflate_blocks, read_blocks
from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex
from protocol.manifest import Entry, Manifest
from protocol.paths import sort_key
from protocol.records import SnapshotRecord
from protocol.transaction import Failpoints
from protocol.tree.fs import TreeFS

__all__ = ["Place", "RowsByPath", "staged_manifest"]


@frozen
class Place:
    """A repository's tree, its marker, and what was handed in: clock, failpoints, the machine's name.

    ``shown`` is the repository's path for messages.
    """

    tree: TreeFS
    marker: Marker
    shown: str
    now: Callable[[], int]
    failpoints: Failpoints
    machine: str
    chain: Chain = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "chain", Chain(self.tree, self.marker, self.shown))

    def stored_manifest(self, head: Head, seq: int) -> str:
        """Where the manifest of a snapshot lies: that of an unapplied head may still be in staging."""
        path = manifest_path(seq)
        if head.unapplied and seq == head.seq:
            staged = staged_manifest(head.record.txid)
            for candidate in (path, staged):
                if stands(self.tree, candidate):
                    return candidate
        return path

    def manifest(self, head: Head, seq: int) -> Manifest:
        """The manifest of a snapshot; IntegrityError when it is missing or damaged."""
        record = head.record if seq == head.seq else self.chain.at(head, seq)[1]
        return inflate_blocks(self.manifest_blocks(head, seq), record.manifest, seq, self.shown)

    def manifest_blocks(self, head: Head, seq: int) -> Iterator[bytes]:
        """The same, compressed as it lies there."""
        # The second time because it may be published while we look: it has moved to its place.
        for path in (self.stored_manifest(head, seq), manifest_path(seq)):
            try:
                yield from read_blocks(self.tree, path, self.shown)
                return
            except FileNotFoundError:
                continue
        raise damaged(self.shown, manifest_path(seq), "it is missing")

    def published(self, record: SnapshotRecord) -> Manifest:
        """The manifest of a snapshot from its own place; FileNotFoundError when it is not there."""
        blocks = read_blocks(self.tree, manifest_path(record.seq), self.shown)
        return inflate_blocks(blocks, record.manifest, record.seq, self.shown)

    def index(self, head: Head, manifest: Manifest) -> StatIndex:
        """The stat index for the head's ``manifest``.

        Of an unapplied head: the rows of the snapshot before it for what the
        two have in common, as its own index is written when it is applied.
        """
        index = StatIndex.load_any(self.tree)
        if index is not None and index[0] == head.digest and len(index[1]) == len(manifest):
            return index[1]
        if index is None or not head.unapplied or index[0] != head.record.parent:
            return StatIndex.unknown(len(manifest))
        base = self.manifest(head, head.seq - 1)
        if len(base) != len(index[1]):
            return StatIndex.unknown(len(manifest))
        rows = RowsByPath(zip(base, index[1], strict=True))
        made = StatIndex()
        for entry in manifest:
            row = rows.at(entry.path, sort_key(entry.path))
            made.append(row if entry.seq != head.seq else UNKNOWN)
        return made


class RowsByPath:
    """Base entries with their rows, looked up in ascending order of path."""

    def __init__(self, pairs: Iterator[tuple[Entry, IndexRow]]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def at(self, path: str, key: str) -> IndexRow:
        while self._next is not None and self._next[0].path != path and sort_key(self._next[0].path) < key:
            self._next = next(self._pairs, None)
        if self._next is not None and self._next[0].path == path:
            row = self._next[1]
            self._next = next(self._pairs, None)
            return row
        return UNKNOWN


def staged_manifest(txid: str) -> str:
    """Where a transaction keeps its manifest until it is published."""
    return f"{STAGING}/{txid}/manifest"

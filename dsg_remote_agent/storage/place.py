"""One directory repository: its tree and what its parts need to know about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import field, frozen

from dsg_remote_agent.storage.chain import Chain, Head
from dsg_remote_agent.storage.layout import STAGING, Marker, manifest_path, stands
from dsg_remote_agent.storage.manifests import damaged, inflate_blocks, read_blocks
from protocol.manifest import Manifest
from protocol.records import SnapshotRecord
from protocol.transaction import Failpoints
from protocol.tree.fs import TreeFS

__all__ = ["Place"]


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


def staged_manifest(txid: str) -> str:
    """Where a transaction keeps its manifest until it is published."""
    return f"{STAGING}/{txid}/manifest"

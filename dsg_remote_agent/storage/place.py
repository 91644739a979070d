"""One directory repository: its tree and what its parts need to know about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from dsg_remote_agent.storage.chain import Chain, Head
from dsg_remote_agent.storage.layout import STAGING, Marker, manifest_path, stands
from dsg_remote_agent.storage.manifests import damaged, inflate_blocks, read_blocks
from dsg_remote_agent.storage.statindex import UNKNOWN, StatIndex
from protocol.errors import IntegrityError
from protocol.manifest import Manifest
from protocol.paths import sort_key
from protocol.transaction import Failpoints
from protocol.tree.fs import TreeFS
from protocol.value import Value

__all__ = ["Place", "next_index", "staged_manifest"]


class Place(Value):
    """A repository's tree, its marker, and what was handed in: clock, failpoints, the machine's name.

    ``shown`` is the repository's path for messages; ``outer`` the tree whose
    ``.dsg`` holds what changes outside of snapshots (lock, stat index), when
    that is not ``tree`` itself.
    """

    tree: TreeFS
    marker: Marker
    shown: str
    now: Callable[[], int]
    failpoints: Failpoints
    machine: str
    outer: TreeFS | None = None

    @property
    def area(self) -> TreeFS:
        """The tree whose ``.dsg`` holds lock and stat index."""
        return self.outer or self.tree

    @cached_property
    def chain(self) -> Chain:
        return Chain(self.tree, self.marker, self.shown)

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

    def index(self, head: Head, manifest: Manifest) -> StatIndex:
        """The stat index for the head's ``manifest``.

        The stored one may still be that of the snapshot before: its rows count
        for what the two have in common.
        """
        found = StatIndex.load(self.tree, self.outer)
        if found is not None and found[0] == head.digest and len(found[1]) == len(manifest):
            return found[1]
        if found is not None and found[0] == head.record.parent:
            try:
                base = self.manifest(head, head.seq - 1)
            except (IntegrityError, OSError):
                return StatIndex.unknown(len(manifest))
            if len(base) == len(found[1]):
                return next_index(base, found[1], manifest, head.seq)
        return StatIndex.unknown(len(manifest))


def next_index(base: Manifest, index: StatIndex, new: Manifest, seq: int) -> StatIndex:
    """The index for ``new``: ``index``'s rows, unknown for what snapshot ``seq`` brought."""
    made = StatIndex()
    older = iter(base)
    was = next(older, None)
    start = at = 0  # of the rows that are taken over next, and of the row of ``was``
    for entry in new:
        path = entry[0]
        if was is not None and was[0] == path and entry[7] != seq:
            was, at = next(older, None), at + 1
            continue
        made.extend(index, start, at)
        if was is not None and was[0] != path:
            key = sort_key(path)
            while was is not None and was[0] != path and sort_key(was[0]) < key:
                was, at = next(older, None), at + 1
        start = at
        if was is not None and was[0] == path:
            was, at = next(older, None), at + 1
            if entry[7] != seq:
                continue
            start = at
        made.append(UNKNOWN)
    made.extend(index, start, at)
    return made


def staged_manifest(txid: str) -> str:
    """Where a transaction keeps its manifest until it is published."""
    return f"{STAGING}/{txid}/manifest"

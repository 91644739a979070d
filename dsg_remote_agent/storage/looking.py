"""The comparison of a repository's tree with its head, before a transaction begins and at its begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dsg_remote_agent.storage.base import Notice
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.outside import Seen, examine
from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.statindex import file_clock
from protocol.manifest import Manifest
from protocol.value import Value

__all__ = ["Look", "keep_index", "look_ahead", "look_closely"]


class _MustReadError(Exception):
    """A look that was to be by stat alone met a file that must be read."""


class Look(Value):
    """A comparison of the tree with the head, whose record has the digest ``head``."""

    head: str
    manifest: Manifest
    seen: Seen


def look_ahead(place: Place, tick: Callable[[], None]) -> Look | None:
    """Compare by stat alone, without the lock; None when that does not do.

    What must be read is read under the lock, where nobody else does the same.
    ``tick`` is called now and then, and may raise.
    """
    head = place.chain.head()
    manifest = place.manifest(head, head.seq)
    index = place.index(head, manifest)
    # Otherwise the index may be the next snapshot's already, and tell nothing of this one.
    if head.unapplied or place.chain.head().digest != head.digest:
        return None

    def give_up() -> int:
        raise _MustReadError

    try:
        seen = examine(place.tree, manifest, index, note=lambda _: None, clock=give_up, tick=tick)
    except _MustReadError:
        return None
    return Look(head.digest, manifest, seen)


def look_closely(place: Place, head: Head, notice: Notice) -> Look:
    """Compare, and read what stat alone does not settle; under the lock."""
    manifest = place.manifest(head, head.seq)
    index = place.index(head, manifest)
    notice("examining")
    seen = examine(place.tree, manifest, index, note=notice, clock=partial(file_clock, place.area))
    return Look(head.digest, manifest, seen)


def keep_index(place: Place, look: Look) -> int:
    """Save what a look has learnt; the file system's time from which on its index knows of no edit."""
    seen = look.seen
    if seen.clock_ns is None:
        return file_clock(place.area)
    seen.index.settled(place.tree, seen.clock_ns).save(place.tree, look.head, place.outer)
    return seen.clock_ns

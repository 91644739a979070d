"""Making the clone what the new manifest says: nobody else uses it, and a crash leaves nothing of it.

Deletions come before creations, so that a file can become a folder and ``A``
can become ``a``. A large file that is replaced by another version of itself is
changed in place, block by block: what stays the same is still shared with the
snapshots that hold the older version.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from protocol.errors import OutsideChangeError, RemoteProtocolError
from protocol.manifest import FILE, Entry
from protocol.paths import escape
from protocol.tree.change import Staged, Staging
from protocol.tree.folders import Folders
from protocol.tree.fs import Kind, Stat
from protocol.tree.posix import PosixTree
from protocol.tree.report import HeldBackError, Report, Unexpected

__all__ = ["PATCH_BYTES", "Placing", "place_all"]

PATCH_BYTES = 1 << 20  # a smaller file is replaced: its blocks are hardly worth the comparison
_BLOCK = 128 * 1024  # the largest record of pools without large blocks; a multiple of smaller ones


class Placing(NamedTuple):
    """What is to become of one path: ``was`` there, and ``entry`` with its ``staged`` content is to be.

    ``entry`` None: the path goes. ``staged`` None: the content stays, bit or
    time change.
    """

    path: str
    was: Entry | None
    entry: Entry | None
    staged: Staged | None


def place_all(tree: PosixTree, staging: Staging, placings: Iterable[Placing]) -> list[tuple[str, Stat]]:
    """Carry the changes out (canonical order; may be iterated twice); the stat of each path placed.

    OutsideChangeError when somebody's own file stands where a new one goes. Any
    error leaves the tree as something in between.

    What stands at a path is not compared with ``was``. It is what the snapshot
    holds that the clone was made of, and that is the manifest's: ``begin``
    found it so, or refused, and nobody is led to the clone before the decision.
    An edit of the old head meanwhile is not in the clone: the commit finds it
    there, under the freeze, and refuses.
    """
    run = _Run(tree, staging)
    run.remove(placings)
    return list(run.put(placings))


class _Run:
    def __init__(self, tree: PosixTree, staging: Staging) -> None:
        self._tree = tree
        self._staging = staging
        self._copies = 0
        self._folders = Folders(tree, Report(Unexpected.KEEP), lambda _: None)

    def remove(self, placings: Iterable[Placing]) -> None:
        for placing in placings:
            if placing.entry is not None:
                self._folders.note_needed(placing.path)
            else:
                self._folders.note_deleted(placing.path)
                self._tree.unlink(placing.path)
        self._folders.remove_emptied()

    def put(self, placings: Iterable[Placing]) -> Iterator[tuple[str, Stat]]:
        for placing in placings:
            if placing.entry is not None:
                yield placing.path, self._put(placing, placing.entry)

    def _put(self, placing: Placing, entry: Entry) -> Stat:
        path, staged = placing.path, placing.staged
        if staged is None:
            return self._touch(placing, entry)
        slot = self._staging.path(staged.number)
        if placing.was is not None and placing.was.kind == FILE == entry.kind and entry.size >= PATCH_BYTES:
            patched = self._patch(slot, path, entry)
            if patched is not None:
                return patched
        try:
            self._folders.make_for(path)
        except HeldBackError:
            raise _in_the_way(path) from None
        if placing.was is None:
            self._clear_hollow(path)
        self._tree.move(slot, path)
        return self._tree.stat(path)

    def _clear_hollow(self, path: str) -> None:
        """A new file may take the place of folders that hold no file; never that of anything else."""
        try:
            found = self._tree.stat(path)
        except FileNotFoundError:
            return
        if found.kind is not Kind.FOLDER or not self._folders.remove_if_hollow(path):
            raise _in_the_way(path)

    def _touch(self, placing: Placing, entry: Entry) -> Stat:
        was = placing.was
        if was is None or was.kind != FILE or entry.kind != FILE or was.content != entry.content:
            raise RemoteProtocolError(f"the content of {placing.path!r} was not sent")
        found = self._tree.stat(placing.path)
        if not _is_ours(found):
            # Its mode and time are its owner's to set, or another name's too: a file of our own instead.
            self._copies -= 1  # numbers from 0 on are the client's
            staged = self._staging.copy(
                self._copies, placing.path, None, executable=entry.executable, mtime_ns=entry.mtime_ns
            )
            self._tree.move(self._staging.path(staged.number), placing.path)
            return self._tree.stat(placing.path)
        opened = self._tree.open_update(placing.path)
        try:
            return opened.finish(entry.size, executable=entry.executable, mtime_ns=entry.mtime_ns)
        finally:
            opened.close()

    def _patch(self, slot: str, path: str, entry: Entry) -> Stat | None:
        """Bring what differs into the old file; None when that is not ours to write to."""
        old = self._tree.stat(path)
        if not _is_ours(old):
            return None
        target = self._tree.open_update(path)
        try:
            source = self._tree.open_read(slot)
            try:
                at = 0
                while piece := source.read(_BLOCK):
                    if at >= old.size or target.read_at(len(piece), at) != piece:
                        target.write_at(piece, at)
                    at += len(piece)
            finally:
                source.close()
            done = target.finish(entry.size, executable=entry.executable, mtime_ns=entry.mtime_ns)
        finally:
            target.close()
        self._tree.unlink(slot)
        return done


def _in_the_way(path: str) -> OutsideChangeError:
    return OutsideChangeError(
        f"{escape(path)} is new to the repository, and something stands in its place on the server",
        hint="move it away there, or take it in with 'dsg adopt'",
        facts={"paths": [path], "more": 0},
    )


def _is_ours(stat: Stat) -> bool:
    return stat.kind is Kind.FILE and stat.uid == os.geteuid() and stat.nlink == 1

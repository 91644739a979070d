"""Reading the files of a snapshot: from the head where they still are, else from the snapshot itself."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator

from dsg_remote_agent.storage.base import Source, Wanted
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.content import open_sized, read_if
from dsg_remote_agent.storage.history import LiveRows
from dsg_remote_agent.storage.statindex import row_if
from dsg_remote_agent.storage.stock import missing
from dsg_remote_agent.storage.zfs.command import Trouble, failure
from dsg_remote_agent.storage.zfs.mounts import destroy, open_root, open_tree
from dsg_remote_agent.storage.zfs.names import reader_name, snapshot
from dsg_remote_agent.storage.zfs.pruning import stock_of
from dsg_remote_agent.storage.zfs.site import Site, View
from protocol.errors import DsgError, IntegrityError
from protocol.manifest import Manifest
from protocol.tree.fs import ReadFile
from protocol.tree.posix import PosixTree

__all__ = ["SnapshotFiles"]

_TRIES = 3


class SnapshotFiles:
    """See :class:`dsg_remote_agent.storage.base.SnapshotReader`.

    Needs no lock: an open descriptor keeps a generation from being unmounted,
    and so from being destroyed.
    """

    def __init__(self, site: Site, seq: int | None) -> None:
        self._site = site
        survey, self._view, self._head = site.head()
        self._snapshot: Snapshot | None = None
        try:
            newest = self._head.seq
            if seq is not None and seq < newest:
                error = missing(site.shown, seq, newest, stock_of(site, survey, newest))
                if error is not None:
                    raise error
            self.raw, self.record = self._view.place.chain.wanted(self._head, seq)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._view.close()
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None

    def manifest(self) -> Manifest:
        return self._view.place.manifest(self._head, self.record.seq)

    def manifest_blocks(self) -> Iterator[bytes]:
        return self._view.place.manifest_blocks(self._head, self.record.seq)

    def sources(self, wanted: Iterable[Wanted]) -> Iterator[Source]:
        live = _Live(self._view, self._head)
        for one in wanted:
            # What stands at a path in the head is often what stood there long ago.
            yield Source(one, live.open(one) or self._from_snapshot(one))

    def _from_snapshot(self, wanted: Wanted) -> ReadFile | None:
        if self._snapshot is None:
            self._snapshot = Snapshot.open(self._site, self.record.seq)
        return open_sized(self._snapshot.tree, wanted.path, wanted)


class _Live:
    """The head's own files, for paths in canonical order."""

    def __init__(self, view: View, head: Head) -> None:
        self._tree = view.tree
        self._algorithm = view.place.marker.algorithm
        self._rows = LiveRows(view.place, head)

    def open(self, wanted: Wanted) -> ReadFile | None:
        """The file at the path when it has the wanted content; read to know that unless the index does."""
        row = self._rows.row_of(wanted)
        opened = open_sized(self._tree, wanted.path, wanted)
        if opened is None or (row is not None and row_if(row, opened.stat())):
            return opened
        return read_if(opened, wanted, self._algorithm)


class Snapshot:
    """A snapshot opened to read. Close it."""

    def __init__(self, site: Site, tree: PosixTree, clone: str) -> None:
        self._site = site
        self.tree = tree
        self._clone = clone

    @classmethod
    def open(cls, site: Site, seq: int) -> Snapshot:
        """Snapshot ``seq``, wherever it is by now. IntegrityError when it is nowhere."""
        for left in reversed(range(_TRIES)):
            try:
                survey = site.survey()
                # A snapshot moves to its head by promotion: until then it is an older generation's.
                for generation in (survey.current(), *survey.ancestors()):
                    found = cls._visible(site, generation.mountpoint, seq) or cls._cloned(
                        site, f"{generation.name}@{snapshot(seq)}"
                    )
                    if found is not None:
                        return found
            except (DsgError, OSError):
                if not left:
                    raise
        raise IntegrityError(
            f"{site.shown} has no snapshot {snapshot(seq)} any more",
            hint="its record remains; its files were pruned, or destroyed by an administrator",
            facts={"seq": seq},
        )

    @classmethod
    def _visible(cls, site: Site, mountpoint: str, seq: int) -> Snapshot | None:
        """By way of ``.zfs``, which mounts it for whoever asks; zfs-fuse has none."""
        try:
            fd = os.open(
                f"{mountpoint}/.zfs/snapshot/{snapshot(seq)}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except OSError:
            return None
        tree = open_tree(fd)
        try:
            # A mount that failed shows an empty folder.
            if site.place(tree).chain.head().seq == seq:
                return cls(site, tree, "")
        except (DsgError, OSError):
            pass
        tree.close()
        return None

    @classmethod
    def _cloned(cls, site: Site, origin: str) -> Snapshot | None:
        """By way of a clone of its own, read-only, destroyed at the end or by the next recovery."""
        base = f"{site.dataset}/{reader_name(os.getpid(), secrets.token_hex(4))}"
        own = ("-o", "canmount=noauto", "-o", "readonly=on", "-o", f"dsg:reader={os.getpid()}")
        answer = site.zfs.run("clone", *own, origin, base)
        if answer.trouble is Trouble.MISSING:
            return None
        if not answer.good:
            raise failure(answer, site.shown, f"opening {origin}")
        mountpoint = f"{site.folder}/{base.rpartition('/')[2]}"
        try:
            fd = open_root(site.zfs, base, mountpoint, mounted=False, lock=None, shown=site.shown)
            return cls(site, open_tree(fd), base)
        except BaseException:
            destroy(site.zfs, base, lock=None)
            raise

    def close(self) -> None:
        self.tree.close()
        if self._clone:
            destroy(self._site.zfs, self._clone, lock=None)

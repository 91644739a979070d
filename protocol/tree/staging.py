"""Staging: where the files of one transaction lie before it is decided."""

from __future__ import annotations

import errno
from collections.abc import Callable, Container

from protocol.tree.actions import STAGING, TMP, TRASH, Expected, Staged, check_txid
from protocol.tree.fs import Kind, Stat, TreeFS, WriteFile

__all__ = ["SourceChangedError", "Staging", "remove_all", "sweep"]


class SourceChangedError(OSError):
    """A local file is not, or no longer, what was expected while it was copied (errno ESTALE)."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ESTALE, "the file changed while it was copied", path)


class Staging:
    """The staging folder of transaction ``txid``. What fails leaves only things in it behind."""

    def __init__(self, tree: TreeFS, txid: str) -> None:
        self._tree = tree
        self.folder = f"{STAGING}/{check_txid(txid)}"

    def open(self) -> None:
        """Make the folder (and those it lies in)."""
        self._tree.make_folders(self.folder)

    def path(self, number: int) -> str:
        """Where the staged thing ``number`` lies."""
        return f"{self.folder}/{number}"

    def create(self, number: int) -> WriteFile:
        """A new file to be written; OSError EEXIST when the number is taken."""
        return self._tree.create(f"{self.folder}/{number}")

    def staged(self, number: int, stat: Stat) -> Staged:
        """The value for a finished file, from what :meth:`WriteFile.finish` returned."""
        return Staged(number, Kind.FILE, stat.size, stat.mtime_ns, stat.inode, stat.executable)

    def link(self, number: int, target: str) -> Staged:
        """Make a symbolic link. ``target`` was checked by the caller."""
        path = self.path(number)
        self._tree.symlink(target, path)
        stat = self._tree.stat(path)
        return Staged(number, Kind.LINK, stat.size, stat.mtime_ns, stat.inode, False, target)

    def copy(
        self, number: int, source: str, expected: Expected | None, *, executable: bool, mtime_ns: int | None
    ) -> Staged:
        """Copy a file of the tree, holes kept and blocks shared where possible.

        SourceChangedError when the source is not ``expected`` or changes
        meanwhile; the unfinished copy is removed again.
        """
        reading = self._tree.open_read(source)
        try:
            before = reading.stat()
            if expected is not None and not expected.stands(before):
                raise SourceChangedError(source)
            writing = self.create(number)
            try:
                at = 0
                for offset, length in reading.holes():
                    writing.take(reading, at, offset - at)
                    writing.skip(length)
                    at = offset + length
                writing.take(reading, at, before.size - at)
                if reading.stat()[:5] != before[:5]:
                    raise SourceChangedError(source)
                stat = writing.finish(executable=executable, mtime_ns=mtime_ns)
            except BaseException as error:
                writing.close()
                self._tree.unlink(self.path(number))
                if isinstance(error, OSError) and error.errno == errno.ESTALE:
                    raise SourceChangedError(source) from None
                raise
        finally:
            reading.close()
        return self.staged(number, stat)

    def discard(self) -> None:
        """Remove the folder and all in it; nothing to do when it is gone."""
        remove_all(self._tree, self.folder)


def remove_all(tree: TreeFS, path: str) -> None:
    """Remove a folder and everything below it; nothing to do when it is gone. Links are not followed."""
    try:
        below = list(tree.scan(path))
    except FileNotFoundError:
        return
    for name, stat in below:
        inner = f"{path}/{name}"
        if stat.kind is Kind.FOLDER:
            remove_all(tree, inner)
        else:
            _gone(tree.unlink, inner)
    _gone(tree.rmdir, path)


def _gone(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except FileNotFoundError:
        pass


def sweep(tree: TreeFS, keep: Container[str] = ()) -> list[str]:
    """Remove staging, trash and half-written files that no transaction in ``keep`` owns.

    Only for the holder of the exclusive lock, after the journals are settled.
    Returns what was removed.
    """
    removed = []
    for area in (STAGING, TRASH, TMP):
        try:
            below = list(tree.scan(area))
        except FileNotFoundError:
            continue
        for name, stat in below:
            if name in keep:
                continue
            path = f"{area}/{name}"
            if stat.kind is Kind.FOLDER:
                remove_all(tree, path)
            else:
                _gone(tree.unlink, path)
            removed.append(path)
    return removed

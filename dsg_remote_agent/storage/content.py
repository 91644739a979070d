"""What stands at a path of a tree: its version by reading it, and files that have the content one wants."""

from __future__ import annotations

from dsg_remote_agent.storage.base import Wanted
from protocol.digest import hasher
from protocol.manifest import FILE, LINK, Entry
from protocol.tree.fs import Kind, ReadFile, Stat, TreeFS

__all__ = ["digest_of", "open_sized", "read_if", "version_of"]

_READ_BYTES = 1 << 20


def version_of(
    tree: TreeFS, path: str, stat: Stat, algorithm: str, like: Entry | None
) -> tuple[int, bytes, bool] | None:
    """The version that stands at ``path`` now, by reading it; None for what is neither file nor link.

    Where the file system has no executable bit, it is taken from ``like``.
    """
    if stat.kind is Kind.LINK:
        return LINK, tree.readlink(path).encode("utf-8", "surrogateescape"), False
    if stat.kind is not Kind.FILE:
        return None
    if tree.capabilities.executable_bit:
        executable = stat.executable
    else:
        executable = like is not None and like.kind == FILE and like.executable
    return FILE, digest_of(tree, path, algorithm), executable


def digest_of(tree: TreeFS, path: str, algorithm: str) -> bytes:
    """The raw digest of the file at ``path``."""
    source = tree.open_read(path)
    try:
        return _digest(source, algorithm)
    finally:
        source.close()


def open_sized(tree: TreeFS, path: str, wanted: Wanted) -> ReadFile | None:
    """The file at ``path``, not read yet, when it has the wanted size; PermissionError when we may not."""
    try:
        opened = tree.open_read(path)
    except PermissionError:
        raise
    except OSError:
        return None
    if opened.stat().size == wanted.size:
        return opened
    opened.close()
    return None


def read_if(opened: ReadFile, wanted: Wanted, algorithm: str) -> ReadFile | None:
    """``opened`` again, at its beginning, when reading shows that it has the wanted content; else closed."""
    try:
        if _digest(opened, algorithm) == wanted.content:
            opened.seek(0)
            return opened
    except BaseException:
        opened.close()
        raise
    opened.close()
    return None


def _digest(source: ReadFile, algorithm: str) -> bytes:
    sums = hasher(algorithm)
    while chunk := source.read(_READ_BYTES):
        sums.update(chunk)
    return sums.digest()

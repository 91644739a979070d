"""Opening folders of a tree so that nothing leads out of it.

With openat2 the kernel resolves a whole path beneath the root's descriptor and
refuses every symbolic link; without it the path is walked component by
component with O_NOFOLLOW. Either way the result is a descriptor, and the
operation itself names one component inside it: what happens to the path
meanwhile cannot redirect it.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import lru_cache
from typing import Final

from protocol.tree.syscalls import Syscalls

__all__ = ["AREA", "Beneath", "Folder", "encode", "split"]

AREA: Final = ".dsg"  # DSG's own folder in a tree
_AREA_RAW: Final = AREA.encode()
_IN_AREA: Final = _AREA_RAW + b"/"
_CACHED_FOLDERS = 64
_DOUBTFUL = (b"", b".")  # beginnings of names that need a closer look
# PATH_MAX is 4096 with the final NUL; a longer path is opened in parts.
_PART_BYTES = 4000

_PATH_ONLY = getattr(os, "O_PATH", os.O_RDONLY)
_WALK = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def encode(path: str) -> bytes:
    """The system's bytes of a path; OSError EINVAL for what is not a plain relative path."""
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ), path) from None
    # NUL would end the path early in a C call.
    if b"\0" not in raw:
        if raw[:1] not in _DOUBTFUL and b"/" not in raw:
            return raw
        padded = b"/" + raw + b"/"
        if b"//" not in padded and b"/./" not in padded and b"/../" not in padded:
            return raw
    raise OSError(errno.EINVAL, "not a plain relative path", path)


_encode_folder = lru_cache(1024)(encode)  # operations come in runs within one folder


def split(path: str) -> tuple[bytes, bytes]:
    """(folder, name) of a path, as the system's bytes."""
    folder, slash, name = path.rpartition("/")
    return (_encode_folder(folder) if slash else b""), encode(name)


class Folder:
    """A folder's descriptor, closed when nobody holds it any more.

    Several threads may share one: as long as a thread has the object, the
    number cannot be closed and given to another file.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self, _close=os.close) -> None:  # type: ignore[no-untyped-def]
        if self.fd >= 0:
            _close(self.fd)


class Beneath:
    """Opens the folders beneath one root.

    Descriptors of DSG's own folders are kept for the next time: they take part
    in almost every operation and nobody else moves them. A user's folder is
    opened each time (3 microseconds), so that what is renamed away is never
    written to by its old name.
    """

    def __init__(self, root: Folder, syscalls: Syscalls) -> None:
        self.root = root
        self._open_beneath = syscalls.open_beneath
        self._kept: dict[bytes, Folder] = {}
        self._kept_or_above: set[bytes] = set()

    def open(self, path: bytes) -> Folder:
        """The folder at ``path``, for use as a parent; ENOENT, ENOTDIR, ELOOP as the system says."""
        if not path:
            return self.root
        if path.startswith(_IN_AREA) or path == _AREA_RAW:
            kept = self._kept.get(path)
            # Without links left it was removed behind this object's back, and may exist anew.
            if kept is not None and os.fstat(kept.fd).st_nlink:
                return kept
            opened = Folder(self._open(path, read=False))
            if len(self._kept) >= _CACHED_FOLDERS:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[path] = opened
            above = path
            while above:
                self._kept_or_above.add(above)
                above = above.rpartition(b"/")[0]
            return opened
        return Folder(self._open(path, read=False))

    def open_readable(self, path: bytes) -> Folder:
        """The folder at ``path`` by a descriptor that can be listed and flushed."""
        if not path:
            return Folder(os.open(b".", os.O_RDONLY | _WALK, dir_fd=self.root.fd))
        return Folder(self._open(path, read=True))

    def forget(self, path: bytes) -> None:
        """Drop kept descriptors at and below ``path``, which is there no more."""
        if path not in self._kept_or_above:
            return
        below = path + b"/"
        for kept in list(self._kept):
            if kept == path or kept.startswith(below):
                self._kept.pop(kept, None)

    def close(self) -> None:
        self._kept.clear()

    def _open(self, path: bytes, *, read: bool) -> int:
        if self._open_beneath is None:
            return _walk(self.root.fd, path, read)
        if len(path) <= _PART_BYTES:
            return self._open_beneath(self.root.fd, path, read)
        at = self.root
        while len(path) > _PART_BYTES:
            cut = path.rindex(b"/", 0, _PART_BYTES)
            at = Folder(self._open_beneath(at.fd, path[:cut], False))
            path = path[cut + 1 :]
        return self._open_beneath(at.fd, path, read)


def _walk(root_fd: int, path: bytes, read: bool) -> int:
    names = path.split(b"/")
    fd = root_fd
    try:
        for i, name in enumerate(names):
            flags = os.O_RDONLY if read and i + 1 == len(names) else _PATH_ONLY
            try:
                below = os.open(name, flags | _WALK, dir_fd=fd)
            except NotADirectoryError:
                # A link is ENOTDIR here and ELOOP from openat2: tell it apart the same way.
                if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                raise
            if fd != root_fd:
                os.close(fd)
            fd = below
    except BaseException:
        if fd != root_fd:
            os.close(fd)
        raise
    return fd

"""Open files, locks and stats of a real file system; see :mod:`protocol.tree.fs` for what they promise."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from protocol.tree.fs import Kind, ReadFile, Stat

__all__ = [
    "PosixLock",
    "PosixReadFile",
    "PosixUpdateFile",
    "PosixWriteFile",
    "executable_mode",
    "fsync",
    "stat_of",
]

_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.FOLDER, stat.S_IFLNK: Kind.LINK}
_COPY_BYTES = 16 << 20
_READ_BYTES = 1 << 20
_BEGIN_BYTES = 8 << 20  # written before the system is told to begin writing them out
# What copy_file_range says where it cannot, on one kernel or another.
_CANNOT_COPY = frozenset(
    [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF]
)

_new_stat: Callable[[type[Stat], tuple[Any, ...]], Stat] = tuple.__new__


def stat_of(found: os.stat_result) -> Stat:
    """The system's answer as a Stat."""
    mode = found.st_mode
    return _new_stat(
        Stat,
        (
            _KINDS.get(mode & 0o170000, Kind.OTHER),
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_ino,
            found.st_dev,
            mode & 0o7777,
            found.st_nlink,
            found.st_uid,
        ),
    )


def executable_mode(mode: int, executable: bool) -> int:
    """``mode`` with execution allowed to the owner and whoever may read, or to nobody.

    What may be read came from the umask (or a default ACL) when the file was made.
    """
    mode &= 0o7777
    return mode | 0o100 | (mode & 0o444) >> 2 if executable else mode & ~0o111


def fsync(fd: int) -> None:
    """fsync; a folder on a file system that has no such thing is taken as flushed."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP) and stat.S_ISDIR(os.fstat(fd).st_mode):
            return
        raise


class PosixReadFile:
    """A regular file open for reading."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def fileno(self) -> int:
        return self._fd

    def read(self, size: int, /) -> bytes:
        piece = os.pread(self._fd, size, self._at)
        self._at += len(piece)
        return piece

    def read_at(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def seek(self, offset: int, /) -> None:
        self._at = offset

    def stat(self) -> Stat:
        return stat_of(os.fstat(self._fd))

    def holes(self) -> Iterator[tuple[int, int]]:
        found = os.fstat(self._fd)
        # Asking makes some file systems write out the file first: only where blocks are missing.
        if found.st_blocks * 512 >= found.st_size:
            return
        at = 0
        try:
            while at < found.st_size:
                hole = os.lseek(self._fd, at, os.SEEK_HOLE)
                if hole >= found.st_size:
                    return
                try:
                    at = os.lseek(self._fd, hole, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    at = found.st_size  # a hole up to the end
                yield hole, min(at, found.st_size) - hole
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class PosixWriteFile:
    """A file made just now; ``always_flush`` where no later flush of everything can be trusted.

    ``begin_flush``: see :class:`~protocol.tree.syscalls.Syscalls`. A large file
    goes to the disk while its rest is still on its way.
    """

    def __init__(
        self, fd: int, always_flush: bool, begin_flush: Callable[[int, int, int], None] | None = None
    ) -> None:
        self._fd = fd
        self._size = 0
        self._begun = 0
        self._begin_flush = begin_flush
        self._hole_at_end = False
        self._always_flush = always_flush

    def write(self, data: bytes | memoryview, /) -> None:
        done = os.write(self._fd, data)
        self._size += done
        self._hole_at_end = False
        if done < len(data):
            rest = memoryview(data)
            while done < len(rest):
                more = os.write(self._fd, rest[done:])
                done += more
                self._size += more
        if self._size - self._begun >= _BEGIN_BYTES and self._begin_flush is not None:
            self._begin_flush(self._fd, self._begun, self._size - self._begun)
            self._begun = self._size

    def skip(self, length: int, /) -> None:
        if length > 0:
            self._size = os.lseek(self._fd, length, os.SEEK_CUR)
            self._hole_at_end = True

    def take(self, source: ReadFile, offset: int, length: int, /) -> None:
        end = offset + length
        if isinstance(source, PosixReadFile) and hasattr(os, "copy_file_range"):
            offset = self._take_range(source.fileno(), offset, end)
        source.seek(offset)
        while offset < end:
            piece = source.read(min(_READ_BYTES, end - offset))
            if not piece:
                raise OSError(errno.ESTALE, "the file became shorter while it was copied")
            self.write(piece)
            offset += len(piece)

    def _take_range(self, source: int, offset: int, end: int) -> int:
        while offset < end:
            try:
                copied = os.copy_file_range(source, self._fd, min(_COPY_BYTES, end - offset), offset)
            except OSError as error:
                if error.errno in _CANNOT_COPY:
                    break
                raise
            if not copied:
                break  # the end of the file, or a file system that answers 0 for "cannot"
            offset += copied
            self._size += copied
            self._hole_at_end = False
        return offset

    def finish(self, *, executable: bool, mtime_ns: int | None, durable: bool = False) -> Stat:
        fd = self._fd
        if self._hole_at_end:
            os.ftruncate(fd, self._size)
        if executable:
            mode = os.fstat(fd).st_mode & 0o7777
            wanted = executable_mode(mode, True)
            if wanted != mode:
                os.fchmod(fd, wanted)
        if mtime_ns is not None:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        if durable or self._always_flush:
            fsync(fd)
        found = stat_of(os.fstat(fd))
        self.close()
        return found

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class PosixUpdateFile:
    """A file that is changed in place, where parts of it are shared with older versions."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def stat(self) -> Stat:
        return stat_of(os.fstat(self._fd))

    def read_at(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def write_at(self, data: bytes, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        rest = memoryview(data)
        while rest:
            done = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[done:], offset + done

    def finish(self, size: int, *, executable: bool, mtime_ns: int) -> Stat:
        """Cut to ``size``, set executable bit and mtime; the stat after it. Not flushed."""
        found = os.fstat(self._fd)
        if found.st_size != size:
            os.ftruncate(self._fd, size)
        mode = found.st_mode & 0o7777
        wanted = executable_mode(mode, executable)
        if wanted != mode:
            os.fchmod(self._fd, wanted)
        os.utime(self._fd, ns=(mtime_ns, mtime_ns))
        return self.stat()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class PosixLock:
    """A flock held by this process, and by every child that was given its descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, fd: int, shared: bool) -> PosixLock | None:
        """Lock ``fd``, which this object then owns; None (and ``fd`` closed) when another holds it."""
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    def fileno(self) -> int:
        return self._fd

    def release(self) -> None:
        # Closing would not unlock while a child still holds the descriptor, which is wanted.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.release()

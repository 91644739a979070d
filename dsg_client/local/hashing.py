"""Reading files for their digests: whole, once, in a few threads, and noticing when one changes meanwhile.

Small files are read in batches (one task for many files costs less than a
task each); large ones are batches of their own and so are hashed side by
side. hashlib lets go of the interpreter's lock for anything above 2 KiB.
"""

from __future__ import annotations

import errno
import os
import stat as stat_bits
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from protocol.digest import Hasher, hasher

__all__ = ["FileRead", "HashPool", "OpenFolder", "Stopped", "hash_descriptor"]

READ_SIZE = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_ZEROS = memoryview(bytes(READ_SIZE))

# A batch ends at whichever comes first. Few folders, because each keeps a descriptor open (macOS gives 256).
_BATCH_FILES = 48
_BATCH_BYTES = 4 << 20
_BATCH_FOLDERS = 8
_BATCHES_IN_FLIGHT = 8
# Below this many bytes a pool would cost more than it saves.
_INLINE_BYTES = 2 << 20


class OpenFolder:
    """A descriptor of a folder, closed when the last user lets go of it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class FileRead:
    """One file to read, and then what was found. Filled in by a pool's thread; read once ``done``."""

    __slots__ = (
        "changed",
        "digest",
        "done",
        "error",
        "executable",
        "folder",
        "identity",
        "name",
        "path",
        "read_ns",
    )

    def __init__(self, folder: OpenFolder, name: str, path: str, identity: tuple[int, int, int, int]) -> None:
        self.folder: OpenFolder | None = folder
        self.name = name
        self.path = path
        self.identity = identity  # (size, mtime_ns, ctime_ns, inode); afterwards: of the file that was read
        self.executable = False
        self.digest = b""
        self.read_ns = 0  # monotonic, before the first byte was read
        self.error: OSError | None = None
        self.changed = ""  # how it changed while it was read
        self.done: Future[None] | None = None


def identity_of(found: os.stat_result) -> tuple[int, int, int, int]:
    """What a file's index row is compared by."""
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class Stopped(Exception):
    """The scan was given up."""


class HashPool:
    """Collects files into batches and hashes them in threads. One scan's; not shared."""

    def __init__(self, algorithm: str, threads: int) -> None:
        """Raises ValueError when the algorithm is unknown or not installed."""
        hasher(algorithm)
        self._algorithm = algorithm
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._stopped = False
        self._batch: list[FileRead] = []
        self._batch_bytes = 0
        self._batch_folders = 0
        self._flying: list[Future[None]] = []
        self._inline_left = _INLINE_BYTES
        #: Bytes read so far; for showing progress (another thread may be adding to it).
        self.bytes_read = 0

    def add(self, file: FileRead) -> None:
        """Have ``file`` read sooner or later; :meth:`wait` makes sure. Blocks while much is in flight."""
        if not self._batch or self._batch[-1].folder is not file.folder:
            self._batch_folders += 1
        self._batch.append(file)
        self._batch_bytes += file.identity[0]
        if (
            len(self._batch) >= _BATCH_FILES
            or self._batch_bytes >= _BATCH_BYTES
            or self._batch_folders >= _BATCH_FOLDERS
        ):
            self.flush()

    def flush(self) -> None:
        """Start what has been collected."""
        batch, size = self._batch, self._batch_bytes
        if not batch:
            return
        self._batch, self._batch_bytes, self._batch_folders = [], 0, 0
        if self._pool is None:
            if size + len(batch) * 4096 <= self._inline_left:
                self._inline_left -= size + len(batch) * 4096
                future: Future[None] = Future()
                self._read_batch(batch)
                future.set_result(None)
                for file in batch:
                    file.done = future
                return
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="hash")
        future = self._pool.submit(self._read_batch, batch)
        for file in batch:
            file.done = future
        self._flying = [f for f in self._flying if not f.done()]
        self._flying.append(future)
        if len(self._flying) > _BATCHES_IN_FLIGHT:
            self._flying.pop(0).result()

    def wait(self, file: FileRead) -> None:
        """Return when ``file`` has been read."""
        if file.done is None:
            self.flush()
        assert file.done is not None
        file.done.result()

    def stop(self) -> None:
        """Give up soon what is being read, at whatever file; to be called from any thread."""
        self._stopped = True

    def check(self) -> None:
        """Stopped when the reading was given up: a file may then look read and be not."""
        if self._stopped:
            raise Stopped

    def close(self) -> None:
        """Stop soon, dropping what has not been read; returns when no thread is left."""
        self._stopped = True
        self._batch = []
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _read_batch(self, batch: list[FileRead]) -> None:
        for file in batch:
            if self._stopped:
                return
            try:
                self._read(file)
            except Stopped:
                return
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                    file.changed = "vanished or became something else"
                else:
                    file.error = error
            finally:
                file.folder = None

    def _read(self, file: FileRead) -> None:
        assert file.folder is not None
        fd = os.open(file.name, _FLAGS, dir_fd=file.folder.fd)
        try:
            before = os.fstat(fd)
            if not stat_bits.S_ISREG(before.st_mode):
                file.changed = "is no longer a file"
                return
            file.read_ns = time.monotonic_ns()
            h = hasher(self._algorithm)
            length = hash_descriptor(fd, before, h, self._count)
            after = os.fstat(fd)
            file.identity = identity_of(after)
            if identity_of(before) != file.identity or length != before.st_size:
                file.changed = "was written to"
                return
            file.executable = bool(after.st_mode & 0o100)
            file.digest = h.digest()
        finally:
            os.close(fd)

    def _count(self, length: int) -> None:
        self.check()
        self.bytes_read += length


def hash_descriptor(fd: int, found: os.stat_result, h: Hasher, count: Callable[[int], None]) -> int:
    """Feed the file behind ``fd`` to ``h``; returns its length.

    ``count`` is called with the length of each piece; it may raise. Holes are
    not read. Raises OSError.
    """
    size = found.st_size
    if size < READ_SIZE:
        # One byte more than there should be shows a file that grew.
        piece = os.read(fd, size + 1)
        if len(piece) == size:
            h.update(piece)
            count(size)
            return size
        os.lseek(fd, 0, os.SEEK_SET)
    length = 0
    buffer = bytearray(READ_SIZE)
    view = memoryview(buffer)
    for start, end, hole in _extents(fd, found):
        offset = start
        if hole:
            while offset < end:
                step = min(READ_SIZE, end - offset)
                h.update(_ZEROS[:step])
                count(step)
                offset += step
                length += step
            continue
        os.lseek(fd, offset, os.SEEK_SET)
        while offset < end:
            got = os.readv(fd, [view[: min(READ_SIZE, end - offset)]])
            if not got:
                return length
            h.update(view[:got])
            count(got)
            offset += got
            length += got
    # Beyond the size it had when it was opened.
    os.lseek(fd, size, os.SEEK_SET)
    return length + len(os.read(fd, 1))


def _extents(fd: int, found: os.stat_result) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is a hole), covering the file."""
    size = found.st_size
    if found.st_blocks * 512 >= size or not hasattr(os, "SEEK_DATA"):
        yield (0, size, False)
        return
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                yield (offset, size, True)
                return
            # A file system that cannot tell: read it all.
            yield (offset, size, False)
            return
        start = min(start, size)
        if start > offset:
            yield (offset, start, True)
        if start < size:
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            yield (start, end, False)
            start = end
        offset = start

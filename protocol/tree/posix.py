"""A tree on a real file system, every operation confined to it.

``PosixTree`` holds a descriptor of the root; each operation opens the parent
folder beneath it (:mod:`protocol.tree.confine`) and names the last component.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from operator import attrgetter, itemgetter

from protocol.tree.confine import Beneath, Folder, encode, split
from protocol.tree.files import (
    PosixLock,
    PosixReadFile,
    PosixUpdateFile,
    PosixWriteFile,
    executable_mode,
    fsync,
    stat_of,
)
from protocol.tree.fs import GLANCE_NAMES, Capabilities, Glance, Kind, Stat
from protocol.tree.probe import probe
from protocol.tree.syscalls import Syscalls, system

__all__ = ["PosixTree"]

_OPEN_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_UPDATE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_SUPPORTED = frozenset([errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP])
# Names from os.scandir are decoded by the locale's encoding; ours are UTF-8 everywhere.
_name_of = itemgetter(0)
_NATIVE_UTF8 = sys.getfilesystemencoding().lower() in ("utf-8", "utf8")
_EFFECTIVE_IDS = os.access in os.supports_effective_ids
_F_FULLFSYNC = 51  # fcntl.h of macOS


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _names_in(fd: int) -> list[str]:
    listed = os.listdir(fd)
    return listed if _NATIVE_UTF8 else [_decode(os.fsencode(name)) for name in listed]


def _decoded_name(entry: os.DirEntry[str]) -> str:
    return _decode(os.fsencode(entry.name))


_entry_name: Callable[[os.DirEntry[str]], str] = attrgetter("name") if _NATIVE_UTF8 else _decoded_name


def _still_there(entries: list[os.DirEntry[str]]) -> tuple[list[os.DirEntry[str]], list[os.stat_result]]:
    """Those of ``entries`` that were not removed since they were listed, and their stats."""
    found = []
    for entry in entries:
        try:
            found.append((entry, entry.stat(follow_symlinks=False)))
        except FileNotFoundError:
            continue
    return [entry for entry, _ in found], [stats for _, stats in found]


def _stat_in(folder: Folder, name: bytes) -> Stat | None:
    """What is there; None where that cannot be seen: what was done before has been done all the same."""
    try:
        return stat_of(os.stat(name, dir_fd=folder.fd, follow_symlinks=False))
    except OSError:
        return None


def _open_regular(fd: int, name: bytes, flags: int, path: str) -> int:
    """A descriptor of a regular file in the folder ``fd``; OSError EINVAL for anything else."""
    opened = os.open(name, flags, dir_fd=fd)
    if stat.S_ISREG(os.fstat(opened).st_mode):
        return opened
    os.close(opened)
    raise OSError(errno.EINVAL, "not a regular file", path)


class PosixTree:
    """One folder of a real file system and everything below it. Safe to share between threads."""

    def __init__(
        self, root_fd: int, syscalls: Syscalls | None = None, capabilities: Capabilities | None = None
    ) -> None:
        """Take over ``root_fd``, a readable descriptor of the root folder.

        ``capabilities``: where they are known, so that nothing is written to find them out.
        """
        self._root = Folder(root_fd)
        self._syscalls = syscalls or system()
        self._beneath = Beneath(self._root, self._syscalls)
        self._device = os.fstat(root_fd).st_dev
        self._capabilities = capabilities
        self._flush_failed = False
        self._flush_all = self._syscalls.syncfs if self._syscalls.syncfs_trusted(root_fd) else None
        # Folders changed since the last flush; only kept where one call cannot flush everything.
        self._unflushed: set[bytes] | None = None if self._flush_all else set()

    @classmethod
    def open_tree(cls, path: str, *, syscalls: Syscalls | None = None) -> PosixTree:
        """The tree whose root is the folder ``path`` (an ordinary path, links followed)."""
        # Readable, and opened before anything is written: syncfs reports errors since then.
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), syscalls)

    def close(self) -> None:
        self._beneath.close()
        self._root.close()

    @property
    def device(self) -> int:
        return self._device

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            self._capabilities = probe(self, self._place_at_once)
        return self._capabilities

    def _at(self, path: str) -> tuple[Folder, bytes]:
        folder, name = split(path)
        return self._beneath.open(folder), name

    def _changing(self, path: str) -> tuple[Folder, bytes]:
        folder, name = split(path)
        if self._unflushed is not None:
            self._unflushed.add(folder)
        return self._beneath.open(folder), name

    # Reading

    def stat(self, path: str) -> Stat:
        if not path:
            return stat_of(os.fstat(self._root.fd))
        folder, name = self._at(path)
        return stat_of(os.stat(name, dir_fd=folder.fd, follow_symlinks=False))

    def scan(self, path: str) -> Iterator[tuple[str, Stat]]:
        folder = self._beneath.open_readable(encode(path) if path else b"")
        with os.scandir(folder.fd) as listing:
            found = [(_entry_name(entry), entry) for entry in listing]
        found.sort(key=_name_of)
        for name, entry in found:
            try:
                yield name, stat_of(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue  # removed since it was listed
        del folder  # the entries look from its descriptor

    def glance(self, path: str) -> Iterator[Glance]:
        folder = self._beneath.open_readable(encode(path) if path else b"")
        with os.scandir(folder.fd) as listing:
            listed = sorted(listing, key=_entry_name)
        for start in range(0, len(listed), GLANCE_NAMES):
            # The steps of a sync that are taken for each file of the tree, changed or not.
            entries = listed[start : start + GLANCE_NAMES]
            try:
                stats = [entry.stat(follow_symlinks=False) for entry in entries]
            except FileNotFoundError:
                entries, stats = _still_there(entries)
            names = [entry.name for entry in entries] if _NATIVE_UTF8 else list(map(_entry_name, entries))
            numbers: list[tuple[int, ...]] = [
                (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size) for found in stats
            ]
            kinds: dict[str, Kind] = {}
            for at, found in enumerate(stats):
                if found.st_mode & 0o170000 != stat.S_IFREG:
                    kinds[names[at]] = kind = stat_of(found).kind
                    if kind is Kind.OTHER:
                        numbers[at] = ()
            yield Glance(names, numbers, kinds)
        del folder  # the entries look from its descriptor

    def names(self, path: str) -> set[str]:
        folder = self._beneath.open_readable(encode(path) if path else b"")
        return set(_names_in(folder.fd))

    def open_read(self, path: str) -> PosixReadFile:
        folder, name = self._at(path)
        return PosixReadFile(_open_regular(folder.fd, name, _OPEN_READ, path))

    def read_bytes(self, path: str, limit: int) -> bytes:
        opened = self.open_read(path)
        try:
            pieces: list[bytes] = []
            total = 0
            while piece := opened.read(min(limit + 1 - total, 1 << 24)):
                pieces.append(piece)
                total += len(piece)
                if total > limit:
                    raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
            return b"".join(pieces)
        finally:
            opened.close()

    def readlink(self, path: str) -> str:
        folder, name = self._at(path)
        return _decode(os.readlink(name, dir_fd=folder.fd))

    def free_bytes(self) -> int:
        found = os.fstatvfs(self._root.fd)
        return found.f_bavail * found.f_frsize

    def may_change(self, folder: str) -> bool:
        try:
            where = self._beneath.open(encode(folder) if folder else b"")
        except OSError:
            return False
        return os.access(".", os.W_OK | os.X_OK, dir_fd=where.fd, effective_ids=_EFFECTIVE_IDS)

    # Writing

    def create(self, path: str) -> PosixWriteFile:
        folder, name = self._changing(path)
        fd = os.open(name, _OPEN_NEW, 0o666, dir_fd=folder.fd)
        return PosixWriteFile(fd, self._flush_all is None, self._syscalls.begin_flush)

    def open_update(self, path: str) -> PosixUpdateFile:
        """A regular file to be changed in place; OSError EINVAL for anything else.

        Only for a tree that nobody else reads, and a file with no other name.
        """
        folder, name = self._changing(path)
        return PosixUpdateFile(_open_regular(folder.fd, name, _OPEN_UPDATE, path))

    def write_bytes(self, path: str, data: bytes) -> None:
        made = self.create(path)
        try:
            made.write(data)
            made.finish(executable=False, mtime_ns=None, durable=True)
        except BaseException:
            made.close()
            self.unlink(path)
            raise

    def symlink(self, target: str, path: str) -> None:
        folder, name = self._changing(path)
        raw = target.encode("utf-8", "surrogateescape")
        if b"\0" in raw:
            raise OSError(errno.EINVAL, "a link's target cannot hold NUL", path)
        os.symlink(raw, name, dir_fd=folder.fd)

    def mkdir(self, path: str) -> None:
        folder, name = self._changing(path)
        os.mkdir(name, 0o777, dir_fd=folder.fd)

    def make_folders(self, path: str) -> None:
        if not path:
            return
        try:
            self.mkdir(path)
        except FileExistsError:
            if self.stat(path).kind is not Kind.FOLDER:
                raise
        except FileNotFoundError:
            parent = path.rpartition("/")[0]
            if not parent:
                raise
            self.make_folders(parent)
            try:
                self.mkdir(path)
            except FileExistsError:
                if self.stat(path).kind is not Kind.FOLDER:
                    raise  # else another process made it meanwhile, which is as good

    def rmdir(self, path: str) -> None:
        folder, name = self._changing(path)
        os.rmdir(name, dir_fd=folder.fd)
        self._moved_away(path, None)

    def unlink(self, path: str) -> None:
        folder, name = self._changing(path)
        os.unlink(name, dir_fd=folder.fd)

    def move(self, source: str, target: str) -> None:
        source_folder, source_name = self._changing(source)
        target_folder, target_name = self._changing(target)
        os.rename(source_name, target_name, src_dir_fd=source_folder.fd, dst_dir_fd=target_folder.fd)
        self._moved_away(source, target)

    def place(self, source: str, target: str) -> None:
        try:
            self._place_at_once(source, target)
            return
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        source_folder, source_name = self._changing(source)
        target_folder, target_name = self._changing(target)
        found = os.stat(source_name, dir_fd=source_folder.fd, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            try:
                os.link(
                    source_name,
                    target_name,
                    src_dir_fd=source_folder.fd,
                    dst_dir_fd=target_folder.fd,
                    follow_symlinks=False,
                )
            except FileExistsError:
                raise
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED | {errno.EPERM, errno.EMLINK, errno.EACCES}:
                    raise
            else:
                os.unlink(source_name, dir_fd=source_folder.fd)
                return
        # No way to do it in one step: the window between the look and the rename stays open.
        try:
            os.stat(target_name, dir_fd=target_folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(source_name, target_name, src_dir_fd=source_folder.fd, dst_dir_fd=target_folder.fd)
            self._moved_away(source, target)
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)

    def _place_at_once(self, source: str, target: str) -> None:
        if self._syscalls.rename_exclusive is None:
            raise OSError(errno.ENOSYS, "this machine cannot rename without replacing", source, None, target)
        source_folder, source_name = self._changing(source)
        target_folder, target_name = self._changing(target)
        try:
            self._syscalls.rename_exclusive(source_folder.fd, source_name, target_folder.fd, target_name)
        except OSError as error:
            raise OSError(error.errno, error.strerror, source, None, target) from None
        self._moved_away(source, target)

    def swap(self, a: str, b: str) -> tuple[Stat | None, Stat | None]:
        if self._syscalls.rename_swap is None:
            raise OSError(errno.ENOSYS, "this machine cannot exchange two names", a, None, b)
        a_folder, a_name = self._changing(a)
        b_folder, b_name = self._changing(b)
        try:
            self._syscalls.rename_swap(a_folder.fd, a_name, b_folder.fd, b_name)
        except OSError as error:
            raise OSError(error.errno, error.strerror, a, None, b) from None
        self._moved_away(a, b)
        self._moved_away(b, a)
        now_b = _stat_in(b_folder, b_name)
        return _stat_in(a_folder, a_name), now_b

    def set_executable(self, path: str, executable: bool) -> None:
        opened = self.open_read(path)
        try:
            mode = opened.stat().mode
            wanted = executable_mode(mode, executable)
            if wanted != mode:
                os.fchmod(opened.fileno(), wanted)
                if self._flush_all is None:
                    fsync(opened.fileno())
        finally:
            opened.close()

    # Durability

    def flush_folder(self, path: str) -> None:
        folder = self._beneath.open_readable(encode(path) if path else b"")
        try:
            fsync(folder.fd)
            if sys.platform == "darwin":
                _full_fsync(folder.fd)
        except OSError:
            self._flush_failed = True
            raise

    def flush(self) -> None:
        if self._flush_failed:
            raise OSError(errno.EIO, "an earlier flush failed; what was written since is not trusted")
        try:
            if self._flush_all is not None:
                self._flush_all(self._root.fd)
            else:
                self._flush_folders()
        except OSError:
            self._flush_failed = True
            raise

    def note_changed(self, folder: str) -> None:
        if self._unflushed is not None:
            self._unflushed.add(encode(folder) if folder else b"")

    def _flush_folders(self) -> None:
        assert self._unflushed is not None
        pending, self._unflushed = self._unflushed, set()
        for path in sorted(pending):
            try:
                folder = self._beneath.open_readable(path)
            except OSError as error:
                # Removed or moved since; its parent was changed by that and is in the list.
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            fsync(folder.fd)
        if sys.platform == "darwin":
            # fsync only hands the data to the drive; one full flush then covers all of it.
            _full_fsync(self._root.fd)

    def _moved_away(self, path: str, target: str | None) -> None:
        """A folder may have left ``path``: its descriptors go, and if unflushed it is noted anew."""
        raw = encode(path)
        self._beneath.forget(raw)
        if not self._unflushed or target is None:
            return
        below = raw + b"/"
        for old in [p for p in list(self._unflushed) if p == raw or p.startswith(below)]:
            self._unflushed.add(encode(target) + old[len(raw) :])

    def lock(self, path: str, *, shared: bool = False) -> PosixLock | None:
        folder, name = self._at(path)
        fd = os.open(name, _OPEN_READ, dir_fd=folder.fd)
        return PosixLock.take(fd, shared)


def _full_fsync(fd: int) -> None:
    import fcntl

    try:
        fcntl.fcntl(fd, _F_FULLFSYNC)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        os.fsync(fd)

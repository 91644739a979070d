"""System calls that Python does not offer: openat2, renameat2, syncfs, sync_file_range; macOS's counterparts.

Each is None where this machine does not have it; :class:`Syscalls` is handed
to the tree, so that a test can take any of them away.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from protocol.value import Value

__all__ = ["Syscalls", "system"]

# linux/openat2.h and linux/fs.h
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
# sys/stdio.h of macOS, for renameatx_np
_MAC_RENAME_SWAP = 2
_MAC_RENAME_EXCL = 4
# The same number on every architecture that Python still runs on.
_SYS_OPENAT2 = 437
# Only for a C library without the wrapper (musl before 1.2.6).
_SYS_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "ppc64le": 357, "s390x": 347}

# File systems of the Linux kernel whose syncfs waits for the data and reports its errors
# (statfs(2)): network and FUSE file systems are not among them and get an fsync for each file.
_SYNCFS_HONEST = frozenset(
    [
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x2FC12FC1,  # zfs
        0xF2F52010,  # f2fs
        0x01021994,  # tmpfs: nothing survives anyway
    ]
)


def _never(fd: int) -> bool:  # noqa: ARG001
    return False


class Syscalls(Value):
    """What this machine has. Paths are bytes without NUL; errors are raised as OSError."""

    # (folder fd, path, read: whether a readable descriptor is needed) -> descriptor of a folder beneath
    open_beneath: Callable[[int, bytes, bool], int] | None = None
    # (source folder fd, name, target folder fd, name)
    rename_exclusive: Callable[[int, bytes, int, bytes], None] | None = None
    rename_swap: Callable[[int, bytes, int, bytes], None] | None = None
    syncfs: Callable[[int], None] | None = None
    # Whether syncfs on this descriptor's file system can be trusted with the only flush.
    syncfs_trusted: Callable[[int], bool] = _never
    # (file fd, offset, length): have the system begin to write that out. Promises nothing and raises nothing.
    begin_flush: Callable[[int, int, int], None] | None = None


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _checked(call: Callable[..., int], *args: Any) -> int:
    while True:
        result = call(*args)
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _open_beneath(libc: ctypes.CDLL) -> Callable[[int, bytes, bool], int] | None:
    syscall = libc.syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]
    common = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    hows = (_OpenHow(os.O_PATH | common, 0, resolve), _OpenHow(os.O_RDONLY | common, 0, resolve))
    # The addresses stay good as long as the closure holds the structures.
    addresses = tuple(ctypes.addressof(how) for how in hows)
    size = ctypes.sizeof(_OpenHow)

    def open_beneath(fd: int, path: bytes, read: bool, _hold: object = hows) -> int:
        result: int = syscall(_SYS_OPENAT2, fd, path, addresses[read], size)
        if result >= 0:
            return result
        number = ctypes.get_errno()
        for _ in range(100):
            # EAGAIN: a rename elsewhere made the kernel unsure; it asks for another try.
            if number not in (errno.EAGAIN, errno.EINTR):
                break
            result = syscall(_SYS_OPENAT2, fd, path, addresses[read], size)
            if result >= 0:
                return result
            number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

    try:
        here = os.open(b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(open_beneath(here, b".", False))
        finally:
            os.close(here)
    except OSError:  # ENOSYS before Linux 5.6; EPERM from a container's filter
        return None
    return open_beneath


_Rename = Callable[[int, bytes, int, bytes], None]


def _renames(libc: ctypes.CDLL) -> tuple[_Rename | None, _Rename | None]:
    exclusive, swap = _RENAME_NOREPLACE, _RENAME_EXCHANGE
    call: Any
    fields = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if sys.platform == "darwin":
        exclusive, swap = _MAC_RENAME_EXCL, _MAC_RENAME_SWAP
        if not hasattr(libc, "renameatx_np"):
            return None, None
        call = libc.renameatx_np
    elif hasattr(libc, "renameat2"):
        call = libc.renameat2
    elif os.uname().machine in _SYS_RENAMEAT2 and sys.maxsize > 1 << 32:
        number = _SYS_RENAMEAT2[os.uname().machine]
        prototype = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *fields, use_errno=True)
        raw = prototype(ctypes.cast(libc.syscall, ctypes.c_void_p).value or 0)
        call = lambda a, b, c, d, e: int(raw(number, a, b, c, d, e))  # noqa: E731
        fields = []
    else:
        return None, None
    if fields:
        call.argtypes, call.restype = fields, ctypes.c_int

    def rename_exclusive(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
        _checked(call, source_fd, source, target_fd, target, exclusive)

    def rename_swap(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
        _checked(call, source_fd, source, target_fd, target, swap)

    return rename_exclusive, rename_swap


def _linux_release() -> tuple[int, int]:
    major, _, rest = os.uname().release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _syncfs(libc: ctypes.CDLL) -> Callable[[int], None] | None:
    if not hasattr(libc, "syncfs"):
        return None
    call = libc.syncfs
    call.argtypes, call.restype = [ctypes.c_int], ctypes.c_int

    def syncfs(fd: int) -> None:
        # Never repeated, not even after EINTR: a second call may report a success that is none.
        if call(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return syncfs


def _begin_flush(libc: ctypes.CDLL) -> Callable[[int, int, int], None] | None:
    if not hasattr(libc, "sync_file_range"):
        return None
    call = libc.sync_file_range
    call.argtypes, call.restype = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint], ctypes.c_int

    def begin_flush(fd: int, offset: int, length: int) -> None:
        # What goes wrong with the writing is told by the flush that has to come: no error is used up here.
        call(fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    return begin_flush


def _syncfs_trusted(libc: ctypes.CDLL) -> Callable[[int], bool]:
    # Errors of writeback are reported from Linux 5.8 on (commit 735e4ae5ba28).
    if _linux_release() < (5, 8) or not hasattr(libc, "fstatfs"):
        return _never

    def trusted(fd: int) -> bool:
        # struct statfs begins with f_type, a long, on every Linux but s390 (where it is an int).
        buffer = ctypes.create_string_buffer(512)
        if libc.fstatfs(ctypes.c_int(fd), buffer) != 0:
            return False
        width = 4 if os.uname().machine.startswith("s390") else ctypes.sizeof(ctypes.c_long)
        kind = int.from_bytes(buffer.raw[:width], sys.byteorder) & 0xFFFFFFFF
        return kind in _SYNCFS_HONEST

    return trusted


def _load() -> Syscalls:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
    except OSError:
        return Syscalls()
    exclusive, swap = _renames(libc)
    if not sys.platform.startswith("linux"):
        return Syscalls(rename_exclusive=exclusive, rename_swap=swap)
    # A library object of its own: the argument types set on ``syscall`` are openat2's.
    return Syscalls(
        open_beneath=_open_beneath(ctypes.CDLL(None, use_errno=True)),
        rename_exclusive=exclusive,
        rename_swap=swap,
        syncfs=_syncfs(libc),
        syncfs_trusted=_syncfs_trusted(libc),
        begin_flush=_begin_flush(libc),
    )


_system: Syscalls | None = None


def system() -> Syscalls:
    """The calls of this machine; looked up once."""
    global _system
    if _system is None:
        _system = _load()
    return _system

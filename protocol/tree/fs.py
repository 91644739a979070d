"""What DSG needs of a file system: the interface behind which every tree access stands.

Every path is text relative to the tree's root, ``/``-separated (``''`` is the
root itself); names that are not UTF-8 are surrogate-escaped as by
``os.fsdecode``. No operation follows a symbolic link in any component, and
none leaves the tree. Operations raise OSError as the system does (ENOENT,
EEXIST, ENOTEMPTY, ELOOP, EXDEV ...); callers give it meaning.

The real one is :class:`protocol.tree.posix.PosixTree`; a simulation or a crash
recorder takes its place in tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple, Protocol

from protocol.value import Value

__all__ = [
    "GLANCE_NAMES",
    "Capabilities",
    "Glance",
    "Kind",
    "Lock",
    "ReadFile",
    "Stat",
    "TreeFS",
    "WriteFile",
]

GLANCE_NAMES = 1024


class Kind(Enum):
    """What stands at a path."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"  # fifo, socket, device


class Stat(NamedTuple):
    """What the system says of a path itself (links not followed). Times in ns since the epoch."""

    kind: Kind
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    mode: int  # the permission bits, 0o7777
    nlink: int
    uid: int

    @property
    def identity(self) -> tuple[int, int, int, int]:
        """Equal as long as nobody wrote to, or replaced, the file. Survives a rename."""
        return (self.size, self.mtime_ns, self.inode, int(self.kind is Kind.LINK))

    @property
    def executable(self) -> bool:
        """Whether the owner may execute it."""
        return bool(self.mode & 0o100)


class Glance(NamedTuple):
    """Some names of a folder with only what tells a change; as lists, which are compared at once.

    ``numbers``: for each name ``(mtime_ns, ctime_ns, inode, size)``, and an
    empty tuple for a fifo, socket or device. ``kinds``: of the names that are
    not files, in their order.
    """

    names: list[str]
    numbers: list[tuple[int, ...]]
    kinds: dict[str, Kind]


class Capabilities(Value):
    """What the file system can do, found by probing it, never by its name."""

    executable_bit: bool
    symlinks: bool
    case_sensitive: bool
    keeps_normal_form: bool  # False: hands back NFD for NFC or refuses to tell them apart
    swap: bool  # atomic exchange of two names (RENAME_EXCHANGE)
    place: bool  # atomic rename that refuses an existing target (RENAME_NOREPLACE)
    time_grain_ns: int  # the coarsest step of mtime and ctime


class ReadFile(Protocol):
    """An open file; reads at the current position."""

    def read(self, size: int, /) -> bytes: ...

    def stat(self) -> Stat: ...

    def holes(self) -> Iterator[tuple[int, int]]:
        """The (offset, length) of holes, ascending; empty where the system cannot tell."""
        ...

    def seek(self, offset: int, /) -> None: ...

    def close(self) -> None: ...


class WriteFile(Protocol):
    """A file made just now; written front to back, with holes."""

    def write(self, data: bytes | memoryview, /) -> None:
        """Append all of ``data`` (short writes are continued)."""
        ...

    def skip(self, length: int, /) -> None:
        """Append ``length`` zero bytes as a hole."""
        ...

    def take(self, source: ReadFile, offset: int, length: int, /) -> None:
        """Append a range of another file of this tree; blocks are shared where the system can.

        OSError ESTALE when the source ends before it.
        """
        ...

    def finish(self, *, executable: bool, mtime_ns: int | None, durable: bool = False) -> Stat:
        """Set the final size, executable bit (within the umask) and mtime; close; the stat after it.

        ``durable`` flushes the file itself before it is closed (its folder is not flushed).
        """
        ...

    def close(self) -> None:
        """Close without finishing; harmless after :meth:`finish`."""
        ...


class Lock(Protocol):
    """A held lock; also let go when the process ends."""

    def fileno(self) -> int:
        """For handing it to a mutating child process."""
        ...

    def release(self) -> None: ...


class TreeFS(Protocol):
    """One tree, held by a descriptor of its root."""

    def stat(self, path: str) -> Stat: ...

    def scan(self, path: str) -> Iterator[tuple[str, Stat]]:
        """The names in a folder with their stats, in code point order."""
        ...

    def glance(self, path: str) -> Iterator[Glance]:
        """The same for a comparison of whole trees, at most ``GLANCE_NAMES`` names at a time."""
        ...

    def names(self, path: str) -> set[str]:
        """The exact names in a folder."""
        ...

    def open_read(self, path: str) -> ReadFile:
        """Open a regular file; a fifo never blocks, it is refused (EINVAL)."""
        ...

    def create(self, path: str) -> WriteFile:
        """Make a new file (EEXIST when there is anything)."""
        ...

    def read_bytes(self, path: str, limit: int) -> bytes:
        """A small file whole; OSError EFBIG above ``limit`` bytes."""
        ...

    def write_bytes(self, path: str, data: bytes) -> None:
        """Make a new small file, durable itself (fsync); its folder is not flushed."""
        ...

    def readlink(self, path: str) -> str: ...

    def symlink(self, target: str, path: str) -> None: ...

    def mkdir(self, path: str) -> None: ...

    def make_folders(self, path: str) -> None:
        """``mkdir -p`` below the root; ``''`` does nothing."""
        ...

    def rmdir(self, path: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def move(self, source: str, target: str) -> None:
        """rename(2): replaces an existing target."""
        ...

    def place(self, source: str, target: str) -> None:
        """Rename that never replaces: EEXIST when the target exists."""
        ...

    def swap(self, a: str, b: str) -> tuple[Stat | None, Stat | None]:
        """Exchange two names atomically; only with ``capabilities.swap``.

        Returns what is at ``a`` and at ``b`` right after, in the folders in which it was done; None for
        what cannot be seen: gone again, most likely.
        """
        ...

    def set_executable(self, path: str, executable: bool) -> None:
        """Change only the executable bits of a file (within the umask)."""
        ...

    def flush_folder(self, path: str) -> None:
        """fsync of one folder."""
        ...

    def flush(self) -> None:
        """Everything written through this tree so far is durable. Never tried again after an error."""
        ...

    def note_changed(self, folder: str) -> None:
        """Somebody who is gone may have changed names in ``folder``: the next flush covers them, too."""
        ...

    def free_bytes(self) -> int:
        """Bytes that this user may still write."""
        ...

    def may_change(self, folder: str) -> bool:
        """Whether this user may make, rename and remove names in a folder, as far as its mode tells.

        False also where there is no such folder.
        """
        ...

    def lock(self, path: str, *, shared: bool = False) -> Lock | None:
        """Take flock on an existing file, without waiting; None when another holds it."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def device(self) -> int:
        """Device number of the root: every path of a transaction must be on it."""
        ...

    def close(self) -> None: ...

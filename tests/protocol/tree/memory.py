"""A file system in memory that forgets, at a power loss, what was not flushed.

What it promises is what ext4, xfs, btrfs and ZFS promise, and no more: name
changes reach the disk in their order, but how many of them did is open; a
folder's flush forces its own name changes; file contents reach the disk by
fsync or a flush of everything, and otherwise may be whole, short or missing
although the name is there.
"""

from __future__ import annotations

import copy
import errno
import os
import random
from collections.abc import Iterator

from attrs import Factory, define

from protocol.tree.fs import GLANCE_NAMES, Capabilities, Glance, Kind, ReadFile, Stat

ROOT = 1
DEVICE = 77


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


@define
class _Node:
    inode: int
    kind: Kind
    mode: int
    mtime_ns: int
    ctime_ns: int
    data: bytes = b""
    durable: bytes | None = None  # the contents that a power loss cannot touch
    target: str = ""


@define
class _NameChange:
    edits: list[tuple[int, str, int | None]]  # (folder, name, inode that it then has)
    ctimes: dict[int, int]  # of the renamed: before, since it is part of the same change
    forced: bool = False


@define
class _Held:
    tree: MemoryTree
    path: str
    shared: bool

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "a lock in memory has no descriptor")

    def release(self) -> None:
        if self in self.tree.locks:
            self.tree.locks.remove(self)


@define
class _Reading:
    tree: MemoryTree
    node: _Node
    at: int = 0

    def read(self, size: int, /) -> bytes:
        piece = self.node.data[self.at : self.at + size]
        self.at += len(piece)
        return piece

    def stat(self) -> Stat:
        return self.tree.stat_of(self.node)

    def holes(self) -> Iterator[tuple[int, int]]:
        return iter(())

    def seek(self, offset: int, /) -> None:
        self.at = offset

    def close(self) -> None:
        return None


@define
class _Writing:
    tree: MemoryTree
    node: _Node

    def write(self, data: bytes | memoryview, /) -> None:
        self.node.data += bytes(data)
        self.node.mtime_ns = self.node.ctime_ns = self.tree.tick()

    def skip(self, length: int, /) -> None:
        self.write(b"\0" * length)

    def take(self, source: ReadFile, offset: int, length: int, /) -> None:
        source.seek(offset)
        piece = source.read(length)
        if len(piece) < length:
            raise OSError(errno.ESTALE, "the file became shorter while it was copied")
        self.write(piece)

    def finish(self, *, executable: bool, mtime_ns: int | None, durable: bool = False) -> Stat:
        if executable:
            self.node.mode |= 0o111
        if mtime_ns is not None:
            self.node.mtime_ns = mtime_ns
        self.node.ctime_ns = self.tree.tick()
        if durable:
            self.node.durable = self.node.data
        return self.tree.stat_of(self.node)

    def close(self) -> None:
        return None


@define(eq=False)
class MemoryTree:
    """See the module. ``folds_case``: as macOS and Windows do, names keep the case they were made with."""

    can_swap: bool = True
    folds_case: bool = False
    nodes: dict[int, _Node] = Factory(dict)
    names_of: dict[int, dict[str, int]] = Factory(dict)  # folder -> name -> inode
    on_disk: dict[int, dict[str, int]] = Factory(dict)
    pending: list[_NameChange] = Factory(list)
    locks: list[_Held] = Factory(list)
    clock: int = 10**18
    last_inode: int = ROOT

    def __attrs_post_init__(self) -> None:
        if ROOT not in self.nodes:
            self.nodes[ROOT] = _Node(ROOT, Kind.FOLDER, 0o755, self.clock, self.clock)
            self.names_of[ROOT] = {}
            self.on_disk[ROOT] = {}

    # The disk

    def power_loss(self, rng: random.Random) -> MemoryTree:
        """What the next start finds; this object is of no use any more."""
        disk = copy.deepcopy(self.on_disk)
        reached = rng.randint(0, len(self.pending))
        for number, change in enumerate(self.pending):
            if number < reached or change.forced:
                for folder, name, inode in change.edits:
                    if inode is None:
                        disk[folder].pop(name, None)
                    else:
                        disk[folder][name] = inode
        nodes = copy.deepcopy(self.nodes)
        for number, change in reversed(list(enumerate(self.pending))):
            if not (number < reached or change.forced):
                for inode, ctime_ns in change.ctimes.items():
                    nodes[inode].ctime_ns = ctime_ns
        for node in nodes.values():
            if node.kind is Kind.FILE and node.durable != node.data:
                node.data = rng.choice(
                    [b"", node.data[: len(node.data) // 2], node.data, node.durable or b""]
                )
        return self.__class__(
            self.can_swap,
            self.folds_case,
            nodes,
            disk,
            copy.deepcopy(disk),
            clock=self.clock,
            last_inode=self.last_inode,
        )

    def flush(self) -> None:
        self.on_disk = copy.deepcopy(self.names_of)
        self.pending.clear()
        for node in self.nodes.values():
            node.durable = node.data

    def note_changed(self, folder: str) -> None:
        pass  # a flush is one of everything

    def flush_folder(self, path: str) -> None:
        folder = self._folder(path)
        for change in self.pending:
            change.forced |= any(edit[0] == folder for edit in change.edits)

    # Names

    def tick(self) -> int:
        self.clock += 1_000_000
        return self.clock

    def _edit(self, *edits: tuple[int, str, int | None], renamed: tuple[_Node, ...] = ()) -> None:
        ctimes = {node.inode: node.ctime_ns for node in renamed}
        for node in renamed:
            node.ctime_ns = self.tick()
        for folder, name, inode in edits:
            if inode is None:
                self.names_of[folder].pop(name, None)
            else:
                self.names_of[folder][name] = inode
            self.nodes[folder].mtime_ns = self.nodes[folder].ctime_ns = self.tick()
        self.pending.append(_NameChange(list(edits), ctimes))

    def _child(self, folder: int, name: str) -> tuple[str, int] | None:
        names = self.names_of[folder]
        if name in names:
            return name, names[name]
        if self.folds_case:
            for listed, inode in names.items():
                if listed.casefold() == name.casefold():
                    return listed, inode
        return None

    def _folder(self, path: str) -> int:
        inode = ROOT
        parts = path.split("/") if path else []
        if "\0" in path or not {"", ".", ".."}.isdisjoint(parts):
            raise _error(errno.EINVAL, path)
        for name in parts:
            child = self._child(inode, name)
            if child is None:
                raise _error(errno.ENOENT, path)
            inode = child[1]
            if self.nodes[inode].kind is Kind.LINK:
                raise _error(errno.ELOOP, path)
            if self.nodes[inode].kind is not Kind.FOLDER:
                raise _error(errno.ENOTDIR, path)
        return inode

    def _at(self, path: str) -> tuple[int, str]:
        folder, slash, name = path.rpartition("/")
        if (slash and not folder) or name in ("", ".", "..") or "\0" in name:
            raise _error(errno.EINVAL, path)
        return self._folder(folder), name

    def _find(self, path: str) -> tuple[int, str, _Node]:
        """(folder, name as listed, node)."""
        folder, name = self._at(path)
        child = self._child(folder, name)
        if child is None:
            raise _error(errno.ENOENT, path)
        return folder, child[0], self.nodes[child[1]]

    def _new(self, path: str, kind: Kind, mode: int) -> _Node:
        folder, name = self._at(path)
        if self._child(folder, name) is not None:
            raise _error(errno.EEXIST, path)
        self.last_inode += 1
        now = self.tick()
        node = _Node(self.last_inode, kind, mode, now, now)
        self.nodes[node.inode] = node
        if kind is Kind.FOLDER:
            self.names_of[node.inode] = {}
            self.on_disk[node.inode] = {}
        self._edit((folder, name, node.inode))
        return node

    # The interface

    def stat_of(self, node: _Node) -> Stat:
        size = len(node.target.encode()) if node.kind is Kind.LINK else len(node.data)
        return Stat(
            node.kind, size, node.mtime_ns, node.ctime_ns, node.inode, DEVICE, node.mode, 1, os.geteuid()
        )

    def stat(self, path: str) -> Stat:
        return self.stat_of(self._find(path)[2] if path else self.nodes[ROOT])

    def scan(self, path: str) -> Iterator[tuple[str, Stat]]:
        names = self.names_of[self._folder(path)]
        for name in sorted(names):
            if name in names:
                yield name, self.stat_of(self.nodes[names[name]])

    def glance(self, path: str) -> Iterator[Glance]:
        found = list(self.scan(path))
        for start in range(0, len(found), GLANCE_NAMES):
            some = found[start : start + GLANCE_NAMES]
            yield Glance(
                [name for name, _ in some],
                [(stat.mtime_ns, stat.ctime_ns, stat.inode, stat.size) for _, stat in some],
                {name: stat.kind for name, stat in some if stat.kind is not Kind.FILE},
            )

    def names(self, path: str) -> set[str]:
        return set(self.names_of[self._folder(path)])

    def open_read(self, path: str) -> _Reading:
        node = self._find(path)[2]
        if node.kind is not Kind.FILE:
            raise _error(errno.ELOOP if node.kind is Kind.LINK else errno.EINVAL, path)
        return _Reading(self, node)

    def create(self, path: str) -> _Writing:
        return _Writing(self, self._new(path, Kind.FILE, 0o644))

    def read_bytes(self, path: str, limit: int) -> bytes:
        content = self.open_read(path).node.data
        if len(content) > limit:
            raise _error(errno.EFBIG, path)
        return content

    def write_bytes(self, path: str, data: bytes) -> None:
        made = self.create(path)
        made.write(data)
        made.finish(executable=False, mtime_ns=None, durable=True)

    def readlink(self, path: str) -> str:
        node = self._find(path)[2]
        if node.kind is not Kind.LINK:
            raise _error(errno.EINVAL, path)
        return node.target

    def symlink(self, target: str, path: str) -> None:
        self._new(path, Kind.LINK, 0o777).target = target

    def mkdir(self, path: str) -> None:
        self._new(path, Kind.FOLDER, 0o755)

    def make_folders(self, path: str) -> None:
        parts = path.split("/") if path else []
        for i in range(1, len(parts) + 1):
            folder = "/".join(parts[:i])
            try:
                self.mkdir(folder)
            except FileExistsError:
                if self.stat(folder).kind is not Kind.FOLDER:
                    raise

    def rmdir(self, path: str) -> None:
        folder, name, node = self._find(path)
        if node.kind is not Kind.FOLDER:
            raise _error(errno.ENOTDIR, path)
        if self.names_of[node.inode]:
            raise _error(errno.ENOTEMPTY, path)
        self._edit((folder, name, None))

    def unlink(self, path: str) -> None:
        folder, name, node = self._find(path)
        if node.kind is Kind.FOLDER:
            raise _error(errno.EISDIR, path)
        self._edit((folder, name, None))

    def move(self, source: str, target: str) -> None:
        from_folder, from_name, node = self._find(source)
        to_folder, to_name = self._at(target)
        there = self._child(to_folder, to_name)
        edits: list[tuple[int, str, int | None]] = [(from_folder, from_name, None)]
        if there is not None and there[1] != node.inode:
            replaced = self.nodes[there[1]]
            if node.kind is not Kind.FOLDER and replaced.kind is Kind.FOLDER:
                raise _error(errno.EISDIR, target)
            if node.kind is Kind.FOLDER and replaced.kind is not Kind.FOLDER:
                raise _error(errno.ENOTDIR, target)
            if replaced.kind is Kind.FOLDER and self.names_of[replaced.inode]:
                raise _error(errno.ENOTEMPTY, target)
            edits.append((to_folder, there[0], None))
        self._edit(*edits, (to_folder, to_name, node.inode), renamed=(node,))

    def place(self, source: str, target: str) -> None:
        self._find(source)
        folder, name = self._at(target)
        if self._child(folder, name) is not None:
            raise _error(errno.EEXIST, target)
        self.move(source, target)

    def swap(self, a: str, b: str) -> tuple[Stat, Stat]:
        if not self.can_swap:
            raise _error(errno.ENOSYS, a)
        a_folder, a_name, a_node = self._find(a)
        b_folder, b_name, b_node = self._find(b)
        self._edit(
            (a_folder, a_name, b_node.inode), (b_folder, b_name, a_node.inode), renamed=(a_node, b_node)
        )
        return self.stat(a), self.stat(b)

    def set_executable(self, path: str, executable: bool) -> None:
        node = self.open_read(path).node
        node.mode = node.mode | 0o111 if executable else node.mode & ~0o111
        node.ctime_ns = self.tick()

    def free_bytes(self) -> int:
        return 1 << 40

    def may_change(self, folder: str) -> bool:
        try:
            self._folder(folder)
        except OSError:
            return False
        return True

    def lock(self, path: str, *, shared: bool = False) -> _Held | None:
        self._find(path)
        if any(held.path == path and not (held.shared and shared) for held in self.locks):
            return None
        self.locks.append(held := _Held(self, path, shared))
        return held

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            executable_bit=True,
            symlinks=True,
            case_sensitive=not self.folds_case,
            keeps_normal_form=True,
            swap=self.can_swap,
            place=True,
            time_grain_ns=1,
        )

    @property
    def device(self) -> int:
        return DEVICE

    def close(self) -> None:
        return None

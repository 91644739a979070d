"""What TreeFS promises, of the real tree, of the real tree without newer system calls, and of the model."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from protocol.tree.fs import GLANCE_NAMES, Kind, TreeFS
from protocol.tree.posix import PosixTree
from protocol.tree.syscalls import Syscalls
from tests.protocol.tree.memory import MemoryTree
from tests.protocol.tree.scenario import write


@pytest.fixture(params=["modern", "plain", "model"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> TreeFS:
    if request.param == "model":
        made: TreeFS = MemoryTree()
    else:
        syscalls = Syscalls() if request.param == "plain" else None
        made = PosixTree.open_tree(str(tmp_path), syscalls=syscalls)
    made.make_folders(".dsg/tmp")
    return made


def refused(number: int, call: Any, *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno == number, caught.value


def content(tree: TreeFS, path: str) -> bytes:
    return tree.read_bytes(path, 1 << 20)


def test_files(tree: TreeFS) -> None:
    made = tree.create("a.csv")
    made.write(b"one,")
    made.skip(3)
    made.write(memoryview(b"two"))
    made.skip(2)
    stat = made.finish(executable=True, mtime_ns=1_700_000_000_000_000_000)
    made.close()
    assert (stat.kind, stat.size, stat.mtime_ns, stat.executable) == (
        Kind.FILE,
        12,
        1_700_000_000_000_000_000,
        True,
    )
    assert stat == tree.stat("a.csv")
    assert content(tree, "a.csv") == b"one,\0\0\0two\0\0"
    refused(errno.EEXIST, tree.create, "a.csv")
    refused(errno.EFBIG, tree.read_bytes, "a.csv", 11)
    refused(errno.ENOENT, tree.read_bytes, "b.csv", 11)
    tree.set_executable("a.csv", False)
    assert not tree.stat("a.csv").executable
    assert tree.stat("a.csv").ctime_ns >= stat.ctime_ns
    tree.unlink("a.csv")
    refused(errno.ENOENT, tree.stat, "a.csv")
    refused(errno.ENOENT, tree.unlink, "a.csv")


def test_reading(tree: TreeFS) -> None:
    tree.write_bytes("a", b"0123456789")
    reading = tree.open_read("a")
    assert reading.read(4) == b"0123"
    assert list(reading.holes()) == []
    assert reading.read(2) == b"45"
    reading.seek(8)
    assert reading.read(100) == b"89"
    assert reading.read(100) == b""
    assert reading.stat() == tree.stat("a")
    reading.close()
    tree.symlink("a", "link")
    refused(errno.ELOOP, tree.open_read, "link")
    tree.mkdir("folder")
    refused(errno.EINVAL, tree.open_read, "folder")


def test_taking_from_another_file(tree: TreeFS) -> None:
    tree.write_bytes("a", b"0123456789")
    reading = tree.open_read("a")
    made = tree.create("b")
    made.take(reading, 2, 3)
    made.skip(2)
    made.take(reading, 0, 0)
    made.take(reading, 9, 1)
    refused(errno.ESTALE, made.take, reading, 8, 3)
    made.close()
    assert content(tree, "b")[:6] == b"234\0\x009"


def test_links(tree: TreeFS) -> None:
    tree.symlink("no/such é", "link")
    assert tree.stat("link").kind is Kind.LINK
    assert tree.readlink("link") == "no/such é"
    refused(errno.EEXIST, tree.symlink, "x", "link")
    tree.write_bytes("file", b"")
    refused(errno.EINVAL, tree.readlink, "file")


def test_folders(tree: TreeFS) -> None:
    tree.make_folders("")
    tree.make_folders("a/b/c")
    tree.make_folders("a/b/c")
    tree.make_folders("a/b/d")
    assert tree.stat("a/b").kind is tree.stat("").kind is Kind.FOLDER
    assert tree.names("a/b") == {"c", "d"}
    refused(errno.EEXIST, tree.mkdir, "a/b")
    refused(errno.ENOENT, tree.mkdir, "x/y")
    refused(errno.ENOTEMPTY, tree.rmdir, "a/b")
    tree.rmdir("a/b/c")
    refused(errno.ENOENT, tree.rmdir, "a/b/c")
    tree.write_bytes("file", b"")
    refused(errno.ENOTDIR, tree.rmdir, "file")
    refused(errno.ENOTDIR, tree.mkdir, "file/x")
    with pytest.raises(OSError):
        tree.make_folders("file/x")
    with pytest.raises(OSError):
        tree.make_folders("file")
    with pytest.raises(OSError):
        tree.unlink("a")


def test_scan_in_code_point_order_whatever_the_names(tree: TreeFS) -> None:
    names = ["a", "B", "é", "\U0001f600", "\ue000", "new\nline", "-dash", " ", "z" * 255, "a.b", "a-b"]
    for name in names:
        tree.write_bytes(name, name.encode())
    tree.symlink("a", "link")
    tree.mkdir("folder")
    scanned = list(tree.scan(""))
    assert [name for name, _ in scanned] == sorted([*names, "link", "folder", ".dsg"])
    assert all(stat == tree.stat(name) for name, stat in scanned)
    assert tree.names("") == {name for name, _ in scanned}
    refused(errno.ENOENT, lambda: list(tree.scan("no")))
    refused(errno.ENOTDIR, lambda: list(tree.scan("a")))
    refused(errno.ELOOP, lambda: list(tree.scan("link/x")))
    (glance,) = tree.glance("")
    assert glance.names == [name for name, _ in scanned]
    assert glance.numbers == [(s.mtime_ns, s.ctime_ns, s.inode, s.size) for _, s in scanned]
    assert glance.kinds == {name: stat.kind for name, stat in scanned if stat.kind is not Kind.FILE}
    assert list(glance.kinds) == [".dsg", "folder", "link"]
    refused(errno.ENOENT, lambda: list(tree.glance("no")))
    refused(errno.ENOTDIR, lambda: list(tree.glance("a")))
    refused(errno.ELOOP, lambda: list(tree.glance("link/x")))


def test_a_glance_at_a_large_folder_comes_in_parts(tree: TreeFS) -> None:
    assert list(tree.glance(".dsg/tmp")) == []
    tree.mkdir("large")
    names = [f"{n:05d}" for n in range(2 * GLANCE_NAMES + 1)]
    for name in names:
        tree.symlink("x", f"large/{name}")
    parts = list(tree.glance("large"))
    assert [len(part.names) for part in parts] == [GLANCE_NAMES, GLANCE_NAMES, 1]
    assert [name for part in parts for name in part.names] == names
    assert all(list(part.kinds) == part.names and len(part.numbers) == len(part.names) for part in parts)


def test_move_replaces_and_place_does_not(tree: TreeFS) -> None:
    tree.write_bytes("a", b"a")
    tree.write_bytes("b", b"b")
    inode = tree.stat("a").inode
    refused(errno.EEXIST, tree.place, "a", "b")
    assert (content(tree, "a"), content(tree, "b")) == (b"a", b"b")
    tree.move("a", "b")
    assert content(tree, "b") == b"a"
    assert tree.names("") == {"b", ".dsg"}
    tree.place("b", ".dsg/c")
    assert tree.stat(".dsg/c").inode == inode
    assert tree.names("") == {".dsg"}
    refused(errno.ENOENT, tree.place, "b", "d")
    refused(errno.ENOENT, tree.place, ".dsg/c", "no/d")
    refused(errno.ENOENT, tree.move, "b", "d")
    tree.symlink("x", "link")
    tree.place("link", "moved-link")
    assert tree.readlink("moved-link") == "x"
    tree.make_folders("folder/below")
    tree.place("folder", "moved-folder")
    assert tree.names("moved-folder") == {"below"}
    refused(errno.EEXIST, tree.place, "moved-link", "moved-folder")
    refused(errno.EISDIR, tree.move, "moved-link", "moved-folder")


def test_a_rename_changes_only_the_ctime(tree: TreeFS) -> None:
    tree.write_bytes("a", b"a")
    before = tree.stat("a")
    tree.place("a", "b")
    after = tree.stat("b")
    assert after.identity == before.identity
    assert after.mode == before.mode


def test_swap(tree: TreeFS) -> None:
    tree.write_bytes("a", b"a")
    tree.symlink("t", "b")
    if not tree.capabilities.swap:
        refused(errno.ENOSYS, tree.swap, "a", "b")
        return
    tree.make_folders("d/e")
    tree.move("b", "d/e/b")
    found = tree.swap("a", "d/e/b")
    assert found == (tree.stat("a"), tree.stat("d/e/b"))
    tree.move("d/e/b", "b")
    assert tree.readlink("a") == "t"
    assert content(tree, "b") == b"a"
    refused(errno.ENOENT, tree.swap, "a", "c")
    assert tree.readlink("a") == "t"


@pytest.mark.parametrize("path", ["/a", "a//b", "./a", "a/.", "..", "a/../b", "a/", "a\0b", "d\0/a", "../a"])
def test_what_is_no_plain_relative_path_is_refused(tree: TreeFS, path: str) -> None:
    tree.make_folders("a")
    tree.make_folders("d")
    before = list(tree.scan(""))
    for call in (
        tree.stat,
        tree.create,
        tree.mkdir,
        tree.rmdir,
        tree.unlink,
        tree.readlink,
        tree.open_read,
        tree.make_folders,
        lambda p: tree.symlink("t", p),
        lambda p: tree.write_bytes(p, b""),
        lambda p: tree.move("a", p),
        lambda p: tree.move(p, "b"),
        lambda p: tree.place("a", p),
        lambda p: tree.set_executable(p, True),
        lambda p: list(tree.scan(p)),
        lambda p: list(tree.glance(p)),
        tree.names,
        tree.flush_folder,
    ):
        refused(errno.EINVAL, call, path)
    assert list(tree.scan("")) == before


def test_flushing(tree: TreeFS) -> None:
    write(tree, "a/b/c", (b"x", False))
    tree.flush_folder("a/b")
    tree.flush_folder("")
    tree.move("a/b", "a/d")
    tree.flush()
    tree.flush()
    refused(errno.ENOENT, tree.flush_folder, "a/b")


def test_locks(tree: TreeFS) -> None:
    tree.write_bytes(".dsg/lock", b"")
    first = tree.lock(".dsg/lock")
    assert first is not None
    assert tree.lock(".dsg/lock") is None
    assert tree.lock(".dsg/lock", shared=True) is None
    first.release()
    first.release()
    readers = [tree.lock(".dsg/lock", shared=True) for _ in range(2)]
    assert None not in readers
    assert tree.lock(".dsg/lock") is None
    for reader in readers:
        assert reader is not None
        reader.release()
    last = tree.lock(".dsg/lock")
    assert last is not None
    last.release()
    refused(errno.ENOENT, tree.lock, ".dsg/no")


def test_space_device_and_rights(tree: TreeFS) -> None:
    assert tree.free_bytes() > 0
    tree.mkdir("a")
    assert tree.stat("a").device == tree.device == tree.stat("").device
    assert tree.may_change("a")
    assert tree.may_change("")
    assert not tree.may_change("no")


def test_capabilities_leave_nothing_behind(tree: TreeFS) -> None:
    found = tree.capabilities
    assert found is not None
    assert tree.names(".dsg/tmp") == set()
    assert tree.names("") == {".dsg"}

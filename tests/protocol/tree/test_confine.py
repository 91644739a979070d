"""Nothing leads out of a tree: links in any component, races, long paths, folders renamed or removed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.tree import confine
from protocol.tree.fs import Kind
from protocol.tree.posix import PosixTree
from protocol.tree.syscalls import Syscalls, system

VARIANTS = {
    "openat2": system(),
    "walk": system().but(open_beneath=None),
    "plain": Syscalls(),
}


@pytest.fixture(params=list(VARIANTS))
def syscalls(request: pytest.FixtureRequest) -> Syscalls:
    chosen = VARIANTS[request.param]
    if request.param == "openat2" and chosen.open_beneath is None:
        pytest.skip("this kernel has no openat2 (Linux 5.6 or newer has)")
    return chosen


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the tree, with victims in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(b"victim")
    (folder / "file").chmod(0o640)
    os.utime(folder / "file", ns=(10**18, 10**18))
    (folder / "folder").mkdir()
    os.symlink("victim", folder / "link")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    return {
        entry.name: (
            entry.lstat().st_mode,
            entry.lstat().st_mtime_ns,
            entry.lstat().st_ino,
            entry.read_bytes() if entry.is_file() and not entry.is_symlink() else b"",
        )
        for entry in sorted(folder.iterdir())
    }


def operations(tree: PosixTree, folder: str) -> dict[str, Callable[[], object]]:
    """Every kind of operation, aimed through ``folder``. ``mine`` is a file of the tree's own."""
    return {
        "stat": lambda: tree.stat(f"{folder}/file"),
        "scan": lambda: list(tree.scan(folder)),
        "glance": lambda: list(tree.glance(folder)),
        "names": lambda: tree.names(folder),
        "open_read": lambda: tree.open_read(f"{folder}/file").close(),
        "read_bytes": lambda: tree.read_bytes(f"{folder}/file", 100),
        "readlink": lambda: tree.readlink(f"{folder}/link"),
        "create": lambda: tree.create(f"{folder}/new").close(),
        "write_bytes": lambda: tree.write_bytes(f"{folder}/new2", b"x"),
        "symlink": lambda: tree.symlink("x", f"{folder}/new3"),
        "mkdir": lambda: tree.mkdir(f"{folder}/new4"),
        "make_folders": lambda: tree.make_folders(f"{folder}/new5/new6"),
        "set_executable": lambda: tree.set_executable(f"{folder}/file", True),
        "move out": lambda: tree.move(f"{folder}/file", "taken"),
        "move in": lambda: tree.move("mine", f"{folder}/file"),
        "place out": lambda: tree.place(f"{folder}/file", "taken2"),
        "place in": lambda: tree.place("mine", f"{folder}/placed"),
        "swap": lambda: tree.swap("mine", f"{folder}/file"),
        "unlink": lambda: tree.unlink(f"{folder}/file"),
        "rmdir": lambda: tree.rmdir(f"{folder}/folder"),
        "flush_folder": lambda: tree.flush_folder(folder),
        "lock": lambda: tree.lock(f"{folder}/file"),
    }


@pytest.mark.parametrize("how", ["a/through", "a/through/folder", "through"])
def test_no_operation_follows_a_link(tmp_path: Path, outside: Path, syscalls: Syscalls, how: str) -> None:
    root = tmp_path / "tree"
    (root / "a").mkdir(parents=True)
    (root / "mine").write_bytes(b"mine")
    os.symlink(outside, root / "a/through")
    os.symlink("../outside", root / "through")
    tree = PosixTree.open_tree(str(root), syscalls=syscalls)
    before = snapshot(outside)
    assert not tree.may_change(how)
    for name, call in operations(tree, how).items():
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENOSYS), name
    assert snapshot(outside) == before
    assert (root / "mine").read_bytes() == b"mine"


def test_the_last_component_is_never_followed_either(
    tmp_path: Path, outside: Path, syscalls: Syscalls
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    os.symlink(outside / "file", root / "link")
    os.symlink(outside / "new", root / "dangling")
    tree = PosixTree.open_tree(str(root), syscalls=syscalls)
    before = snapshot(outside)
    assert tree.stat("link").kind is Kind.LINK
    for call in (
        lambda: tree.open_read("link"),
        lambda: tree.create("link"),
        lambda: tree.create("dangling"),
        lambda: tree.write_bytes("dangling", b"x"),
        lambda: tree.set_executable("link", True),
        lambda: tree.lock("link"),
        lambda: list(tree.scan("link")),
        lambda: list(tree.glance("link")),
        lambda: tree.make_folders("dangling"),
        lambda: tree.flush_folder("link"),
    ):
        with pytest.raises(OSError):
            call()
    tree.write_bytes("mine", b"mine")
    tree.move("mine", "link")
    tree.unlink("dangling")
    assert snapshot(outside) == before
    assert (root / "link").read_bytes() == b"mine"


@contextmanager
def racing(root: Path, outside: Path) -> Iterator[list[int]]:
    """``flip`` in the tree is now a folder, now a link out of it, as fast as one thread can."""
    (root / "real").mkdir()
    for name, content in (("file", b"inside"), ("link", None)):
        if content is None:
            os.symlink("inside", root / "real" / name)
        else:
            (root / "real" / name).write_bytes(content)
    os.symlink(outside, root / "out")
    flips = [0]
    stop = threading.Event()
    swap = system().rename_swap
    assert swap is not None, "the racer exchanges two names"
    fd = os.open(root, os.O_RDONLY)
    os.rename(root / "real", root / "flip")

    def flip() -> None:
        while not stop.is_set():
            swap(fd, b"flip", fd, b"out")
            flips[0] += 1

    racer = threading.Thread(target=flip)
    racer.start()
    try:
        yield flips
    finally:
        stop.set()
        racer.join()
        os.close(fd)


def race(tree: PosixTree, root: Path, seconds: float) -> tuple[int, int]:
    """(operations that were let through, that were refused)."""
    through = refused = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not (root / "mine").exists():
            (root / "mine").write_bytes(b"mine")
        for call in operations(tree, "flip").values():
            try:
                call()
                through += 1
            except OSError:
                refused += 1
    return through, refused


def test_a_racer_leads_no_operation_out(tmp_path: Path, outside: Path, syscalls: Syscalls) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    tree = PosixTree.open_tree(str(root), syscalls=syscalls)
    before = snapshot(outside)
    with racing(root, outside) as flips:
        through, refused = race(tree, root, 1.0)
    assert snapshot(outside) == before
    assert flips[0] > 1000
    assert through > 100
    assert refused > 100


def test_control_a_tree_that_looks_first_is_led_out(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_then_open(root_fd: int, path: bytes, read: bool) -> int:
        if os.path.islink(os.path.join(f"/proc/self/fd/{root_fd}".encode(), path)):
            raise OSError(errno.ELOOP, "a link")
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root_fd)

    monkeypatch.setattr(confine, "_walk", look_then_open)
    root = tmp_path / "tree"
    root.mkdir()
    tree = PosixTree.open_tree(str(root), syscalls=VARIANTS["walk"])
    before = snapshot(outside)
    with racing(root, outside):
        for _ in range(20):
            race(tree, root, 0.2)
            if snapshot(outside) != before:
                return
    pytest.fail("the racer never got through a tree that is not confined: this test proves nothing")


def test_a_folder_renamed_away_is_not_written_to_by_its_old_name(tmp_path: Path, syscalls: Syscalls) -> None:
    tree = PosixTree.open_tree(str(tmp_path), syscalls=syscalls)
    tree.make_folders("a/b")
    tree.create("a/b/one").close()
    os.rename(tmp_path / "a", tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        tree.create("a/b/two")
    assert sorted(os.listdir(tmp_path / "elsewhere/b")) == ["one"]


def test_own_folders_removed_behind_the_trees_back(tmp_path: Path, syscalls: Syscalls) -> None:
    tree = PosixTree.open_tree(str(tmp_path), syscalls=syscalls)
    other = PosixTree.open_tree(str(tmp_path), syscalls=syscalls)
    for _ in range(3):
        tree.make_folders(".dsg/staging/tx")
        tree.create(".dsg/staging/tx/0").close()
        assert other.names(".dsg/staging/tx") == {"0"}
        other.unlink(".dsg/staging/tx/0")
        other.rmdir(".dsg/staging/tx")
    tree.make_folders(".dsg/staging/tx")
    tree.create(".dsg/staging/tx/0").close()
    tree.move(".dsg/staging", ".dsg/moved")
    with pytest.raises(FileNotFoundError):
        tree.create(".dsg/staging/tx/1")
    tree.make_folders(".dsg/staging/tx")
    tree.create(".dsg/staging/tx/1").close()
    assert tree.names(".dsg/staging/tx") == {"1"}


def test_many_own_folders_do_not_run_out_of_descriptors(tmp_path: Path) -> None:
    tree = PosixTree.open_tree(str(tmp_path))
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for i in range(300):
        tree.make_folders(f".dsg/history/objects/{i:03x}")
        tree.create(f".dsg/history/objects/{i:03x}/file").close()
    if before:
        assert len(os.listdir("/proc/self/fd")) < before + 80
    tree.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(OSError):
        tree.stat(".dsg")


def test_paths_longer_than_the_system_takes_at_once(tmp_path: Path, syscalls: Syscalls) -> None:
    tree = PosixTree.open_tree(str(tmp_path), syscalls=syscalls)
    folder = "/".join(["d" * 200] * 40)  # 8 KiB; PATH_MAX is 4 KiB
    tree.make_folders(folder)
    tree.write_bytes(f"{folder}/file", b"deep")
    tree.symlink("file", f"{folder}/link")
    assert tree.read_bytes(f"{folder}/file", 100) == b"deep"
    assert [name for name, _ in tree.scan(folder)] == ["file", "link"]
    tree.make_folders(f".dsg/replaced/tx/{folder}")
    tree.place(f"{folder}/file", f".dsg/replaced/tx/{folder}/file")
    assert tree.read_bytes(f".dsg/replaced/tx/{folder}/file", 100) == b"deep"
    tree.flush()
    tree.unlink(f"{folder}/link")
    tree.rmdir(folder)
    with pytest.raises(FileNotFoundError):
        tree.stat(folder)


def test_components_of_255_bytes_and_one_more(tmp_path: Path, syscalls: Syscalls) -> None:
    tree = PosixTree.open_tree(str(tmp_path), syscalls=syscalls)
    name = "é" * 127 + "x"
    tree.write_bytes(name, b"")
    assert tree.names("") == {name}
    with pytest.raises(OSError) as caught:
        tree.write_bytes(name + "x", b"")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_threads_share_a_tree(tmp_path: Path, syscalls: Syscalls) -> None:
    """Each thread's files land where it says, whatever the others make the tree forget."""
    tree = PosixTree.open_tree(str(tmp_path), syscalls=syscalls)
    problems: list[BaseException] = []

    def work(me: int) -> None:
        try:
            for i in range(60):
                folder = f".dsg/staging/{me}-{i}"
                tree.make_folders(folder)
                made = tree.create(f"{folder}/{me}")
                made.write(b"%d" % me)
                made.finish(executable=False, mtime_ns=None)
                assert tree.names(folder) == {str(me)}
                tree.place(f"{folder}/{me}", f"{me}-{i}")
                tree.rmdir(folder)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    for me in range(6):
        for i in range(60):
            assert (tmp_path / f"{me}-{i}").read_bytes() == b"%d" % me

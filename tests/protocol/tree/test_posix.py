"""What only a real file system shows: odd names, holes, modes, groups, flushing, locks, probing."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.tree import posix
from protocol.tree.change import Expected, SourceChangedError, Staging, Unexpected, sweep
from protocol.tree.fs import Kind
from protocol.tree.posix import PosixTree
from protocol.tree.probe import probe
from protocol.tree.syscalls import Syscalls, system
from tests.protocol.tree.accounts import as_account, reachable
from tests.protocol.tree.recorder import Killed, Recorder
from tests.protocol.tree.scenario import AFTER, build, commit, contents, recover


@pytest.fixture
def tree(tmp_path: Path) -> PosixTree:
    made = PosixTree.open_tree(str(tmp_path))
    made.make_folders(".dsg/tmp")
    return made


# Names and kinds


def test_names_that_are_not_utf8_are_reported_and_usable(tree: PosixTree, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9\xff"
    with open(raw, "wb") as file:
        file.write(b"latin")
    os.mkdir(os.fsencode(tmp_path) + b"/dir\xfe")
    scanned = dict(tree.scan(""))
    assert set(scanned) == {".dsg", "caf\udce9\udcff", "dir\udcfe"} == tree.names("")
    assert scanned["caf\udce9\udcff"].size == 5
    assert next(tree.glance("")).names == [".dsg", "caf\udce9\udcff", "dir\udcfe"]
    assert tree.read_bytes("caf\udce9\udcff", 10) == b"latin"
    tree.move("caf\udce9\udcff", "dir\udcfe/café")
    assert [name for name, _ in tree.scan("dir\udcfe")] == ["café"]
    with pytest.raises(OSError) as caught:
        tree.create("lone\ud800surrogate")
    assert caught.value.errno == errno.EILSEQ


def test_names_are_utf8_whatever_the_locale_says(tmp_path: Path) -> None:
    (tmp_path / "é").write_bytes(b"")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from protocol.tree.posix import PosixTree\n"
        "t = PosixTree.open_tree(sys.argv[1])\n"
        "t.write_bytes('\\u00fc', b'x')\n"
        "assert sys.getfilesystemencoding() not in ('utf-8', 'utf8')\n"
        "assert [n for n, _ in t.scan('')] == ['\\u00e9', '\\u00fc'], list(t.scan(''))\n"
        "assert t.names('') == {'\\u00e9', '\\u00fc'}\n"
        "assert [g.names for g in t.glance('')] == [['\\u00e9', '\\u00fc']]\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path), str(root)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0, done.stderr


def test_a_fifo_never_blocks_and_is_not_read(tree: PosixTree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert tree.stat("fifo").kind is Kind.OTHER
    for call in (tree.open_read, lambda p: tree.read_bytes(p, 10), lambda p: tree.set_executable(p, True)):
        with pytest.raises(OSError):
            call("fifo")


def test_a_file_removed_while_a_folder_is_scanned_is_left_out(tree: PosixTree, tmp_path: Path) -> None:
    for name in "abc":
        tree.write_bytes(name, b"")
    scan = tree.scan("")
    assert next(scan)[0] == ".dsg"
    (tmp_path / "b").unlink()
    assert [name for name, _ in scan] == ["a", "c"]


def test_a_file_removed_during_a_glance_is_left_out(tree: PosixTree, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        tree.write_bytes(name, b"")
    stats = dict(tree.scan(""))
    listed = posix._names_in
    monkeypatch.setattr(posix, "_names_in", lambda fd: [*listed(fd), "aa", "d"])
    (glance,) = tree.glance("")
    assert glance.names == [".dsg", "a", "b", "c"]
    assert [inode for _, _, inode, _ in glance.numbers] == [stats[name].inode for name in glance.names]
    assert glance.kinds == {".dsg": Kind.FOLDER}


def test_what_is_no_file_in_a_glance(tree: PosixTree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    tree.symlink("x", "link")
    (glance,) = tree.glance("")
    assert glance.kinds == {".dsg": Kind.FOLDER, "fifo": Kind.OTHER, "link": Kind.LINK}
    assert glance.numbers[1] == () and len(glance.numbers[2]) == 4


# Holes


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_holes_are_written_found_and_copied(tree: PosixTree, tmp_path: Path) -> None:
    made = tree.create("sparse")
    made.write(b"head")
    made.skip((64 << 20) - 4)
    made.write(b"x" * 8192)
    made.skip(64 << 20)
    size = made.finish(executable=False, mtime_ns=None).size
    assert size == (128 << 20) + 8192
    assert blocks(tmp_path / "sparse") < 1 << 20
    reading = tree.open_read("sparse")
    holes = list(reading.holes())
    if not holes:
        pytest.skip("this file system does not tell where holes are; put the temporary folder on ext4 or xfs")
    assert reading.read(4) == b"head"
    reading.close()
    assert all(length > 0 for _, length in holes)
    assert sum(length for _, length in holes) > 120 << 20
    assert holes[-1][0] + holes[-1][1] == size

    staging = Staging(tree, "tx")
    staging.open()
    expected = Expected.of(tree.stat("sparse"))
    copied = staging.copy(3, "sparse", expected, executable=True, mtime_ns=12345)
    stat = tree.stat(staging.path(3))
    assert (stat.size, stat.mtime_ns, stat.executable) == (size, 12345, True)
    assert (copied.size, copied.inode, copied.executable) == (size, stat.inode, True)
    assert blocks(tmp_path / staging.path(3)) < 1 << 20
    with open(tmp_path / "sparse", "rb") as a, open(tmp_path / staging.path(3), "rb") as b:
        while piece := a.read(1 << 20):
            assert piece == b.read(1 << 20)


@pytest.mark.parametrize("content", [b"", b"x", b"ab" * 300_000])
@pytest.mark.parametrize("kernel", [True, False], ids=["copy_file_range", "read-write"])
def test_copies_are_exact(
    tree: PosixTree, content: bytes, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    tree.write_bytes("a", content)
    staging = Staging(tree, "tx")
    staging.open()
    staging.copy(0, "a", None, executable=False, mtime_ns=None)
    assert tree.read_bytes(staging.path(0), 1 << 20) == content


def test_a_source_that_is_not_what_was_expected_is_not_copied(tree: PosixTree, tmp_path: Path) -> None:
    tree.write_bytes("a", b"one")
    expected = Expected.of(tree.stat("a"))
    (tmp_path / "a").write_bytes(b"two!")
    staging = Staging(tree, "tx")
    staging.open()
    with pytest.raises(SourceChangedError):
        staging.copy(0, "a", expected, executable=False, mtime_ns=None)
    assert tree.names(staging.folder) == set()


@pytest.mark.parametrize("how", ["longer", "shorter"])
def test_a_source_that_changes_while_it_is_copied(tree: PosixTree, tmp_path: Path, how: str) -> None:
    tree.write_bytes("a", b"one" * 1000)

    def change(number: int, name: str, arguments: tuple[object, ...]) -> None:
        if name == "create":
            with open(tmp_path / "a", "r+b") as file:
                file.truncate(5000 if how == "longer" else 10)

    staging = Staging(Recorder(tree, before=change), "tx")
    staging.open()
    with pytest.raises(SourceChangedError):
        staging.copy(0, "a", None, executable=False, mtime_ns=None)
    assert tree.names(staging.folder) == set()


# Modes and groups


@pytest.mark.parametrize(("umask", "plain", "executable"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_modes_follow_the_umask(
    tree: PosixTree, tmp_path: Path, umask: int, plain: int, executable: int
) -> None:
    previous = os.umask(umask)
    try:
        tree.create("plain").finish(executable=False, mtime_ns=None)
        tree.create("run").finish(executable=True, mtime_ns=None)
        tree.mkdir("folder")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == plain
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == executable
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) & 0o777 == executable
    tree.set_executable("plain", True)
    tree.set_executable("run", False)
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == executable
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == plain


@pytest.mark.needs("root")
@pytest.mark.parametrize("modern", [True, False], ids=["modern", "plain"])
def test_two_accounts_of_a_group_change_and_recover_one_tree(tmp_path: Path, modern: bool) -> None:
    """Ann's killed transaction is finished by Bob, whose own replaces Ann's files."""
    ann, bob, group = 61001, 61002, 61009
    reachable(tmp_path)
    root = tmp_path / "shared"
    root.mkdir()
    os.chown(root, ann, group)
    root.chmod(0o2775)
    syscalls = system() if modern else Syscalls()

    def opened() -> PosixTree:
        return PosixTree.open_tree(str(root), syscalls=syscalls)

    def killed(allowed: int) -> None:
        tree = opened()
        build(tree)
        try:
            commit(Recorder(tree, allowed=allowed, skip_flushes=True), Unexpected.RESCUE, [])
        except Killed:
            pass

    def finished() -> None:
        tree = opened()
        applied = recover(tree, Unexpected.RESCUE)
        assert applied is not None
        assert not applied.held
        assert not applied.rescued
        assert contents(tree) == AFTER

    # Half applied: the decision is the 40th operation or so, the end the 100th.
    as_account(ann, ann, [group], 0o002, lambda: killed(70))
    as_account(bob, bob, [group], 0o002, finished)
    owners = set()
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            found = os.lstat(os.path.join(folder, name))
            owners.add(found.st_uid)
            assert found.st_gid == group, name
            if not stat.S_ISLNK(found.st_mode):
                assert found.st_mode & 0o060 == 0o060, name
            if stat.S_ISDIR(found.st_mode):
                assert found.st_mode & stat.S_ISGID, name
    assert owners == {ann, bob}


# Flushing


def fsynced(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    seen: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        seen.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc")
def test_without_a_trusted_syncfs_every_file_and_folder_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = PosixTree.open_tree(str(tmp_path), syscalls=Syscalls())
    seen = fsynced(monkeypatch, tmp_path)
    tree.make_folders("a/b")
    made = tree.create("a/b/file")
    made.write(b"x")
    made.finish(executable=False, mtime_ns=None)
    assert seen == ["a/b/file"]
    tree.make_folders("c/d")
    tree.move("a/b", "c/e")  # b was changed, and is flushed under its new name
    tree.symlink("x", "c/d/link")
    tree.set_executable("c/e/file", True)
    tree.flush()
    assert sorted(set(seen)) == [".", "a", "a/b/file", "c", "c/d", "c/e", "c/e/file"]
    seen.clear()
    tree.flush()
    assert seen == []


@pytest.mark.skipif(system().syncfs is None, reason="this system has no syncfs")
def test_with_syncfs_one_call_flushes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    tree = PosixTree.open_tree(
        str(tmp_path), syscalls=system().but(syncfs=calls.append, syncfs_trusted=lambda fd: True)
    )
    seen = fsynced(monkeypatch, tmp_path)
    for i in range(20):
        tree.create(f"{i}").finish(executable=False, mtime_ns=None)
    assert seen == []
    tree.flush()
    assert len(calls) == 1
    tree.write_bytes("small", b"durable by itself")
    tree.create("big").finish(executable=False, mtime_ns=None, durable=True)
    assert seen == ["small", "big"]


@pytest.mark.parametrize("offered", [True, False])
def test_a_large_file_goes_to_the_disk_while_it_is_written(tmp_path: Path, offered: bool) -> None:
    begun: list[tuple[int, int]] = []

    def begin(fd: int, offset: int, length: int) -> None:
        assert os.fstat(fd).st_size == offset + length
        begun.append((offset, length))
        if real is not None:
            real(fd, offset, length)

    real = system().begin_flush
    tree = PosixTree.open_tree(str(tmp_path), syscalls=system().but(begin_flush=begin if offered else None))
    tree.create("small").finish(executable=False, mtime_ns=None)
    made = tree.create("large")
    piece = os.urandom(1 << 20) + b"x"
    for _ in range(40):
        made.write(piece)
    made.finish(executable=False, mtime_ns=None)
    assert tree.read_bytes("large", 1 << 30) == piece * 40
    if not offered:
        assert begun == []
        return
    # Without gap or overlap, but for the end, which is the flush's.
    assert len(begun) > 3
    ends = [offset + length for offset, length in begun]
    assert [offset for offset, _ in begun] == [0, *ends[:-1]]
    assert len(piece) * 40 - ends[-1] < 16 << 20


def test_a_failed_flush_is_never_forgotten(tmp_path: Path) -> None:
    calls = []

    def fails_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, "the disk said no")

    tree = PosixTree.open_tree(
        str(tmp_path), syscalls=system().but(syncfs=fails_once, syncfs_trusted=lambda fd: True)
    )
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            tree.flush()
        assert caught.value.errno == errno.EIO
    # A second try would have been told that all is well.
    assert len(calls) == 1


# Locks, probing, the fallback of place


def test_a_lock_holds_against_another_process_and_ends_with_it(tree: PosixTree, tmp_path: Path) -> None:
    tree.write_bytes(".dsg/lock", b"")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from protocol.tree.posix import PosixTree\n"
        "held = PosixTree.open_tree(sys.argv[1]).lock('.dsg/lock')\n"
        "print(held is not None, flush=True)\n"
        "sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parents[3])]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert tree.lock(".dsg/lock") is None
        other.kill()
        other.wait()
    mine = tree.lock(".dsg/lock")
    assert mine is not None
    # A child that was given the descriptor goes on holding it.
    with subprocess.Popen(["sleep", "30"], pass_fds=[mine.fileno()]) as child:
        mine.release()
        assert tree.lock(".dsg/lock") is None
        child.kill()
        child.wait()
    assert tree.lock(".dsg/lock") is not None


def test_probing_finds_what_is_there(tree: PosixTree) -> None:
    found = tree.capabilities
    assert found.executable_bit
    assert found.symlinks
    assert found.place == found.swap == (system().rename_swap is not None)
    assert found.time_grain_ns > 0
    assert found.case_sensitive == (sys.platform != "darwin")
    assert tree.capabilities is found


@pytest.mark.needs("root")
def test_probing_writes_nothing_where_it_may_not(tmp_path: Path) -> None:
    reachable(tmp_path)
    (tmp_path / ".dsg").mkdir()

    def check() -> None:
        found = PosixTree.open_tree(str(tmp_path)).capabilities
        assert found.case_sensitive
        assert not found.swap

    as_account(61001, 61001, [], 0o022, check)
    assert os.listdir(tmp_path) == [".dsg"]


def test_probing_is_not_fooled_by_a_sweep(tree: PosixTree) -> None:
    swept: list[str] = []

    def sweeping(source: str, target: str) -> None:
        if not swept:
            swept.extend(sweep(tree))
        tree._place_at_once(source, target)

    assert probe(tree, sweeping) == tree.capabilities
    assert len(swept) == 1
    assert tree.names(".dsg/tmp") == set()


def test_place_without_the_system_call_replaces_nothing(tmp_path: Path) -> None:
    tree = PosixTree.open_tree(str(tmp_path), syscalls=Syscalls())
    for name in ("a", "b"):
        tree.write_bytes(name, name.encode())
    inode = tree.stat("a").inode
    with pytest.raises(FileExistsError):
        tree.place("a", "b")
    tree.place("a", "c")
    assert (tree.stat("c").inode, tree.stat("c").nlink) == (inode, 1)
    assert tree.names("") == {"b", "c"}


def test_a_place_stopped_between_link_and_unlink_is_finished(tmp_path: Path) -> None:
    from protocol.tree.change import Action, Journal, apply

    tree = PosixTree.open_tree(str(tmp_path), syscalls=Syscalls())
    staging = Staging(tree, "tx")
    staging.open()
    made = staging.create(0)
    made.write(b"new")
    staged = staging.staged(0, made.finish(executable=False, mtime_ns=None))
    os.link(tmp_path / staging.path(0), tmp_path / "a")
    applied = apply(tree, Journal("tx", "m", (0, 0), {}, [Action("a", None, staged)]), Unexpected.KEEP)
    assert applied.unsure == ["a"]
    assert not applied.held
    assert tree.names(staging.folder) == set()
    assert tree.stat("a").nlink == 1

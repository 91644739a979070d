"""``dsg init --from-dataset``: a dataset that has files already, and people who sync with it from then on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.oracle import File, photograph
from tests.e2e.zfs import ZfsPeople, ZfsWorld

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root", "sshd", "ssh-keygen")]

THERE = {
    "input/same.csv": b"1\n",
    "input/differs.csv": b"2\n",
    "input/there.csv": b"3\n",
    "doc/notes.txt": b"4\n",
}


@pytest.fixture
def world(zfs_people: ZfsPeople, tmp_path: Path) -> Iterator[ZfsWorld]:
    with zfs_people.zfs.entered():
        yield ZfsWorld(zfs_people, tmp_path)


@pytest.fixture
def old(world: ZfsWorld) -> Iterator[tuple[str, Path]]:
    """A dataset with files, and where it is mounted."""
    folder = world.root.folder.with_name(f"{world.root.folder.name}-data")
    dataset = f"{world.zfs.pool}/{folder.name}"
    world.zfs.zfs("create", "-o", f"mountpoint={folder}", dataset)
    for path, content in THERE.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    yield dataset, folder
    world.zfs.attempt("zfs", "destroy", "-r", dataset)
    if folder.is_symlink():
        folder.unlink()


def test_two_people_sync_with_what_was_there(world: ZfsWorld, old: tuple[str, Path]) -> None:
    dataset, folder = old
    ann = world.client("ann")
    ann.put_all({"input/same.csv": File(b"1\n"), "input/here.csv": File(b"5\n")})
    ended = ann.must("init", world.address, "--from-dataset", dataset)
    assert "s0 with 4 files" in ended.out and "1 are the same here, 0 differ, 1 are only here, 2" in ended.out
    assert "1 of the 4 files there are out of this project's scope" in ended.err, ended
    assert ann.local() == {"input/same.csv": File(b"1\n"), "input/here.csv": File(b"5\n")}, "nothing moved"
    changes = ann.must("status", "--json").document["changes"]
    assert changes["upload"] == ["input/here.csv"]
    assert changes["download"] == ["input/differs.csv", "input/there.csv"]
    bob = world.clone("bob")
    data = {path: File(content) for path, content in THERE.items() if path.startswith("input/")}
    assert bob.local() == data
    ann.must("sync", "-m", "first")
    assert (folder / "input" / "here.csv").read_bytes() == b"5\n", "the old path shows what is current"
    bob.must("sync")
    bob.write("input/there.csv", b"6\n")
    bob.path("input/same.csv").unlink()
    bob.must("sync", "-m", "second")
    ann.must("sync")
    assert ann.local() == bob.local()
    assert (folder / "input" / "there.csv").read_bytes() == b"6\n"
    assert not (folder / "input" / "same.csv").exists()
    assert (folder / "doc" / "notes.txt").read_bytes() == b"4\n", "out of scope, and kept"
    assert os.readlink(folder) == str(world.repository)
    assert world.remote().check().head.seq == 2
    assert "0" in ann.must("log").out
    world.settled()


def test_what_differs_here_is_a_conflict_and_stays(world: ZfsWorld, old: tuple[str, Path]) -> None:
    """Nothing is lost on either side; and the same init again goes on after a lost answer."""
    dataset, folder = old
    ann = world.client("ann")
    ann.put_all({"input/same.csv": File(b"1\n"), "input/differs.csv": File(b"mine\n")})
    document = ann.must("init", world.address, "--from-dataset", f"zfs:{dataset}", "--json").document
    counts = ("files", "same", "differ", "only_local", "only_remote", "seq")
    assert [document[key] for key in counts] == [4, 1, 1, 0, 1, 0]
    ended = ann.sync()
    assert ended.status == 3 and "input/differs.csv" in ended.out, ended
    assert ann.local()["input/differs.csv"] == File(b"mine\n")
    assert (folder / "input" / "differs.csv").read_bytes() == b"2\n"
    # Before the connection with the folder was written down.
    bea = world.client("bea")
    again = bea.must("init", world.address, "--from-dataset", dataset, "--json").document
    assert again["repo_id"] == document["repo_id"] and again["only_remote"] == 3
    # A plain init takes it for nobody's empty one.
    cat = world.client("cat")
    ended = cat.dsg("init", world.address)
    assert ended.status == 4 and "in use" in ended.err, ended
    ann.must("sync", "--prefer", "remote")
    assert ann.local()["input/differs.csv"] == File(b"2\n")


def test_refusals_come_before_anything_is_done(world: ZfsWorld, old: tuple[str, Path]) -> None:
    dataset, folder = old
    before = world.zfs.zfs("list", "-H", "-r", "-t", "all", "-o", "name", world.zfs.pool)
    ann = world.client("ann")
    untouched = photograph(ann.folder)
    (folder / "input" / "fifo").unlink(missing_ok=True)
    os.mkfifo(folder / "input" / "fifo")
    ended = ann.dsg("init", world.address, "--from-dataset", dataset)
    assert ended.status == 12 and "input/fifo" in ended.err, ended
    (folder / "input" / "fifo").unlink()
    ended = ann.dsg("init", f"data-host:{folder}-2", "--from-dataset", dataset)
    assert ended.status == 2 and "zfs:POOL" in ended.err, ended
    # What cannot be synced here is found first.
    os.mkfifo(ann.path("fifo"))
    (ann.folder / "input").mkdir()
    os.rename(ann.path("fifo"), ann.path("input/fifo"))
    ended = ann.dsg("init", world.address, "--from-dataset", dataset)
    assert ended.status == 12 and "fifo" in ended.err, ended
    ann.path("input/fifo").unlink()
    (ann.folder / "input").rmdir()
    assert photograph(ann.folder) == untouched
    assert world.zfs.zfs("list", "-H", "-r", "-t", "all", "-o", "name", world.zfs.pool) == before

"""Files, folders and links that take each other's place; empty files, sparse files, modes and times."""

from __future__ import annotations

import itertools
import os
import stat
import time
from pathlib import Path

import pytest

from tests.e2e.near import NearPeople, NearWorld
from tests.e2e.oracle import File, Link, Tree, photograph
from tests.e2e.world import Client, World

pytestmark = pytest.mark.slow

KEEP: Tree = {"input/keep": File(b"stays\n"), "output/keep": File(b"stays too\n")}
PATH = "input/thing"
INDEX = {".dsg/index", ".dsg/index.late"}

# What can stand at a place: paths relative to it, "" for itself.
SHAPES: dict[str, Tree] = {
    "nothing": {},
    "file": {"": File(b"one\n")},
    "other file": {"": File(b"two\n")},
    "program": {"": File(b"one\n", executable=True)},
    "empty file": {"": File(b"")},
    "link": {"": Link("keep")},
    "dangling link": {"": Link("nowhere")},
    "link to a folder": {"": Link("../output")},
    "folder": {"/a": File(b"a\n"), "/deep/er/b": File(b"b\n"), "/deep/l": Link("er")},
    "other folder": {"/deep/er": File(b"was a folder\n"), "/A.txt": File(b"")},
}
PAIRS = list(itertools.permutations(SHAPES, 2))


# No conflict where both can stand together: folders merge, and what one deletes needs no place.
MERGING = {"nothing", "folder", "other folder"}
CONFLICTS = [pair for pair in PAIRS if not MERGING.issuperset(pair)]


def standing(place: str, shape: str) -> Tree:
    return {place + path: version for path, version in SHAPES[shape].items()}


def place_of(pair: tuple[str, str]) -> str:
    return f"input/{pair[0]} and {pair[1]}"


def all_at(side: int, pairs: list[tuple[str, str]] = PAIRS) -> Tree:
    """Every pair at its first (0) or second (1) shape."""
    return KEEP | {k: v for pair in pairs for k, v in standing(place_of(pair), pair[side]).items()}


def reshape(client: Client, shape: str, place: str = PATH) -> None:
    """Put ``shape`` where the last one was."""
    client.put(place, None)
    client.put_all(standing(place, shape))


def check_folders(folder: Path, tree: Tree) -> None:
    """No folder but those that the tree's paths need."""
    needed = {str(parent) for path in tree for parent in Path(path).parents}
    found = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if stat.S_ISDIR(path.lstat().st_mode)
    }
    assert {path for path in found if path.split("/")[0] != ".dsg"} <= needed


@pytest.fixture(scope="module")
def both(near_people: NearPeople, tmp_path_factory: pytest.TempPathFactory) -> NearWorld:
    """Ann and bob in step, with KEEP and a file that each test replaces."""
    world = NearWorld(near_people, tmp_path_factory.mktemp("shapes"))
    ann = world.init("ann", "--ignore", "*.tmp")
    ann.put_all(KEEP)
    reshape(ann, "file")
    ann.must("sync")
    world.clone("bob")
    return world


def test_every_shape_becomes_every_other_and_back_on_each_side(near: NearWorld) -> None:
    ann = near.init("ann")
    ann.put_all(all_at(0))
    ann.must("sync")
    bob = near.clone("bob")
    assert bob.local() == all_at(0)
    for mine, other, side in ((ann, bob, 1), (bob, ann, 0)):
        for pair in PAIRS:
            reshape(mine, pair[side], place_of(pair))
        mine.must("sync", "--allow-mass-delete")
        other.must("sync", "--allow-mass-delete")
        assert mine.local() == other.local() == near.remote().check().live == all_at(side)
        for folder in (mine.folder, other.folder, near.repository):
            check_folders(folder, all_at(side))


def test_two_shapes_in_one_place_conflict(near: NearWorld, tmp_path: Path) -> None:
    ann = near.init("ann")
    start = {place_of(pair): File(b"at first\n") for pair in CONFLICTS}
    ann.put_all(KEEP | start)
    ann.must("sync")
    bob = near.clone("bob")
    for pair in CONFLICTS:
        reshape(ann, pair[0], place_of(pair))
        reshape(bob, pair[1], place_of(pair))
    ann.must("sync", "--allow-mass-delete")
    before = photograph(bob.folder, without=INDEX), near.remote().head
    refused = bob.sync()
    assert refused.status == 3, refused
    assert (photograph(bob.folder, without=INDEX), near.remote().head) == before
    paths = [c["path"] for c in refused.document["error"]["facts"]["conflicts"]]
    for pair in CONFLICTS:
        assert any(path.startswith(place_of(pair)) for path in paths), f"{pair} is no conflict"
    for prefer, side in (("remote", 0), ("local", 1)):
        chosen = near.copy(tmp_path / prefer)
        chosen.clients["bob"].must("sync", "--prefer", prefer, "--allow-mass-delete")
        chosen.clients["ann"].must("sync", "--allow-mass-delete")
        for found in (chosen.clients["bob"].local(), chosen.clients["ann"].local()):
            assert found == chosen.remote().check().live == all_at(side, CONFLICTS)


@pytest.mark.needs("sshd", "ssh-keygen")
def test_shapes_change_over_ssh(world: World) -> None:
    ann = world.init("ann")
    ann.put_all(all_at(0))
    ann.must("sync")
    bob = world.clone("bob")
    for pair in PAIRS:
        reshape(ann, pair[1], place_of(pair))
    ann.must("sync", "--allow-mass-delete")
    bob.must("sync", "--allow-mass-delete")
    assert ann.local() == bob.local() == world.remote().check().live == all_at(1)


def test_a_folder_with_an_ignored_file_is_not_replaced(both: NearWorld, tmp_path: Path) -> None:
    world = both.copy(tmp_path)
    ann, bob = world.clients["ann"], world.clients["bob"]
    reshape(ann, "folder")
    ann.must("sync")
    bob.must("sync")
    bob.write(f"{PATH}/deep/mine.tmp", b"not synced\n")
    reshape(ann, "file")
    ann.must("sync")

    before = photograph(bob.folder, without=INDEX)
    refused = bob.sync()
    assert refused.status == 12, refused
    assert [p["path"] for p in refused.document["error"]["facts"]["paths"]] == [PATH]
    assert f"{PATH}/deep/mine.tmp" in refused.document["error"]["message"]
    assert photograph(bob.folder, without=INDEX) == before

    bob.path(f"{PATH}/deep/mine.tmp").unlink()
    bob.must("sync")
    assert bob.local() == KEEP | standing(PATH, "file")


def test_a_folder_with_an_ignored_file_stays_when_its_files_go(both: NearWorld, tmp_path: Path) -> None:
    world = both.copy(tmp_path)
    ann, bob = world.clients["ann"], world.clients["bob"]
    reshape(ann, "folder")
    ann.must("sync")
    bob.must("sync")
    bob.write(f"{PATH}/deep/mine.tmp", b"not synced\n")
    reshape(ann, "nothing")
    ann.must("sync")
    bob.must("sync")
    assert bob.local() == KEEP | {f"{PATH}/deep/mine.tmp": File(b"not synced\n")}
    assert not bob.path(f"{PATH}/deep/er").exists()


def test_a_server_folder_with_a_file_of_nobody_is_not_replaced(both: NearWorld, tmp_path: Path) -> None:
    world = both.copy(tmp_path)
    ann = world.clients["ann"]
    reshape(ann, "folder")
    ann.must("sync")
    # Out of ann's scope, so that it blocks no other sync.
    foreign = world.repository / PATH / "deep" / "theirs.tmp"
    foreign.write_bytes(b"on the server\n")
    reshape(ann, "file")
    before = photograph(ann.folder, without=INDEX), world.remote().head
    refused = ann.sync()
    assert refused.status in (9, 12, 16), refused
    assert "theirs.tmp" in refused.out
    assert (photograph(ann.folder, without=INDEX), world.remote().head) == before
    assert foreign.read_bytes() == b"on the server\n"
    foreign.unlink()
    ann.must("sync")
    assert world.remote().check().live == KEEP | standing(PATH, "file")


def test_an_executable_bit_and_a_time_survive_a_round_trip(both: NearWorld, tmp_path: Path) -> None:
    world = both.copy(tmp_path)
    ann, bob = world.clients["ann"], world.clients["bob"]
    times = {"input/odd": 1_000_000_000_123_456_789, "input/old": 1, "output/run.sh": 1_700_000_000 * 10**9}
    for path, mtime_ns in times.items():
        ann.put(path, File(path.encode(), path.endswith(".sh")))
        os.utime(ann.path(path), ns=(mtime_ns, mtime_ns))
    ann.must("sync")
    bob.must("sync")
    for path, mtime_ns in times.items():
        for folder in (world.repository, bob.folder):
            found = (folder / path).stat()
            assert (found.st_mtime_ns, bool(found.st_mode & 0o100)) == (mtime_ns, path.endswith(".sh"))
    bob.path("output/run.sh").chmod(0o644)
    bob.path("input/odd").chmod(0o755)
    bob.must("sync")
    ann.must("sync")
    assert not ann.path("output/run.sh").stat().st_mode & 0o111
    assert ann.path("input/odd").stat().st_mode & 0o111
    # A changed bit is no new content, and does not touch the time.
    assert ann.path("input/odd").stat().st_mtime_ns == times["input/odd"]


def test_a_touched_file_is_no_change(both: NearWorld, tmp_path: Path) -> None:
    world = both.copy(tmp_path)
    ann = world.clients["ann"]
    ann.path(PATH).touch()
    head = world.remote().head
    assert ann.sync().document["state"] == "nothing"
    assert world.remote().head == head


def test_an_edit_of_the_same_size_with_its_time_put_back_is_uploaded(both: NearWorld, tmp_path: Path) -> None:
    world = both.copy(tmp_path)
    ann = world.clients["ann"]
    time.sleep(0.05)
    ann.must("sync")  # the index knows the file for sure
    target = ann.path(PATH)
    before = target.stat()
    target.write_bytes(b"ONE\n")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert target.stat().st_mtime_ns == before.st_mtime_ns
    assert ann.sync().document["changes"]["upload"] == [PATH]
    assert (world.repository / PATH).read_bytes() == b"ONE\n"


def test_a_sync_with_nothing_to_do_changes_nothing(both: NearWorld, tmp_path: Path) -> None:
    world = both.copy(tmp_path)
    ann = world.clients["ann"]
    ann.must("sync")
    lock = {".dsg/lock", ".dsg/lock.holder"}
    before = photograph(ann.folder, without=INDEX | lock), photograph(world.repository, folder_times=True)
    assert ann.sync().document["state"] == "nothing"
    after = photograph(ann.folder, without=INDEX | lock), photograph(world.repository, folder_times=True)
    assert after == before


def test_a_download_changes_nobodys_attribution(both: NearWorld, tmp_path: Path) -> None:
    world = both.copy(tmp_path)
    ann, bob = world.clients["ann"], world.clients["bob"]
    ann.put("input/hers", File(b"ann's\n"))
    ann.must("sync")
    bob.must("sync")
    bob.put("input/his", File(b"bob's\n"))
    bob.must("sync")
    ann.must("sync")
    manifest = world.remote().check().manifests[-1].entries
    who = {path: (entry.who, entry.seq) for path, entry in manifest.items()}
    assert who["input/hers"] == ("ann <ann@lab.example>", 2)
    assert who["input/his"] == ("bob <bob@lab.example>", 3)
    for client in (ann, bob):
        assert {path: (e.who, e.seq) for path, e in client.cache().entries.items()} == who


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_sparse_file_of_5_gb_stays_sparse(near: NearWorld) -> None:
    size, island = 5 * 10**9, 3 * 10**9 + 4096 * 7
    if not makes_holes(near.folder):
        pytest.skip("this file system keeps no holes; set TMPDIR to a folder on ext4, xfs, btrfs or tmpfs")
    ann = near.init("ann")
    target = ann.path("input/big")
    target.parent.mkdir()
    with target.open("wb") as file:
        file.write(b"begin")
        file.seek(island)
        file.write(b"island")
        file.truncate(size)
    begun = time.monotonic()
    ann.must("sync")
    bob = near.clone("bob")
    took = time.monotonic() - begun
    for found in (near.repository / "input/big", bob.path("input/big")):
        assert found.stat().st_size == size
        assert blocks(found) < 1 << 20, f"{found} takes {blocks(found):,} bytes on the disk"
        with found.open("rb") as file:
            assert file.read(6) == b"begin\0"
            file.seek(island)
            assert file.read(7) == b"island\0"
    assert took < 150, f"{took:.0f} s"
    assert near.remote().head.size == size


def makes_holes(folder: Path) -> bool:
    probe = folder / "probe"
    with probe.open("wb") as file:
        file.truncate(1 << 24)
    try:
        return blocks(probe) < 1 << 20
    finally:
        probe.unlink()

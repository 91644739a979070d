"""A ZFS repository among people: readers beside syncs, somebody in an old tree, edits on the server."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.holders import holders
from dsg_remote_agent.storage.zfs.survey import take_survey
from protocol.errors import DsgError, OutsideChangeError
from protocol.messages import InitRepo, Recover
from tests.agent.client import Client, tree_of
from tests.agent.spots import ZfsSpot
from tests.conftest import find_program
from tests.crash.scene import FULL
from tests.hosts.zfs_wrapper import ZfsWrapper, forbidden

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root"), pytest.mark.timeout(600)]

NAMES = [f"d{n % 3}/f{n:02d}" for n in range(12)]


def version(seq: int) -> dict[str, bytes]:
    return {name: f"{name} in {seq}\n".encode() * 20 for name in NAMES}


@pytest.fixture
def repo(zfs_spot: ZfsSpot) -> ZfsSpot:
    with Client() as client:
        client.init(zfs_spot.address)
        client.open(zfs_spot.address)
        client.sync("tx-start-0001", version(1))
    return zfs_spot


# Readers


def test_a_reader_on_the_server_never_misses_a_file(repo: ZfsSpot) -> None:
    """By path it finds every file, whole; through one descriptor it sees one snapshot for ever."""
    held = os.open(repo.folder, os.O_RDONLY | os.O_DIRECTORY)
    over = threading.Event()
    trouble: list[str] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        while not over.is_set():
            folder = os.open(repo.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                seen = set()
                for name in NAMES:
                    fd = os.open(name, os.O_RDONLY, dir_fd=folder)
                    seen.add(os.read(fd, 1000).split(b"\n")[0].split()[-1])
                    os.close(fd)
                if len(seen) != 1:
                    trouble.append(f"a mixture: {seen}")
                for name in NAMES:
                    (repo.folder / name).read_bytes()
                    reads += 1
            except OSError as error:
                trouble.append(repr(error))
            finally:
                os.close(folder)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for seq in range(2, 52):
            with Client() as client:
                client.open(repo.address)
                client.sync(f"tx-reader-{seq:04d}", version(seq))
    finally:
        over.set()
        reader.join()
    assert trouble == [] and reads > 1000
    for name in NAMES:
        fd = os.open(name, os.O_RDONLY, dir_fd=held)
        assert os.read(fd, 1000).startswith(f"{name} in 1\n".encode())
        os.close(fd)
    assert repo.generations() == ["g1", "g51"], "all but the one that is read are gone"
    os.close(held)
    with Client() as client:
        client.open(repo.address)
        client.call(Recover(repo=client.handle))
    repo.check_clean()
    assert len(repo.snapshots()) == 52


# Somebody in the old tree


def test_somebody_sits_in_the_old_tree(repo: ZfsSpot) -> None:
    old = os.path.realpath(repo.folder)
    shell = subprocess.Popen([sys.executable, "-c", "input()"], cwd=old, stdin=subprocess.PIPE)
    try:
        for seq in (2, 3, 4):
            with Client() as client:
                client.open(repo.address)
                client.sync(f"tx-sits-{seq:04d}", version(seq))
        assert repo.generations() == ["g1", "g4"]
        assert (Path(old) / NAMES[0]).read_bytes() == version(1)[NAMES[0]]
    finally:
        shell.communicate(b"\n")
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-leaves-0001", version(5))
    assert repo.generations() == ["g5"]
    repo.check_clean()


def test_at_the_bound_the_holder_is_named(repo: ZfsSpot, tmp_path: Path) -> None:
    """What uses an old snapshot keeps the head from being promoted: up to 16 generations, then it is told."""
    wrapper = ZfsWrapper(tmp_path / "wrapper")
    wrapper.busy("promote")
    old = os.path.realpath(repo.folder)
    shell = subprocess.Popen([sys.executable, "-c", "input()"], cwd=old, stdin=subprocess.PIPE)
    done = 0
    try:
        with Client(environment=wrapper.environment) as client:
            client.open(repo.address)
            with pytest.raises(DsgError, match="older generations") as caught:
                for done in range(30):
                    client.sync(f"tx-bound-{done:04d}", {NAMES[0]: b"%d" % done})
        assert done == 16 and caught.value.code == "remote_storage"
        assert any(f"process {shell.pid}" in who for who in caught.value.facts["holders"])
        # What was committed is there, old versions too, though nothing was promoted.
        assert (repo.folder / NAMES[0]).read_bytes() == b"15"
        with Client(environment=wrapper.environment) as client:
            record = client.open(repo.address)
            assert record.seq == 17
    finally:
        shell.communicate(b"\n")
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-bound-after", version(2))
    repo.check_clean()
    assert len(repo.snapshots()) == 19


def test_who_sends_an_old_snapshot_is_found(repo: ZfsSpot) -> None:
    """It has no file open in the tree, and is what keeps a head from being promoted."""
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-large-0001", {"large": os.urandom(1 << 20)})
    name = f"{repo.address.removeprefix('zfs:')}/g2"
    program = find_program("zfs")
    assert program is not None
    sender = subprocess.Popen([program, "send", f"{name}@s2"], stdout=subprocess.PIPE)
    try:
        generations = take_survey(Zfs.find(), repo.address.removeprefix("zfs:")).generations
        assert f"zfs (process {sender.pid})" in holders(generations.values())
        assert holders(g._replace(name=f"{name}1", mountpoint="") for g in generations.values()) == []
    finally:
        sender.kill()
        sender.communicate()


def test_what_is_written_to_the_old_tree_is_kept(repo: ZfsSpot) -> None:
    """A file open for writing when the sync froze the tree: zfs-fuse lets it go on."""
    with open(repo.folder / "notes.txt", "wb", buffering=0) as notes:
        with Client() as client:
            client.open(repo.address)
            # The new file is somebody's, outside of what is synced, and goes along.
            client.sync("tx-written-01", version(2))
        assert (repo.folder / "notes.txt").exists()
        notes.write(b"too late")
    with Client() as client:
        client.open(repo.address)
        notes_told = client.call(Recover(repo=client.handle)).notes
        client.sync("tx-written-02", version(3))
    kept = Path(repo.root.folder) / ".gen" / "repo" / "g1" / "notes.txt"
    if kept.exists():
        assert kept.read_bytes() == b"too late"
        assert any("g1 is kept" in note for note in notes_told)
        assert set(repo.generations()) == {"g1", "g3"}
    else:
        assert (repo.folder / "notes.txt").exists()
    assert tree_of(repo.folder).items() >= version(3).items()


def test_a_foreign_snapshot_is_kept(repo: ZfsSpot, tmp_path: Path) -> None:
    name = f"{repo.address.removeprefix('zfs:')}/g1@backup-of-tuesday"
    repo.host.zfs("snapshot", name)
    log = tmp_path / "log"
    with Client("--log-file", str(log)) as client:
        client.open(repo.address)
        client.sync("tx-foreign-01", version(2))
    (line,) = [line for line in log.read_text().splitlines() if "housekeeping" in line]
    assert "backup-of-tuesday" in json.loads(line)["note"]
    with Client() as client:
        client.open(repo.address)
        told = client.call(Recover(repo=client.handle)).notes
    assert "g1@backup-of-tuesday" in repo.snapshots()
    assert any("backup-of-tuesday" in note for note in told)
    repo.host.zfs("destroy", name)
    with Client() as client:
        client.open(repo.address)
        client.call(Recover(repo=client.handle))
    repo.check_clean()


# Edits on the server


def test_an_edit_stops_the_sync_and_can_be_undone(repo: ZfsSpot) -> None:
    path = repo.folder / NAMES[0]
    path.write_bytes(b"edited on the server")
    with Client() as client:
        client.open(repo.address)
        with pytest.raises(OutsideChangeError, match="changed outside DSG"):
            client.sync("tx-stopped-01", version(2))
    path.write_bytes(version(1)[NAMES[0]])
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-goes-on-01", version(2))
    repo.check_clean()


def test_an_edit_while_the_sync_runs_refuses_the_commit(repo: ZfsSpot) -> None:
    from tests.agent.client import changes_of, merged

    with Client() as client:
        base = client.open(repo.address)
        manifest = client.manifest()
        changes = changes_of({"new": b"x"}, [], {}, base.seq + 1)
        client.begin("tx-edited-001", base)
        client.stage("tx-edited-001", changes, {"new": b"x"})
        record = client.prepare("tx-edited-001", merged(manifest, changes))
        (repo.folder / NAMES[3]).write_bytes(b"edited meanwhile")
        with pytest.raises(OutsideChangeError, match="while the sync ran"):
            client.commit("tx-edited-001", record)
    # Nothing was changed, and people can go on writing.
    (repo.folder / NAMES[3]).write_bytes(version(1)[NAMES[3]])
    assert tree_of(repo.folder) == version(1)
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-after-0001", version(2))
    repo.check_clean()


def test_nobody_can_write_while_an_edit_is_adopted(repo: ZfsSpot) -> None:
    (repo.folder / NAMES[0]).write_bytes(b"edited on the server")
    with Client() as client:
        base = client.open(repo.address)
        client.begin("tx-adopts-001", base, adopt=True)
        with pytest.raises(OSError, match="Read-only"):
            (repo.folder / NAMES[1]).write_bytes(b"in between")
    # The client went away without a word: everything is as it was.
    (repo.folder / NAMES[1]).write_bytes(version(1)[NAMES[1]])
    assert repo.generations() == ["g1"] and repo.snapshots() == ["g1@s0", "g1@s1"]


# Space


def test_a_large_file_is_changed_in_place(repo: ZfsSpot) -> None:
    """The old snapshot's own space is what changed, not the file."""
    size = 16 << 20
    content = bytearray(os.urandom(size))

    def used_by(snapshot: str) -> int:
        name = f"{repo.address.removeprefix('zfs:')}/{repo.generations()[0]}@{snapshot}"
        return int(repo.host.zfs("get", "-H", "-p", "-o", "value", "used", name))

    with Client() as client:
        client.open(repo.address)
        client.sync("tx-large-0001", {"large": bytes(content)})
        content[5 << 20 : (5 << 20) + 100] = bytes(100)
        client.sync("tx-large-0002", {"large": bytes(content)})
    assert (repo.folder / "large").read_bytes() == content
    assert used_by("s2") < 1 << 20


def test_without_patching_it_is_there_twice(repo: ZfsSpot) -> None:
    """The control: under the limit a file is replaced, and the snapshot keeps all of the old one."""
    content = bytearray(os.urandom(900_000))
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-small-0001", {"small": bytes(content)})
        content[5] ^= 1
        client.sync("tx-small-0002", {"small": bytes(content)})
    name = f"{repo.address.removeprefix('zfs:')}/{repo.generations()[0]}@s2"
    assert int(repo.host.zfs("get", "-H", "-p", "-o", "value", "used", name)) > 800_000


# Making


def test_init_is_repeatable_after_each_command(zfs_spot: ZfsSpot, tmp_path: Path, rng: random.Random) -> None:
    """After each with ``DSG_FULL=1``, else after every third from some one on."""
    wrapper = ZfsWrapper(tmp_path / "wrapper")
    step = 1 if FULL else 3
    number = 1 - step if FULL else rng.randint(-2, 0)
    while True:
        number += step
        spot = ZfsSpot(
            f"{zfs_spot.address}{number}",
            zfs_spot.folder.with_name(f"repo{number}"),
            zfs_spot.host,
            zfs_spot.root,
        )
        wrapper.reset(after=(number, ""))
        killed = Client(environment=wrapper.environment)
        try:
            killed.init(spot.address)
            killed.close()
        except Exception:
            killed.process.wait(30)
        assert not [words for words in wrapper.commands() if forbidden(words)]
        with Client() as client:
            try:
                client.init(spot.address)
            except DsgError as error:
                assert "is in use" in error.message, error
            assert client.open(spot.address).seq == 0
            client.sync("tx-first-0001", {"a": b"1"})
        assert tree_of(spot.folder) == {"a": b"1"}
        assert spot.generations() == ["g1"]
        if len(wrapper.commands()) < number:
            break
    assert number > 10


def init_of(path: str) -> InitRepo:
    return InitRepo(
        path=path, repo_id="repo-0123456789", algorithm="sha256", group="", user="", host="", settings=""
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("zfs:{pool}", "pool"),
        ("zfs:no-such-pool/x/y", "no file system"),
        ("zfs:{root}", r"in use|no folder"),
        ("zfs:{root}/no/such/parent", "no file system"),
        ("zfs:{root}/taken", "in use"),
        ("zfs:{root}/folder", "exists"),
        ("zfs:{root}/-r", "no dataset"),
        ("zfs:{root}/x@s", "no dataset"),
        ("zfs:{root}/..", "no dataset"),
        ("zfs:{root}/x%y", "no dataset"),
    ],
)
def test_what_init_refuses(zfs_spot: ZfsSpot, name: str, why: str) -> None:
    host, root = zfs_spot.host, zfs_spot.root
    host.zfs("create", f"{root.dataset}/taken")
    (root.folder / "folder").mkdir()
    before = host.zfs("list", "-H", "-r", "-t", "all", "-o", "name", host.pool)
    with Client() as client:
        with pytest.raises(DsgError, match=why) as caught:
            client.call(init_of(name.format(pool=host.pool, root=root.dataset)))
        assert caught.value.hint
    assert host.zfs("list", "-H", "-r", "-t", "all", "-o", "name", host.pool) == before


def test_a_root_for_datasets_confines(repo: ZfsSpot) -> None:
    dataset = repo.address.removeprefix("zfs:")
    for roots, allowed in (
        (["--root", f"zfs:{repo.root.dataset}"], True),
        (["--root", f"zfs:{dataset}"], True),
        (["--root", f"zfs:{dataset}x"], False),
        (["--root", f"zfs:{repo.root.dataset}/re"], False),
        (["--root", str(repo.root.folder)], False),
        (["--root", "/srv", "--root", f"zfs:{repo.root.dataset}"], True),
    ):
        with Client(*roots) as client:
            try:
                assert client.open(repo.address).seq == 1 and allowed, roots
            except DsgError as error:
                assert error.code == "not_permitted" and not allowed, roots


def test_many_syncs_leave_one_generation(repo: ZfsSpot) -> None:
    with Client() as client:
        client.open(repo.address)
        for seq in range(2, 202):
            client.sync(f"tx-many-{seq:04d}", {NAMES[0]: b"%d" % seq})
        deadline = time.monotonic() + 10
        while len(repo.generations()) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
    repo.check_clean()
    assert len(repo.snapshots()) == 202
    held = repo.host.zfs("list", "-H", "-r", "-t", "snapshot", "-o", "userrefs", repo.root.dataset)
    assert set(held.split()) == {"0"}
    left = [path for area in ("staging", "tmp") for path in (repo.folder / ".dsg" / area).iterdir()]
    assert left == []
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    assert len([line for line in mounts if line.startswith(f"{repo.root.dataset}/")]) == 1

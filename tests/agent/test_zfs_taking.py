"""A dataset that has files becomes a repository: nothing is copied or lost, whatever stops it."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from dsg_remote_agent.storage.layout import ZFS, Marker
from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.taking import Wish, take_dataset
from protocol.errors import DsgError
from protocol.manifest import Manifest
from protocol.messages import GetSnapshot, OpenRepo
from protocol.records import SnapshotRecord
from tests.agent.client import AgentGone, Client, tree_of
from tests.agent.spots import ZfsSpot
from tests.crash.scene import FULL, until
from tests.hosts.zfs_wrapper import ZfsWrapper, forbidden

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root"), pytest.mark.timeout(600)]

# Properties that are set where nobody chose: a crash between them leaves what a crash after them does.
COMFORT = ("atime=", "setuid=", "devices=", "compression=", "xattr=", "acltype=", "com.sun:")
FILES = {"input/a.csv": b"one", "input/deep/er/b.csv": b"two" * 9000, "notes.txt": b"beside", "run.sh": b"#!"}


@frozen
class Old:
    """A dataset with files, mounted at ``folder``, and the place for a repository to be made of it."""

    spot: ZfsSpot
    dataset: str
    folder: Path

    @property
    def target(self) -> str:
        return self.spot.address.removeprefix("zfs:")

    def zfs(self, *words: str) -> str:
        """What it prints; zfs-fuse calls a file system busy for a moment after its last file was closed."""
        for attempt in range(10):
            time.sleep(0.05 * attempt)
            done = self.spot.host.attempt("zfs", *words)
            if "busy" not in done.stderr:
                break
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def datasets(self) -> str:
        """All that a refusal must leave as it was: datasets and snapshots, properties, mounts, links."""
        listed = self.zfs("list", "-H", "-r", "-t", "all", "-o", "name", self.spot.host.pool)
        words = (
            "get",
            "-H",
            "-o",
            "property,value,source",
            "mountpoint,canmount,readonly,mounted",
            self.dataset,
        )
        links = sorted(path.name for path in self.spot.root.folder.iterdir())
        return f"{listed}{self.zfs(*words)}{links}"

    def inodes(self, folder: Path) -> dict[str, tuple[int, int]]:
        """What would be others if a file were copied."""
        found = {path: (folder / path).stat() for path in FILES}
        return {path: (stat.st_ino, stat.st_ctime_ns) for path, stat in found.items()}

    def check_taken(self) -> None:
        """Assert that the repository holds all of it, and that every path leads there."""
        assert tree_of(self.spot.folder) == FILES
        assert tree_of(self.folder) == FILES
        assert os.readlink(self.folder) == str(self.spot.folder)
        with Client() as client:
            record = client.open(self.spot.address)
            assert (record.seq, record.entries, record.added) == (0, len(FILES), len(FILES))
            assert record.size == sum(map(len, FILES.values()))
            assert client.get(0, client.manifest()) == FILES
            base = client.head_and_manifest()[0]
            client.begin("tx-nothing-01", base)


@pytest.fixture
def make(zfs_spot: ZfsSpot, tmp_path: Path) -> Iterator[Callable[..., Old]]:
    made: list[Old] = []

    def build(number: int = 0, *options: str) -> Old:
        folder = zfs_spot.root.folder.with_name(f"{zfs_spot.root.folder.name}-old{number}")
        dataset = f"{zfs_spot.host.pool}/{folder.name}"
        spot = ZfsSpot(
            f"{zfs_spot.address}{number}",
            zfs_spot.folder.with_name(f"{zfs_spot.folder.name}{number}"),
            zfs_spot.host,
            zfs_spot.root,
        )
        zfs_spot.host.zfs("create", "-o", f"mountpoint={folder}", *options, dataset)
        for path, content in FILES.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        (folder / "run.sh").chmod(0o755)
        made.append(Old(spot, dataset, folder))
        return made[-1]

    yield build
    for old in made:
        zfs_spot.host.attempt("zfs", "destroy", "-r", old.dataset)
        if old.folder.is_symlink():
            old.folder.unlink()


@pytest.fixture
def old(make: Callable[..., Old]) -> Old:
    return make()


@pytest.fixture
def wrapper(tmp_path: Path) -> ZfsWrapper:
    return ZfsWrapper(tmp_path / "wrapper")


def test_files_become_s0_where_they_lie(old: Old) -> None:
    old.zfs("snapshot", f"{old.dataset}@before")
    old.zfs("set", "compression=on", old.dataset)
    inodes = old.inodes(old.folder)
    with Client() as client:
        record = client.take(old.spot.address, old.dataset)
        assert [note for note in client.notes if f"zfs set compression=on {old.target}" in note]
        assert client.take(old.spot.address, old.dataset) == record, "once more, as after a lost answer"
    assert old.inodes(old.spot.folder) == inodes
    old.check_taken()
    told = old.zfs("get", "-H", "-o", "value,source", "mountpoint,canmount,readonly", f"{old.target}/g0")
    at = f"{old.spot.root.folder}/.gen/{old.spot.folder.name}/g0"
    assert told.split("\n")[0].split("\t") == [at, f"inherited from {old.spot.root.dataset}"]
    assert "local" not in told.replace("on\tlocal", "")
    with Client() as client:
        client.open(old.spot.address)
        client.sync("tx-second-01", {"input/a.csv": b"changed", "new": b"n"}, ["notes.txt"])
        after = {**FILES, "input/a.csv": b"changed", "new": b"n"}
        del after["notes.txt"]
        assert tree_of(old.folder) == after, "the old path leads to what is current"
        assert client.get(0, _manifest_of(client, 0)) == FILES
    assert old.spot.generations() == ["g1"]
    assert sorted(old.spot.snapshots()) == ["g1@before", "g1@s0", "g1@s1"]
    with Client() as client, pytest.raises(DsgError, match="was taken over"):
        client.take(old.spot.address, old.dataset)


def _manifest_of(client: Client, seq: int) -> Manifest:
    client.call(GetSnapshot(repo=client.handle, seq=seq))
    return Manifest.from_bytes(b"".join(client.payloads))


def test_it_may_be_mounted_where_the_link_goes(old: Old) -> None:
    old.zfs("unmount", old.dataset)
    old.zfs("set", f"mountpoint={old.spot.folder}", old.dataset)
    old.spot.host.attempt("zfs", "mount", old.dataset)
    with Client() as client:
        client.take(old.spot.address, old.dataset)
    assert tree_of(old.spot.folder) == FILES
    assert os.readlink(old.spot.folder) == f".gen/{old.spot.folder.name}/g0"


def test_the_mountpoint_may_be_inherited(old: Old) -> None:
    """It would change with the name, and by itself."""
    above, folder = f"{old.dataset}-above", f"{old.folder}-above"
    old.zfs("create", "-o", f"mountpoint={folder}", above)
    try:
        old.zfs("create", f"{above}/data")
        data = Path(folder, "data")
        (data / "a").write_bytes(b"1")
        with Client() as client:
            assert client.take(old.spot.address, f"{above}/data").entries == 1
        assert tree_of(data) == tree_of(old.spot.folder) == {"a": b"1"}
        assert os.readlink(data) == str(old.spot.folder)
    finally:
        old.spot.host.attempt("zfs", "destroy", "-r", above)


def _take_here(old: Old, notice: Callable[[str], None]) -> SnapshotRecord:
    """In this process, so that ``notice`` is called when the reading begins."""
    marker = Marker("repo-0123456789", "sha256", 1, ZFS)
    wish = Wish(old.target, old.dataset, marker, "ann", "laptop", '{"name": "x"}', "")
    return take_dataset(Zfs.find(), wish, lambda: None, notice)[0]


def test_people_go_on_working_while_it_is_read(old: Old) -> None:
    """What they write is taken along; what would have been refused still is."""
    late: list[str] = []

    def work(_: str) -> None:
        if not late:
            late.append("late.txt")
            (old.folder / "late.txt").write_bytes(b"late")
            (old.folder / "notes.txt").write_bytes(b"other")

    def name_it(_: str) -> None:
        old.zfs("snapshot", f"{old.dataset}@s5")

    with pytest.raises(DsgError, match="called as DSG calls its own"):
        _take_here(old, name_it)
    old.zfs("destroy", f"{old.dataset}@s5")
    assert old.spot.host.fails("list", old.target)
    assert _take_here(old, work).entries == len(FILES) + 1
    after = {**FILES, "late.txt": b"late", "notes.txt": b"other"}
    assert tree_of(old.folder) == after
    with Client() as client:
        client.open(old.spot.address)
        assert client.get(0, client.manifest()) == after
    # Another that is called so now is not the one that was taken over.
    old.zfs("create", "-o", "mountpoint=none", old.dataset)
    with Client() as client, pytest.raises(DsgError, match="was taken over"):
        client.take(old.spot.address, old.dataset)


# A crash


def test_killed_around_every_command(
    make: Callable[..., Old], wrapper: ZfsWrapper, rng: random.Random
) -> None:
    """The same call completes it; until then all files are at one of the two places.

    A crash after a command that only looks is one after the command before it:
    these, and the properties that are set for comfort, are for ``DSG_FULL=1``, and
    half of the others.
    """
    first = make(0)
    with Client(environment=wrapper.environment) as client:
        client.take(first.spot.address, first.dataset)
    whole = wrapper.commands()
    assert [words[0] for words in whole if words[0] in ("create", "unmount", "rename", "snapshot")] == [
        "create", "unmount", "rename", "snapshot",
    ]  # fmt: skip
    assert not [words for words in whole if words[0] == "destroy"]
    points = range(1, len(whole) + 1)
    if not FULL:
        changing = [n for n, words in enumerate(whole, 1) if words[0] not in ("get", "list")]
        points = [n for n in changing if not whole[n - 1][1].startswith(COMFORT)][rng.randrange(2) :: 2]
    half_way = sum(_kill_after(number, make(number), wrapper) for number in points)
    assert half_way >= (6 if FULL else 2)


def _kill_after(number: int, old: Old, wrapper: ZfsWrapper) -> bool:
    """Whether something was left half-way."""
    inodes = old.inodes(old.folder)
    wrapper.reset(after=(number, ""))
    killed = Client(environment=wrapper.environment)
    with pytest.raises(AgentGone):
        killed.take(old.spot.address, old.dataset)
    killed.process.wait(30)
    commands = wrapper.commands()
    what = f"killed after command {number}, zfs {' '.join(commands[-1])}"
    assert len(commands) == number and killed.process.returncode == -9, what
    assert not [words for words in commands if forbidden(words, old.dataset)], what
    _mounted_files(old, what)
    wrapper.reset()
    with Client(environment=wrapper.environment) as client:
        half_way = _is_no_repository_yet(client, old, what)
        record = client.take(old.spot.address, old.dataset)
        assert not [words for words in wrapper.commands() if forbidden(words, old.dataset)], what
        assert old.inodes(old.spot.folder) == inodes, what
        assert (record.seq, record.entries) == (0, len(FILES)), what
        assert os.readlink(old.folder) == str(old.spot.folder), what
        client.open(old.spot.address)
        assert client.get(0, client.manifest()) == FILES, what
        client.sync("tx-after-0001", {"new": b"n"})
    assert tree_of(old.folder) == {**FILES, "new": b"n"}, what
    return half_way


def _is_no_repository_yet(client: Client, old: Old, what: str) -> bool:
    """Neither opened nor made anew by a plain init, which would destroy what it finds."""
    if old.spot.host.fails("list", old.target):
        return False
    if old.zfs("get", "-H", "-o", "value", "dsg:format", old.target).strip() == "1":
        return False
    with pytest.raises(DsgError, match="not finished"):
        client.call(OpenRepo(repo=99, path=old.spot.address))
    with pytest.raises(DsgError, match="not finished") as caught:
        client.init(old.spot.address)
    assert f"--from-dataset {old.dataset}" in caught.value.hint, what
    with pytest.raises(DsgError, match="not finished"):
        client.take(old.spot.address, f"{old.dataset}-other")
    return True


def _mounted_files(old: Old, what: str) -> None:
    """Whichever of the two it is now, it holds all."""
    here = [name for name in (old.dataset, f"{old.target}/g0") if not old.spot.host.fails("list", name)]
    assert len(here) == 1, what
    if old.zfs("get", "-H", "-o", "value", "mounted", here[0]).strip() == "no":
        old.zfs("mount", here[0])
    folder = Path(old.zfs("get", "-H", "-o", "value", "mountpoint", here[0]).strip())
    assert tree_of(folder) == FILES, what


def test_killed_while_it_is_filled(make: Callable[..., Old]) -> None:
    """What was written of .dsg goes, a snapshot of it as well; the files stay."""
    old = make()
    old_id = "repo-0123456789"
    with Client() as client:
        client.take(old.spot.address, old.dataset, repo_id=old_id)
    # As if it had ended anywhere between the snapshot and the last property, with more half-made beside it.
    old.zfs("inherit", "dsg:format", old.target)
    (old.spot.folder / f".dsg-init-{old_id}" / "records").mkdir(parents=True)
    (old.spot.folder / "late.txt").write_bytes(b"written meanwhile")
    with Client() as client:
        record = client.take(old.spot.address, old.dataset)
        assert record.repo_id == old_id and record.entries == len(FILES) + 1
    assert not list(old.spot.folder.glob(".dsg-init-*"))
    assert tree_of(old.spot.folder) == {**FILES, "late.txt": b"written meanwhile"}
    # A .dsg that is somebody's is nobody's to remove.
    old.zfs("inherit", "dsg:format", old.target)
    marker = old.spot.folder / ".dsg" / "format"
    marker.write_text(marker.read_text().replace(old_id, "repo-9999999999"))
    with Client() as client, pytest.raises(DsgError, match=r"\.dsg folder that somebody"):
        client.take(old.spot.address, old.dataset)
    assert marker.exists() and old.spot.snapshots().count("g0@s0") == 1


def number_of(commands: list[list[str]], *beginning: str) -> int:
    return next(n for n, words in enumerate(commands, 1) if words[: len(beginning)] == list(beginning))


def test_a_command_that_fails(make: Callable[..., Old], wrapper: ZfsWrapper) -> None:
    """Before the renaming nothing is changed; after it the error says how to go on. A lie is seen through."""
    first = make(100)
    with Client(environment=wrapper.environment) as client:
        client.take(first.spot.address, first.dataset)
    commands = wrapper.commands()
    old = make(101)
    before = old.datasets()
    for step in ("create", "unmount", "rename"):
        wrapper.reset(fails=(number_of(commands, step), "cannot do that: out of space"))
        with Client(environment=wrapper.environment) as client, pytest.raises(DsgError) as caught:
            client.take(old.spot.address, old.dataset)
        assert caught.value.hint and "goes on from there" not in caught.value.hint
        assert old.datasets() == before and tree_of(old.folder) == FILES, step
    wrapper.reset(fails=(number_of(commands, "snapshot"), "cannot do that: out of space"))
    with Client(environment=wrapper.environment) as client, pytest.raises(DsgError, match="space") as caught:
        client.take(old.spot.address, old.dataset)
    assert "goes on from there" in caught.value.hint
    assert tree_of(old.folder) == tree_of(old.spot.folder) == FILES, "people have them meanwhile"
    with Client() as client:
        client.take(old.spot.address, old.dataset)
    old.check_taken()
    old = make(102)
    wrapper.reset(lies=(number_of(commands, "rename"), "internal error"))
    with Client(environment=wrapper.environment) as client:
        client.take(old.spot.address, old.dataset)
    old.check_taken()


# What is refused


def test_somebody_is_in_it(old: Old, wrapper: ZfsWrapper) -> None:
    """Named, and nothing is changed; also when only the unmounting finds it out."""
    before = old.datasets()
    program = [sys.executable, "-c", "import sys; f = open(sys.argv[1]); print(flush=True); input()"]
    for words, cwd in (
        (program, "/"),
        ([sys.executable, "-c", "print(flush=True); input()"], str(old.folder / "input")),
    ):
        sitter = subprocess.Popen(
            [*words, str(old.folder / "notes.txt")], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert sitter.stdout is not None
        sitter.stdout.readline()
        try:
            named = pytest.raises(DsgError, match=f"process {sitter.pid}\\)")
            with Client(environment=wrapper.environment) as client, named as caught:
                client.take(old.spot.address, old.dataset)
            assert caught.value.facts["holders"] and "fuser" in caught.value.hint
        finally:
            sitter.communicate(b"\n")
        assert old.datasets() == before
    assert not [words for words in wrapper.commands() if words[0] not in ("get", "list")]
    wrapper.reset()
    wrapper.busy("unmount")
    with Client(environment=wrapper.environment) as client, pytest.raises(DsgError, match="is in use"):
        client.take(old.spot.address, old.dataset)
    assert not [words for words in wrapper.commands() if forbidden(words, old.dataset)]
    assert old.datasets() == before and tree_of(old.folder) == FILES
    wrapper.free()
    with Client(environment=wrapper.environment) as client:
        client.take(old.spot.address, old.dataset)
    old.check_taken()


def test_names_are_refused_all_at_once(old: Old) -> None:
    before = old.datasets()
    os.symlink("/etc/passwd", old.folder / "input" / "out")
    os.mkfifo(old.folder / "input" / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(old.folder / "sock"))
    (old.folder / "A.txt").write_bytes(b"")
    (old.folder / "a.txt").write_bytes(b"")
    (old.folder / "ctrl\x07").write_bytes(b"")
    with open(os.fsencode(old.folder) + b"/latin\xe9", "wb"):
        pass
    (old.folder / "input" / "sub" / ".dsg").mkdir(parents=True)
    (old.folder / "input" / "sub" / ".dsg" / "format").write_bytes(b"")
    with Client() as client, pytest.raises(DsgError) as caught:
        client.take(old.spot.address, old.dataset)
    assert caught.value.code == "paths_refused" and caught.value.facts["count"] == 7
    for part in ("input/out", "input/fifo", "sock", "a.txt", r"ctrl\x07", "latin", "input/sub/.dsg/format"):
        assert part in caught.value.message, part
    assert old.datasets() == before


def _child(old: Old) -> None:
    old.zfs("create", f"{old.dataset}/child")


def _own_names(old: Old) -> None:
    old.zfs("snapshot", f"{old.dataset}@s12")


def _base_name(old: Old) -> None:
    old.zfs("snapshot", f"{old.dataset}@base-x")


def _unmounted(old: Old) -> None:
    old.zfs("unmount", old.dataset)


def _legacy(old: Old) -> None:
    old.zfs("set", "mountpoint=legacy", old.dataset)


def _nowhere(old: Old) -> None:
    old.zfs("set", "mountpoint=none", old.dataset)


def _mount_below(old: Old) -> None:
    (old.folder / "mnt").mkdir()
    old.spot.host.run("mount", "-t", "tmpfs", "tmpfs", str(old.folder / "mnt"))


def _a_repository(old: Old) -> None:
    (old.folder / ".dsg").mkdir()
    (old.folder / ".dsg" / "format").write_bytes(b"{}")


def _dsgs_own(old: Old) -> None:
    old.zfs("set", "dsg:txid=x", old.dataset)


def _name_taken(old: Old) -> None:
    old.zfs("create", old.target)


def _link_taken(old: Old) -> None:
    old.spot.folder.mkdir()


def _among_generations(old: Old) -> None:
    there = old.spot.root.folder / ".gen" / "there"
    old.zfs("set", f"mountpoint={there}", old.dataset)
    until(lambda: os.path.ismount(there), "zfs-fuse to mount it")


def _shows_snapshots(old: Old) -> None:
    old.zfs("set", "snapdir=visible", old.dataset)


@pytest.mark.parametrize(
    ("prepare", "why", "cure"),
    [
        (_among_generations, "among the generations", "zfs set mountpoint"),
        (_child, "datasets below it", "zfs rename"),
        (_own_names, "called as DSG calls its own", "zfs rename"),
        (_base_name, "called as DSG calls its own", "zfs rename"),
        (_unmounted, "not mounted", "zfs mount"),
        (_legacy, "legacy", "fstab|line"),
        (_nowhere, "nowhere", "zfs set mountpoint"),
        (_mount_below, "other file systems", "umount"),
        (_a_repository, "already", "mv "),
        (_dsgs_own, "DSG's own", "clone"),
        (_name_taken, "in use", "another name"),
        (_link_taken, "exists", "move that away"),
        (_shows_snapshots, "snapdir", "zfs set snapdir=hidden"),
    ],
)
def test_what_is_refused(old: Old, prepare: Callable[[Old], None], why: str, cure: str) -> None:
    prepare(old)
    before = old.datasets()
    try:
        with Client() as client, pytest.raises(DsgError, match=why) as caught:
            client.take(old.spot.address, old.dataset)
        assert re.search(cure, caught.value.hint), caught.value.hint
        assert old.datasets() == before
    finally:
        if prepare is _mount_below:
            old.spot.host.run("umount", str(old.folder / "mnt"))


def test_which_datasets_are_refused(old: Old) -> None:
    root, pool = old.spot.root.dataset, old.spot.host.pool
    old.zfs("create", f"{root}/taken")
    old.zfs("snapshot", f"{old.dataset}@x")
    old.zfs("clone", f"{old.dataset}@x", f"{root}/clone")
    with Client() as client:
        client.init(f"zfs:{root}/other")
        before = old.datasets()
        for source, why in [
            (pool, "is a pool"),
            (root, "is the root"),
            ("no-such-pool/x", "another pool|no dataset"),
            (f"{pool}/nothing", "no dataset"),
            (f"{root}/taken", "among the generations"),
            (f"{root}/clone", "is a clone of"),
            (f"{old.dataset}@x", "cannot be taken over"),
            ("-r/x", "cannot be taken over"),
            (f"{root}/other/g0", "part of the repository"),
            (f"{root}/other", "DSG's own"),
            (old.dataset, "others are clones of: .*/clone"),
        ]:
            with pytest.raises(DsgError, match=why) as caught:
                client.take(old.spot.address, source)
            assert caught.value.hint, source
        with pytest.raises(DsgError, match="of the same name"):
            client.take(f"zfs:{root}/taken", f"{root}/taken")
    assert old.datasets() == before


def test_a_key_for_one_root_takes_nothing_from_elsewhere(old: Old) -> None:
    before = old.datasets()
    refused = pytest.raises(DsgError, match="may not use")
    with Client("--root", f"zfs:{old.spot.root.dataset}") as client, refused as caught:
        client.take(old.spot.address, old.dataset)
    assert caught.value.code == "not_permitted" and old.datasets() == before


def test_files_where_the_link_should_go_keep_their_place(old: Old, wrapper: ZfsWrapper) -> None:
    """Somebody's job wrote to the path in the moment in which nothing was mounted there."""
    wrapper.kill_after("rename")
    killed = Client(environment=wrapper.environment)
    with pytest.raises(AgentGone):
        killed.take(old.spot.address, old.dataset)
    killed.process.wait(30)
    assert not os.path.ismount(old.folder)
    old.folder.mkdir(exist_ok=True)
    (old.folder / "job.log").write_bytes(b"written meanwhile")
    with Client() as client:
        client.take(old.spot.address, old.dataset)
        assert [note for note in client.notes if f"ln -s {old.spot.folder} {old.folder}" in note], (
            client.notes
        )
    assert (old.folder / "job.log").read_bytes() == b"written meanwhile"
    assert tree_of(old.spot.folder) == FILES
    (old.folder / "job.log").unlink()
    old.folder.rmdir()

"""A disk that is full, or read-only, on either side: nothing is lost, it is said, and it goes on after.

The server's or the client's folder lies on a small tmpfs of its own. While one
side stands at a step, everything that is left of it is used up: blocks and
inodes alike.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from protocol.transaction import STEPS, Side, Step, StepRow
from tests.conftest import mount_or_skip
from tests.crash.conftest import Line, make_line
from tests.crash.scene import MINE, START, THEIRS, Scene, merged, standing, until
from tests.e2e.world import Client, Ended, World

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

SIZE = 64 << 20  # more than the 16 MiB that a sync leaves for others

Mount = Callable[[Path], "Disk"]


class Disk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ballast = folder / "ballast"

    def fill(self) -> None:
        """Use up every block and every inode."""
        self.ballast.mkdir()
        with open(self.ballast / "blocks", "wb", buffering=0) as file:
            for piece in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(piece))
                except OSError:
                    continue
        try:
            for number in range(1 << 20):
                (self.ballast / str(number)).touch()
        except OSError:
            pass
        assert os.statvfs(self.folder).f_bavail == 0

    def free(self) -> None:
        """Give all of it back."""
        for path in self.ballast.iterdir():
            path.unlink()
        self.ballast.rmdir()

    def remount(self, *options: str) -> None:
        """Mount it again with other options."""
        until(
            lambda: _mount("-o", ",".join(["remount", *options]), str(self.folder)).returncode == 0, "mount"
        )

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written for a while."""
        self.remount("ro")
        try:
            yield
        finally:
            self.remount("rw")


def _mount(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *words], check=False, capture_output=True, text=True)


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a tmpfs; skips the test where that is not allowed."""
    mounted: list[Path] = []

    def make(folder: Path) -> Disk:
        mount_or_skip("-t", "tmpfs", "-o", f"size={SIZE},nr_inodes=2000,mode=0755", "dsg-test", str(folder))
        mounted.append(folder)
        return Disk(folder)

    yield make
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def crossroads(world: World, ann: Client) -> Scene:
    """The crossroads of the other tests, with ann's folder given."""
    ann.must("init", world.address)
    ann.put_all(START)
    ann.must("sync")
    bob = world.clone("bob")
    bob.put_all(THEIRS)
    bob.must("sync")
    ann.put_all(MINE)
    return Scene(world, ann, merged(MINE, THEIRS), snapshots=1)


@pytest.fixture(scope="module")
def here() -> Iterator[Line]:
    """A line to an sshd that sees what is mounted here.

    That of the whole run may be in another mount namespace by now: tests on ZFS stay in theirs.
    """
    with make_line() as made:
        yield made


@pytest.fixture
def full_server(here: Line, folder: Path, mount: Mount) -> tuple[Scene, Disk]:
    """The repository on a small disk."""
    world = World(here.people, folder / "world")
    disk = mount(world.repository.parent)
    return crossroads(world, world.client("ann")), disk


@pytest.fixture
def full_client(line: Line, folder: Path, mount: Mount) -> tuple[Scene, Disk]:
    """Ann's folder on a small disk."""
    world = World(line.people, folder / "world")
    ann = world.client("ann")
    disk = mount(ann.folder)
    # Where no picture of L is taken.
    disk.ballast = ann.folder / ".dsg" / "ballast"
    return crossroads(world, ann), disk


def rows(*steps: Step) -> list[StepRow]:
    return [row for row in STEPS if row.step in steps]


def filled_at(scene: Scene, disk: Disk, row: StepRow) -> Ended:
    """Sync; the disk becomes full while a side stands at a step."""
    with scene.stopped(row.step.value, there=row.side is Side.REMOTE) as (running, _):
        disk.fill()
    return running.end()


def check(scene: Scene, ended: Ended) -> None:
    said = scene.claim(ended)
    settled = scene.settle("recover", "--json")
    assert settled.status == 0, settled
    verdict = scene.verdict()
    assert verdict in said, f"it said {said}, and it is {verdict}: {ended}"
    scene.goes_on(verdict)


# Where the server runs out of space: taking the lock, staging, the manifest, the journal, applying.
SERVER = rows(
    Step.PLANNED,
    Step.REMOTE_BEGUN,
    Step.UPLOADED,
    Step.REMOTE_FLUSHED,
    Step.REMOTE_CHECKED,
    Step.REMOTE_DECIDED,
)


@pytest.mark.turns(2)
@pytest.mark.parametrize("row", SERVER, ids=lambda row: row.step.value)
def test_server_full(row: StepRow, full_server: tuple[Scene, Disk]) -> None:
    scene, disk = full_server
    ended = filled_at(scene, disk, row)
    if row.step in (Step.REMOTE_CHECKED, Step.REMOTE_DECIDED):
        # A rename needs no space: the decision is made. What applying it needs is not there.
        assert ended.status == 0, ended
        warned = [note["text"] for note in ended.document["notes"] if note["warning"]]
        assert any("could not finish carrying it out" in text for text in warned), ended
        # It can be read through DSG meanwhile, by those who have something to compare it with.
        seen = scene.world.clients["bob"].dsg("status", "--json")
        assert seen.status == 0 and "input/mine.csv" in seen.document["changes"]["download"], seen
        # Nobody gets further on this disk, and everybody is told why.
        bob = scene.world.clients["bob"]
        again = bob.dsg("sync", "--json")
        assert again.status == 0, again
        assert bob.local() == scene.after
    else:
        assert ended.status == 9, ended
        error = ended.document["error"]
        assert "full on the server" in error["message"] or "not enough space" in error["message"], ended
        assert "space" in error["hint"]
        assert scene.untouched_here()
        again = scene.who.sync()
        assert again.status == 9, again
    disk.free()
    check(scene, ended)


# Where the client runs out of space: the index, staging, the cache and the journal, applying, the cache.
CLIENT = rows(
    Step.LOCAL_LOCKED,
    Step.PLANNED,
    Step.DOWNLOADED,
    Step.LOCAL_CHECKED,
    Step.LOCAL_DECIDED,
    Step.LOCAL_APPLIED,
)


@pytest.mark.turns(2)
@pytest.mark.parametrize("row", CLIENT, ids=lambda row: row.step.value)
def test_client_full(row: StepRow, full_client: tuple[Scene, Disk]) -> None:
    scene, disk = full_client
    ended = filled_at(scene, disk, row)
    if row.row >= 8 and ended.status == 0:
        # What was left to do were renames.
        disk.free()
        check(scene, ended)
        return
    assert ended.status == 10, ended
    error = ended.document["error"]
    assert "space" in error["message"] and ("space" in error["hint"].lower()), ended
    if row.row < 8:
        assert scene.untouched_here()
        again = scene.who.sync()
        assert again.status == 10, again
    else:
        # Committed: it goes on as soon as there is space, and says so until then.
        assert error["outcome"] == "committed"
        again = scene.who.sync()
        assert again.status == 10 and again.document["error"]["outcome"] == "committed", again
        # What this file system can do cannot be tried out now.
        seen = scene.who.dsg("status", "--json")
        assert seen.status == 10 and "No space left" in seen.document["error"]["message"], seen
    disk.free()
    check(scene, ended)


def test_too_large_for_the_server(full_server: tuple[Scene, Disk]) -> None:
    """What cannot fit is refused before anything moves."""
    scene, _ = full_server
    scene.who.path("input/huge").write_bytes(bytes(SIZE))
    ended = scene.who.sync()
    assert ended.status == 9, ended
    assert "not enough space on the server" in ended.document["error"]["message"]
    assert scene.world.remote().check().records == scene.before.records
    scene.who.path("input/huge").unlink()
    assert scene.who.sync().status == 0
    assert scene.verdict() == "after"


def test_too_large_for_the_client(full_client: tuple[Scene, Disk]) -> None:
    scene, _ = full_client
    bob = scene.world.clients["bob"]
    bob.path("input/huge").write_bytes(bytes(SIZE))
    bob.must("sync")
    ended = scene.who.sync()
    assert ended.status == 10, ended
    assert "not enough space" in ended.document["error"]["message"]
    assert scene.untouched_here()
    bob.path("input/huge").unlink()
    bob.must("sync")
    assert scene.who.sync().status == 0
    assert scene.who.local() == scene.after == scene.world.remote().check().live


def test_full_while_cloning(line: Line, base: World, folder: Path, mount: Mount) -> None:
    """A clone onto a disk that fills up; after space is made, the same command goes on."""
    world = base.copy(folder)
    cat = world.client("cat")
    disk = mount(cat.folder)
    running = cat.start(
        "clone", world.address, "data", "--json", variables={"DSG_FAILPOINTS": "downloaded=stop"}
    )
    with standing(running.process.pid):
        disk.fill()
    ended = running.end()
    assert ended.status == 10 and "space" in ended.document["error"]["message"], ended
    disk.free()
    cat.must("clone", world.address, "data")
    cat.folder = cat.folder / "data"
    assert cat.local() == world.remote().check().live
    assert cat.sync().document["state"] == "nothing"


# Read-only


def test_server_read_only(full_server: tuple[Scene, Disk]) -> None:
    """Those who read get what they want; those who write are told."""
    scene, disk = full_server
    with disk.read_only():
        ended = scene.who.sync()
        assert ended.status == 9, ended
        assert "read-only" in ended.document["error"]["message"], ended
        seen = scene.who.dsg("status", "--json")
        assert seen.status == 0 and seen.document["changes"]["upload"], seen
        scene.world.clone("cat")
        assert scene.world.clients["cat"].local() == scene.world.clients["bob"].local()
        assert scene.world.clients["bob"].sync().document["state"] == "nothing"
    check(scene, ended)


@pytest.mark.parametrize("row", rows(Step.REMOTE_BEGUN, Step.REMOTE_PREPARED), ids=lambda row: row.step.value)
def test_server_becomes_read_only(row: StepRow, full_server: tuple[Scene, Disk]) -> None:
    """As ext4 does after an error: the agent cannot even undo what it did."""
    scene, disk = full_server
    with ExitStack() as broken:
        with scene.stopped(row.step.value, there=True) as (running, _):
            broken.enter_context(disk.read_only())
        ended = running.end()
        assert ended.status == 9, ended
        assert "read-only" in ended.document["error"]["message"], ended
        assert scene.untouched_here()
    check(scene, ended)


def test_client_read_only(full_client: tuple[Scene, Disk]) -> None:
    scene, disk = full_client
    with disk.read_only():
        ended = scene.who.sync()
        assert ended.status == 10, ended
        assert "ead-only" in ended.document["error"]["message"] + ended.document["error"]["hint"], ended
        seen = scene.who.dsg("status", "--json")
        assert seen.status == 0 and seen.document["changes"]["upload"], seen
    check(scene, ended)


@pytest.mark.parametrize(
    "row", rows(Step.DOWNLOADED, Step.LOCAL_PREPARED, Step.LOCAL_DECIDED), ids=lambda row: row.step.value
)
def test_client_becomes_read_only(row: StepRow, full_client: tuple[Scene, Disk]) -> None:
    scene, disk = full_client
    with ExitStack() as broken:
        with scene.stopped(row.step.value, there=False) as (running, _):
            broken.enter_context(disk.read_only())
        ended = running.end()
        assert ended.status == 10, ended
        assert "ead-only" in ended.document["error"]["message"] + ended.document["error"]["hint"], ended
    check(scene, ended)

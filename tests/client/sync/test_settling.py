"""An interrupted sync is settled in peace, in the folder it ran in, and what was settled is told."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from dsg_client.sync.events import Event, Note, ignore
from dsg_client.sync.recovery import recover
from dsg_client.sync.run import SyncOptions, sync
from dsg_client.sync.site import Site
from protocol.errors import DsgError, LocalChangedError, LockedError
from protocol.failpoints import parse_failpoints
from protocol.tree.fs import TreeFS
from tests.client.sync.conftest import Ground


@pytest.fixture
async def broken_off(ground: Ground) -> Site:
    """Bob's folder, whose last sync was decided and not applied: x is to be replaced, y to go, z to come."""
    ann = await ground.init("ann")
    folder = ann.root / "input"
    folder.mkdir()
    (folder / "x").write_text("old")
    (folder / "y").write_text("goes")
    await sync(ann, SyncOptions(), ignore)
    bob = await ground.clone("bob")
    (folder / "x").write_text("newer")
    (folder / "y").unlink()
    (folder / "z").write_text("comes")
    await sync(ann, SyncOptions(), ignore)
    bob.failpoints = parse_failpoints("local-decided=error:EIO")
    with pytest.raises(DsgError):
        await sync(bob, SyncOptions(allow_mass_delete=True), ignore)
    assert decided(bob)
    return ground.site("bob")


def decided(site: Site) -> bool:
    return (site.root / ".dsg" / "journal.decided").exists()


def files(site: Site) -> dict[str, str]:
    return {path.name: path.read_text() for path in (site.root / "input").iterdir()}


async def test_an_interruption_lets_the_lock_go_only_when_nothing_is_at_work_any_more(
    broken_off: Site, ground: Ground
) -> None:
    broken_off.failpoints = parse_failpoints("local-trashed=hang:0.6")
    task = asyncio.create_task(sync(broken_off, SyncOptions(), ignore))
    while (broken_off.root / "input" / "y").exists():
        assert not task.done()
        await asyncio.sleep(0.01)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.02)
    with pytest.raises(LockedError):
        await sync(ground.site("bob"), SyncOptions(), ignore)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not decided(broken_off)
    assert files(broken_off) == {"x": "newer", "z": "comes"}


async def test_a_device_that_is_numbered_anew_does_not_make_the_folder_a_copy(broken_off: Site) -> None:
    device, inode = broken_off.workdir.device_inode
    broken_off.workdir = broken_off.workdir.but(device_inode=(device + 1, inode))
    result = await sync(broken_off, SyncOptions(), ignore)
    assert result.state == "nothing"
    assert files(broken_off) == {"x": "newer", "z": "comes"}
    assert not (broken_off.root / ".dsg" / "replaced").exists()


async def test_what_recover_settled_here_is_told_when_the_server_cannot_be_reached(
    broken_off: Site, ground: Ground
) -> None:
    ground.remote.rename(ground.remote.with_name("elsewhere"))
    events: list[Event] = []
    with pytest.raises(DsgError):
        await recover(broken_off, abandon=False, rebuild_cache=False, emit=events.append)
    assert any(isinstance(event, Note) and "was finished" in event.text for event in events)
    assert files(broken_off) == {"x": "newer", "z": "comes"}


async def test_a_dry_run_says_that_an_interrupted_sync_waits(broken_off: Site) -> None:
    events: list[Event] = []
    await sync(broken_off, SyncOptions(dry_run=True), events.append)
    assert any(isinstance(event, Note) and "was interrupted" in event.text for event in events)
    assert decided(broken_off)


async def test_an_index_that_was_wrong_once_is_not_believed_again(ground: Ground) -> None:
    ann = await ground.init("ann")
    (ann.root / "input").mkdir()
    path = ann.root / "input" / "x"
    path.write_text("what it holds")
    await asyncio.sleep(0.1)
    with pytest.raises(DsgError):  # fills the index, and syncs nothing
        ann.failpoints = parse_failpoints("scanned=error:EIO")
        await sync(ann, SyncOptions(), ignore)
    ann = ground.site("ann")
    index = ann.root / ".dsg" / "index"
    from dsg_client.local.index import IndexChanges, read_index, save_index

    binding = ann.binding("sha256")
    (row,) = read_index(ann.tree, binding)
    wrong = IndexChanges()
    wrong.put(row[0], row[1:5], bytes(32))
    save_index(ann.tree, binding, wrong)
    assert index.exists()
    with pytest.raises(LocalChangedError):
        await sync(ann, SyncOptions(), ignore)
    assert (await sync(ground.site("ann"), SyncOptions(), ignore)).seq == 1


class Noting:
    """A tree that notes which folders were flushed, and when C was staged."""

    def __init__(self, tree: TreeFS) -> None:
        self._tree = tree
        self.seen: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._tree, name)

    def write_bytes(self, path: str, content: bytes) -> None:
        self.seen.append(path)
        self._tree.write_bytes(path, content)

    def flush_folder(self, path: str) -> None:
        self.seen.append(f"flush {path}")
        self._tree.flush_folder(path)

    def move(self, source: str, target: str) -> None:
        self.seen.append(f"move {target}")
        self._tree.move(source, target)

    def unlink(self, path: str) -> None:
        self.seen.append(f"unlink {path}")
        self._tree.unlink(path)

    def flush(self) -> None:
        self.seen.append("flush all")
        self._tree.flush()


async def test_a_sync_that_brings_nothing_does_not_flush_the_whole_file_system(ground: Ground) -> None:
    ann = await ground.init("ann")
    bob = await ground.clone("bob")
    for number, (site, whole) in enumerate([(ann, False), (bob, True)]):
        (site.root / "input").mkdir(exist_ok=True)
        (site.root / "input" / f"of {site.root.name}").write_text("1")
        tree: Any = Noting(site.tree)
        site.workdir = site.workdir.but(tree=tree)
        assert (await sync(site, SyncOptions(), ignore)).seq == number + 1
        decided = tree.seen.index("flush .dsg")  # the journal's
        assert ("flush all" in tree.seen[:decided]) == whole
        assert whole or "flush .dsg/staging" in tree.seen[:decided]
        # What was applied, before the journal goes.
        at = tree.seen.index("move .dsg/cache", decided)
        gone = tree.seen.index("unlink .dsg/journal.decided", at)
        assert ("flush all" if whole else "flush .dsg") in tree.seen[at:gone]
        assert ("flush all" in tree.seen[decided:]) == whole


async def test_the_staged_cache_is_durable_before_the_journal_speaks_of_it(ground: Ground) -> None:
    """The flush of the staged files runs beside the staging of C, and may be over by then."""
    ann = await ground.init("ann")
    (ann.root / "input").mkdir()
    (ann.root / "input" / "x").write_text("1")
    tree: Any = Noting(ann.tree)
    ann.workdir = ann.workdir.but(tree=tree)
    await sync(ann, SyncOptions(), ignore)
    (at,) = [n for n, what in enumerate(tree.seen) if re.fullmatch(r"\.dsg/staging/\w+/cache", what)]
    folder = tree.seen[at].rpartition("/")[0]
    assert tree.seen[at + 1] == f"flush {folder}"

"""Every row of the table of steps with a repository on ZFS, over SSH: whoever dies, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.transaction import STEPS, Side, StepRow
from tests.crash.conftest import NOTED_AGENT
from tests.crash.scene import FULL, Scene, at_the_crossroads, everything
from tests.crash.test_failpoints import NEXT, kill_at, name_of, settled, stop_at
from tests.e2e.zfs import ZfsPeople, ZfsWorld
from tests.hosts.sshd import ssh_host
from tests.hosts.zfs_fuse import ZfsFuse

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root", "sshd", "ssh-keygen")]


@pytest.fixture(scope="module")
def zfs_base(zfs_host: ZfsFuse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZfsWorld]:
    """A world at the crossroads, on ZFS; this thread is in the namespace that sees it. Copy it."""
    with zfs_host.entered(), ssh_host() as host:
        host.install_agent()
        host.install_program("noted-agent", NOTED_AGENT)
        world = ZfsWorld(ZfsPeople(host, zfs_host), tmp_path_factory.mktemp("base"))
        at_the_crossroads(world)
        yield world


def dealt() -> list[tuple[StepRow, str]]:
    """Step and next command; in short runs the next commands take turns."""
    if FULL:
        return [(row, then) for row in STEPS for then in NEXT]
    return [(row, NEXT[number % len(NEXT)]) for number, row in enumerate(STEPS)]


def tidy(scene: Scene) -> None:
    """Whatever an agent did not live to remove goes with the next that has the lock."""
    assert isinstance(scene.world, ZfsWorld)
    assert scene.settle("recover").status == 0
    scene.world.settled()


@pytest.mark.parametrize(("row", "then"), dealt(), ids=name_of)
def test_killed(row: StepRow, then: str, zfs_base: ZfsWorld, folder: Path) -> None:
    scene = everything(zfs_base, folder)
    kill_at(scene, row, then)
    tidy(scene)


@pytest.mark.turns(2)
@pytest.mark.parametrize("row", [row for row in STEPS if row.side is Side.REMOTE], ids=name_of)
def test_an_error(row: StepRow, zfs_base: ZfsWorld, folder: Path) -> None:
    """A full disk instead of death."""
    scene = everything(zfs_base, folder)
    ended = stop_at(scene, row, "error:ENOSPC", "sync", "--json")
    settled(scene, "sync", scene.claim(ended), row.committed)
    tidy(scene)

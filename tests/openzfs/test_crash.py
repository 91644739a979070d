"""The power fails on the server, or its agent dies, at every step: all of L, C and R as before, or as after.

The machine's kernel is kept from writing by itself: what the power cut leaves
is what DSG had waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.transaction import STEPS, Side, Step, StepRow
from tests.crash.conftest import NOTED_AGENT
from tests.crash.scene import FULL, at_the_crossroads, everything, until
from tests.crash.test_failpoints import NEXT, name_of, settled, stop_at
from tests.e2e.zfs import ZfsPeople, ZfsWorld
from tests.hosts.openzfs.guest import Guest

REMOTE = [row for row in STEPS if row.side is Side.REMOTE]
# Of these every run cuts the power at: all prepared, decided and no more, and all but the housekeeping.
CUTS = (Step.REMOTE_PREPARED, Step.REMOTE_DECIDED, Step.REMOTE_PUBLISHED)
_TIMEOUT = "/sys/module/zfs/parameters/zfs_txg_timeout"


@pytest.fixture(scope="module")
def base(guest: Guest, people: ZfsPeople, tmp_path_factory: pytest.TempPathFactory) -> ZfsWorld:
    """A world at the crossroads. Copy it."""
    guest.install_program("noted-agent", NOTED_AGENT)
    world = ZfsWorld(people, tmp_path_factory.mktemp("base"))
    at_the_crossroads(world)
    world.settled()
    return world


@contextmanager
def nothing_written_by_itself(guest: Guest) -> Iterator[None]:
    guest.sh(f"zpool sync && echo 3600 > {_TIMEOUT} && zpool sync")
    try:
        yield
    finally:
        guest.sh(f"echo 5 > {_TIMEOUT}")


def dealt(rows: list[StepRow]) -> list[tuple[StepRow, str]]:
    return [(row, NEXT[number % len(NEXT)]) for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("row", "then"), dealt([row for row in REMOTE if FULL or row.step in CUTS]), ids=name_of
)
def test_power_cut(row: StepRow, then: str, guest: Guest, base: ZfsWorld, tmp_path: Path) -> None:
    scene = everything(base, tmp_path)
    with nothing_written_by_itself(guest):
        running = scene.start("sync", "--json", there=f"{row.step.value}=stop")
        until(
            lambda: scene.agent_said(row.step.value) or running.process.poll() is not None,
            f"the agent at {row.step.value}",
            guest.patience,
        )
        assert running.process.poll() is None, running.end()
        guest.kill()
        ended = running.end()
        guest.start()
    said = scene.claim(ended)
    settled(scene, then, said, row.committed)
    assert scene.settle("recover").status == 0
    base.settled()
    scene.world.settled()


@pytest.mark.parametrize(
    ("row", "then"),
    dealt(REMOTE if FULL else [row for row in REMOTE if row.step is Step.REMOTE_APPLIED]),
    ids=name_of,
)
def test_agent_killed(row: StepRow, then: str, base: ZfsWorld, tmp_path: Path) -> None:
    scene = everything(base, tmp_path)
    ended = stop_at(scene, row, "kill", "sync", "--json")
    said = scene.claim(ended)
    assert ended.status == (0 if row.committed else 6), ended
    settled(scene, then, said, row.committed)
    assert scene.settle("recover").status == 0
    scene.world.settled()

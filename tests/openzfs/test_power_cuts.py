"""The power fails on the server at each of its steps: all of L, C and R as before, or as after.

Its kernel is kept from writing by itself: what the cut leaves is what DSG had
waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocol.transaction import Step, StepRow
from tests.crash.scene import Scene
from tests.crash.test_failpoints import name_of
from tests.e2e.world import Running
from tests.hosts.openzfs.guest import Guest
from tests.openzfs.rounds import REMOTE, Rounds, dealt, goes_on

# After the cut here it boots, as a machine does whose power comes back; else it goes on from the saved state.
COLD = Step.REMOTE_DECIDED
_TIMEOUT = "/sys/module/zfs/parameters/zfs_txg_timeout"


@contextmanager
def nothing_written_by_itself(guest: Guest) -> Iterator[None]:
    guest.sh(f"zpool sync && echo 3600 > {_TIMEOUT} && zpool sync")
    try:
        yield
    finally:
        guest.sh(f"echo 5 > {_TIMEOUT}")


def stands_at(row: StepRow, scene: Scene, running: Running, guest: Guest) -> None:
    """Wait until the agent stands at the step: by one command there, for many would keep the machine busy."""
    said = f"failpoint {row.step.value}: "
    seconds = round(guest.patience)
    reached = guest.try_sh(
        f"touch {scene.said}; grep -qm1 '{said}' <(timeout {seconds} tail -n +1 -F {scene.said} 2> /dev/null)"
    )
    assert reached.returncode == 0, f"{row.step.value} was not reached: {running.end()}"
    assert running.process.poll() is None, running.end()


@pytest.mark.parametrize(("row", "then"), dealt(REMOTE), ids=name_of)
def test_power_cut(row: StepRow, then: str, guest: Guest, rounds: Rounds) -> None:
    with rounds.another() as scene:
        with nothing_written_by_itself(guest):
            running = scene.start("sync", "--json", there=f"{row.step.value}=stop")
            stands_at(row, scene, running, guest)
            guest.kill()
            ended = running.end()
            guest.start(cold=row.step is COLD)
        goes_on(scene, row, then, scene.claim(ended))

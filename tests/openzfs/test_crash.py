"""The agent dies at every step, in a full run the client too: all of L, C and R as before, or as after.

The steps are the table's own, and each test fails unless its step was come
to. ``FULL=1`` tries every next command after each of them.
"""

from __future__ import annotations

import pytest

from protocol.transaction import STEPS, StepRow
from tests.crash.scene import FULL
from tests.crash.test_failpoints import die_at, name_of
from tests.openzfs.rounds import REMOTE, Rounds, dealt, goes_on


@pytest.mark.parametrize(("row", "then"), dealt(STEPS if FULL else REMOTE), ids=name_of)
def test_killed(row: StepRow, then: str, rounds: Rounds) -> None:
    with rounds.another() as scene:
        goes_on(scene, row, then, die_at(scene, row))

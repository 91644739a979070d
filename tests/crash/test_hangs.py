"""A side that stands still at a step, and the connection cut meanwhile; and silence.

What the client then says must be the truth, whoever wakes up later; and the
next command must find all as before or all as after.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from protocol.transaction import STEPS, Side, Step, StepRow
from tests.crash.conftest import Line
from tests.crash.scene import FULL, Scene, everything, only_uploads, stands, until
from tests.e2e.world import Ended, Running, World

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

HANG = 2.0  # seconds
LOCAL = [row for row in STEPS if row.side is Side.LOCAL]
REMOTE = [row for row in STEPS if row.side is Side.REMOTE]


def name_of(value: object) -> str | None:
    return value.step.value if isinstance(value, StepRow) else None


def check(scene: Scene, ended: Ended) -> None:
    """What was said is true once it is settled, and the next sync goes on from there."""
    said = scene.claim(ended)
    settled = scene.settle("recover", "--json")
    assert settled.status == 0, settled
    verdict = scene.verdict()
    assert verdict in said, f"it said {said}, and it is {verdict}: {ended}"
    scene.goes_on(verdict)


@pytest.mark.turns(2)
@pytest.mark.parametrize("row", REMOTE, ids=name_of)
def test_agent_hangs_and_the_line_is_cut(row: StepRow, line: Line, base: World, folder: Path) -> None:
    """The client asks again on a new connection, and waits for the agent's own end."""
    scene = everything(base, folder)
    running = scene.start("sync", "--json", there=f"{row.step.value}=hang:{HANG}")
    until(lambda: scene.agent_said(row.step.value), f"the agent at {row.step.value}")
    line.proxy.cut()
    line.proxy.mend()
    ended = running.end()
    # An agent that has heard of the end before it decided does not decide.
    expected = 0 if row.committed else 6
    assert ended.status == expected, ended
    if not row.committed:
        assert "lost" in ended.document["error"]["message"]
    check(scene, ended)


#: Without the server until the end: in a short run where it makes a difference.
UNMENDED = LOCAL if FULL else [r for r in LOCAL if r.row in (6, 7, 8)]


@pytest.mark.turns(2)
@pytest.mark.parametrize(
    ("row", "mended"), [*((row, True) for row in LOCAL), *((row, False) for row in UNMENDED)], ids=name_of
)
def test_client_hangs_and_the_line_is_cut(
    row: StepRow, mended: bool, line: Line, base: World, folder: Path
) -> None:
    """The connection is gone when the client goes on, and perhaps the server is, too."""
    scene = everything(base, folder)
    running = scene.start("sync", "--json", here=f"{row.step.value}=hang:{HANG}")
    until(lambda: stands(running), f"the client at {row.step.value}")
    line.proxy.cut()
    if mended:
        line.proxy.mend()
    ended = running.end()
    if row.row >= 8:
        expected = [0]  # nobody is needed any more
    elif row.step is Step.COMMIT_SENT:
        # The answer may have come before the cut.
        expected = [0, 6] if mended else [0, 11]
    elif row.step is Step.LOCAL_LOCKED:
        expected = [0, 6] if mended else [6]  # there may have been no connection yet
    else:
        expected = [6]
    assert ended.status in expected, ended
    line.proxy.mend()
    check(scene, ended)


@pytest.mark.parametrize("back", [True, False])
def test_the_server_cannot_be_reached(back: bool, line: Line, base: World, folder: Path) -> None:
    """The answer to the commit is lost and so is the server: it is asked again, for some seconds."""
    scene = everything(base, folder)
    with scene.stopped("remote-published", there=True) as (running, _):
        tried = line.proxy.connections
        line.proxy.cut()
    until(lambda: line.proxy.connections > tried + 1, "two tries, the first of them in vain")
    if back:
        line.proxy.mend()
    ended = running.end()
    assert ended.status == (0 if back else 11), ended
    assert any("trying again" in note["text"] for note in ended.document["notes"]), ended
    line.proxy.mend()
    if back:
        assert scene.verdict() == "after"
    else:
        assert scene.untouched_here()
    check(scene, ended)


# Silence

#: Seconds after which each side takes the other for dead (docs/wire.md).
SILENCE = 60.0


def test_silence(line: Line, base: World, folder: Path) -> None:
    """Agents that stand still, and a network in which nothing moves and nothing is closed.

    Bob's agents are stopped: before anything is decided, prepared, and decided.
    Ann's network stands. All of them wait side by side.
    """
    stopped: dict[Step, tuple[Scene, Running]] = {}
    with ExitStack() as still:
        for step in (Step.UPLOADED, Step.REMOTE_PREPARED, Step.REMOTE_DECIDED):
            scene = only_uploads(base, folder / step.value)
            running, _ = still.enter_context(scene.stopped(step.value, there=True))
            stopped[step] = scene, running
        cut_off = everything(base, folder / "network")
        with cut_off.stopped("uploaded", there=True) as (alone, _):
            line.proxy.freeze()
        ended = alone.end()
        line.proxy.cut()
        line.proxy.mend()
        assert gave_up(ended), ended
        assert cut_off.untouched_here()
        check(cut_off, ended)

        for step, (scene, running) in stopped.items():
            ended = running.end()
            # Another agent reads the decision from the disk, and says so.
            decided = step is Step.REMOTE_DECIDED
            assert ended.status == 0 if decided else gave_up(ended), ended
            # A stopped agent has the lock as long as it lives: nobody can write, and everybody is told why.
            ann = scene.world.clients["ann"]
            ann.write("input/of ann", b"x")
            refused = ann.sync()
            assert refused.status == 5, refused
            assert "bob" in refused.document["error"]["message"]
            ann.path("input/of ann").unlink()
    for scene, running in stopped.values():
        check(scene, running.end())


def gave_up(ended: Ended) -> bool:
    """Whether a sync ended because nothing had been heard from the agent."""
    return ended.status == 6 and f"for {SILENCE:.0f} s" in ended.document["error"]["message"]

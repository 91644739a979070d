"""A side that stands still at a step, and the connection cut meanwhile; an agent that falls silent.

What the client then says must be the truth, whoever wakes up later; and the
next command must find all as before or all as after.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from protocol.transaction import STEPS, Side, Step, StepRow
from tests.crash.conftest import Line
from tests.crash.scene import FULL, Scene, everything, stands, until
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
        expected = [0, 6] if mended else [11]
    elif row.step is Step.LOCAL_LOCKED:
        expected = [0, 6] if mended else [6]  # there may have been no connection yet
    else:
        expected = [6]
    assert ended.status in expected, ended
    line.proxy.mend()
    check(scene, ended)


# Silence

#: Seconds after which each side takes the other for dead (docs/wire.md), and a little more.
SILENCE = 60.0


def agent_of(scene: Scene, line: Line, others: set[int]) -> int:
    """The agent that this scene's command has started."""
    found = set(line.people.host.running_agents()) - others
    assert len(found) == 1, found
    return found.pop()


def test_agent_falls_silent(line: Line, base: World, folder: Path) -> None:
    """Stopped agents, before anything is decided and in the middle of the commit; all waits side by side."""
    host = line.people.host
    stopped: list[tuple[Scene, int, Running]] = []
    steps = [Step.UPLOADED] + ([Step.REMOTE_PREPARED, Step.REMOTE_DECIDED] if FULL else [])
    try:
        for step in steps:
            scene = everything(base, folder / step.value)
            others = set(host.running_agents())
            running = scene.start("sync", "--json", there=f"{step.value}=hang:1")
            until(lambda: scene.agent_said(step.value), f"the agent at {step.value}")  # noqa: B023
            agent = agent_of(scene, line, others)
            os.kill(agent, signal.SIGSTOP)
            stopped.append((scene, agent, running))
        for scene, _, running in stopped:
            ended = running.end()
            committing = scene.agent_said(Step.REMOTE_DECIDED.value)
            assert ended.status == (11 if committing else 6), ended
            assert f"for {SILENCE:.0f} s" in ended.document["error"]["message"] or committing, ended
            # It has the lock as long as it lives: nobody can do anything, and everybody is told why.
            bob = scene.world.clients["bob"]
            bob.write("input/of bob", b"x")
            refused = bob.dsg("sync", "--json")
            assert refused.status == 5, refused
            assert "ann" in refused.document["error"]["message"]
            bob.path("input/of bob").unlink()
    finally:
        for _, agent, _ in stopped:
            os.kill(agent, signal.SIGCONT)
    for scene, _, running in stopped:
        check(scene, running.end())


def test_network_falls_silent(line: Line, base: World, folder: Path) -> None:
    """Nothing moves any more, and nothing is closed: the client gives up, and the agent does by itself."""
    scene = everything(base, folder)
    running = scene.start("sync", "--json", there="uploaded=hang:1")
    until(lambda: scene.agent_said("uploaded"), "the agent")
    line.proxy.freeze()
    ended = running.end()
    assert ended.status == 6, ended
    assert f"for {SILENCE:.0f} s" in ended.document["error"]["message"], ended
    assert scene.untouched_here()
    line.proxy.cut()
    line.proxy.mend()
    check(scene, ended)

"""Death, interruption and cuts at moments that nobody chose: seeded, and replayed by the seed.

    pytest tests/crash/test_kills.py --seed 4711     # prints what it drew when it fails

``DSG_FULL=1`` draws many more. What the undisturbed sync takes, in seconds and
in bytes each way, is measured first; moments are drawn over all of it.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import frozen

from tests.crash.conftest import Line
from tests.crash.scene import FULL, Scene, everything, only_downloads, until
from tests.e2e.world import Ended, World

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

MANY = 50 if FULL else 1


@frozen
class Measured:
    """An undisturbed sync: how long it took, the bytes up and down, and both when the commit went off."""

    seconds: float
    up: int
    down: int
    commit_up: int
    commit_down: int


@pytest.fixture(scope="module")
def measured(line: Line, base: World, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    proxy = line.proxy
    scene = everything(base, tmp_path_factory.mktemp("undisturbed"))
    up, down = proxy.up, proxy.down
    began = time.monotonic()
    assert scene.run("sync").status == 0
    seconds = time.monotonic() - began
    up, down = proxy.up - up, proxy.down - down
    scene = everything(base, tmp_path_factory.mktemp("to-the-commit"))
    commit_up, commit_down = proxy.up, proxy.down
    with scene.stopped("local-prepared", there=False) as (running, _):
        commit_up, commit_down = proxy.up - commit_up, proxy.down - commit_down
    assert running.end().status == 0
    return Measured(seconds, up, down, commit_up, commit_down)


def drawn(count: int) -> pytest.MarkDecorator:
    """As many tests, each with randomness of its own (the fixture ``rng``)."""
    return pytest.mark.parametrize("number", range(count * MANY))


def check(scene: Scene, ended: Ended, rng: random.Random) -> None:
    """All or nothing after the next command; what was said was true; and it goes on from there."""
    said = {"before", "after"} if ended.status < 0 else scene.claim(ended)
    then = rng.choice(["recover", "sync"])
    settled = scene.settle(then, "--json")
    assert settled.status == 0, settled
    verdict = scene.verdict()
    if then == "recover":
        assert verdict in said, f"it said {said}, and it is {verdict}: {ended}"
    else:
        assert verdict == "after"
    scene.goes_on(verdict)


def scene_for(rng: random.Random, base: World, folder: Path) -> Scene:
    return rng.choice([everything, everything, only_downloads])(base, folder)


# Death


@drawn(5)
def test_client_killed(
    number: int, rng: random.Random, measured: Measured, base: World, folder: Path
) -> None:
    scene = scene_for(rng, base, folder)
    delay = rng.uniform(0.15, measured.seconds * 1.1)
    print(f"SIGKILL for the client after {delay:.3f} s")
    running = scene.start("sync", "--json")
    time.sleep(delay)
    running.process.kill()
    check(scene, running.end(), rng)


@drawn(5)
def test_agent_killed(
    number: int, rng: random.Random, line: Line, measured: Measured, base: World, folder: Path
) -> None:
    scene = everything(base, folder)
    host = line.people.host
    others = set(host.running_agents())
    running = scene.start("sync", "--json")
    agents: set[int] = set()

    def started() -> bool:
        agents.update(set(host.running_agents()) - others)
        return bool(agents) or running.process.poll() is not None

    until(started, "the agent")
    delay = rng.uniform(0, measured.seconds * 0.6)
    print(f"SIGKILL for the agent {delay:.3f} s after it began")
    time.sleep(delay)
    for agent in agents:
        kill(agent, signal.SIGKILL)
    ended = running.end()
    assert ended.status in (0, 6), ended
    check(scene, ended, rng)


def test_agent_killed_while_it_tidies(base: World, folder: Path) -> None:
    """What an agent killed after its commit leaves lies there until somebody needs the lock."""
    scene = everything(base, folder)
    assert scene.run("sync", "--json").status == 0
    area, txid = scene.world.repository / ".dsg", scene.world.remote().head.txid
    dead = subprocess.Popen(["true"])
    dead.wait()
    rubbish = area / "trash" / txid
    rubbish.mkdir(parents=True)
    for pid, made_by in ((os.getpid(), txid), (dead.pid, secrets.token_hex(16))):
        (area / "lock.holder").write_text(json.dumps({"pid": pid, "txid": made_by}))
        with pytest.raises(AssertionError, match="left over on the server"):
            scene.verdict()
    (area / "lock.holder").write_text(json.dumps({"pid": dead.pid, "txid": txid}))
    scene.goes_on(scene.verdict())
    assert not rubbish.exists()


@drawn(2)
def test_both_killed(
    number: int, rng: random.Random, line: Line, measured: Measured, base: World, folder: Path
) -> None:
    """A machine that fails takes both, when the repository lies on it."""
    scene = everything(base, folder)
    others = set(line.people.host.running_agents())
    running = scene.start("sync", "--json")
    delay = rng.uniform(0.3, measured.seconds * 1.1)
    print(f"SIGKILL for client and agent after {delay:.3f} s")
    time.sleep(delay)
    for agent in set(line.people.host.running_agents()) - others:
        kill(agent, signal.SIGKILL)
    running.process.kill()
    check(scene, running.end(), rng)


@drawn(2)
def test_killed_again_and_again(
    number: int, rng: random.Random, measured: Measured, base: World, folder: Path
) -> None:
    """Whoever comes next is killed, too: each goes on from where the one before it was."""
    scene = scene_for(rng, base, folder)
    for _ in range(4):
        command = rng.choice(["sync", "sync", "recover"])
        delay = rng.uniform(0.2, measured.seconds)
        print(f"SIGKILL for dsg {command} after {delay:.3f} s")
        running = scene.start(command, "--json")
        time.sleep(delay)
        running.process.kill()
        ended = running.end()
        assert ended.status in (0, 5, -signal.SIGKILL), ended
    check(scene, Ended(-signal.SIGKILL, "", ""), rng)


def kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


# Interruption


@drawn(4)
def test_interrupted(number: int, rng: random.Random, measured: Measured, base: World, folder: Path) -> None:
    """Ctrl-C or a shutdown: it is undone, or complete, and it says which."""
    scene = scene_for(rng, base, folder)
    delay = rng.uniform(0.1, measured.seconds * 1.1)
    chosen = rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    times = rng.choice([1, 1, 3])
    print(f"{times} times {chosen.name} after {delay:.3f} s")
    running = scene.start("sync", "--json")
    time.sleep(delay)
    for _ in range(times):
        running.process.send_signal(chosen)
        time.sleep(0.05)
    ended = running.end()
    if ended.status not in (0, 130):
        # Python was still starting: then nothing is claimed.
        assert ended.status in (-chosen, 1) and not ended.out, ended
        ended = Ended(-chosen, "", "")
    check(scene, ended, rng)


# The wire


@frozen
class Where:
    """Where the wire is cut: a way, and bytes from the start or from the commit."""

    way: str
    at: Callable[[random.Random, Measured], int]


ANYWHERE = [
    Where("up", lambda rng, m: rng.randrange(m.up)),
    Where("down", lambda rng, m: rng.randrange(m.down)),
]
AT_THE_COMMIT = [
    Where("up", lambda rng, m: m.commit_up + rng.randrange(-100, 400)),
    Where("down", lambda rng, m: m.commit_down + rng.randrange(-300, 300)),
]


def cut_off(where: Where, rng: random.Random, line: Line, measured: Measured, scene: Scene) -> None:
    at = max(1, where.at(rng, measured))
    mended = rng.choice([True, True, False])
    print(f"cut after {at} bytes {where.way} of {measured}, {'mended' if mended else 'and not mended'}")
    proxy = line.proxy
    proxy.cut_after(**{where.way: at})
    connections = proxy.connections
    running = scene.start("sync", "--json")
    if mended:
        # The line comes back as soon as it was cut.
        until(lambda: running.process.poll() is not None or proxy.is_cut, "the cut", 60)
        proxy.mend()
    ended = running.end()
    proxy.mend()
    assert proxy.connections > connections
    # 11 also when the line was not yet mended at the moment of asking again.
    assert ended.status in (0, 6, 11), ended
    check(scene, ended, rng)


@drawn(3)
@pytest.mark.parametrize("where", ANYWHERE, ids=lambda where: where.way)
def test_cut_anywhere(
    where: Where,
    number: int,
    rng: random.Random,
    line: Line,
    measured: Measured,
    base: World,
    folder: Path,
) -> None:
    cut_off(where, rng, line, measured, everything(base, folder))


@drawn(3)
@pytest.mark.parametrize("where", AT_THE_COMMIT, ids=lambda where: where.way)
def test_cut_at_the_commit(
    where: Where,
    number: int,
    rng: random.Random,
    line: Line,
    measured: Measured,
    base: World,
    folder: Path,
) -> None:
    cut_off(where, rng, line, measured, everything(base, folder))


@drawn(2)
def test_stalled(
    number: int, rng: random.Random, line: Line, measured: Measured, base: World, folder: Path
) -> None:
    """The network stands still for some seconds, and nothing comes of it."""
    scene = everything(base, folder)
    delay = rng.uniform(0.3, measured.seconds)
    print(f"frozen after {delay:.3f} s")
    running = scene.start("sync", "--json")
    time.sleep(delay)
    line.proxy.freeze()
    time.sleep(3)
    line.proxy.thaw()
    ended = running.end()
    assert ended.status == 0, ended
    assert scene.verdict() == "after"

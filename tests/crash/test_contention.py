"""Two at once: one wins, the other is told who, since when and from where, and nobody's file is lost."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.scene import THEIRS, Scene, everything, merged, standing, unread, until
from tests.e2e.oracle import File, photograph
from tests.e2e.world import Running, World

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

SINCE = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@contextmanager
def hung(scene: Scene, step: str, *, there: bool = True) -> Iterator[Running]:
    """Ann's sync, stopped at a step for as long as the context lasts; then it goes on."""
    with scene.stopped(step, there=there) as (running, _):
        yield running
        assert running.process.poll() is None


@pytest.mark.parametrize("step", ["remote-begun", "uploaded", "remote-prepared"])
def test_the_other_is_told_who_has_the_lock(step: str, base: World, folder: Path) -> None:
    scene = everything(base, folder)
    bob = scene.world.clients["bob"]
    bob.write("input/of bob", b"bob's own")
    with hung(scene, step) as running:
        refused = bob.sync()
        assert refused.status == 5, refused
        error = refused.document["error"]
        assert (error["code"], error["outcome"]) == ("locked", "aborted")
        assert "ann" in error["message"] and re.search(SINCE, error["message"]), error
        assert re.search(r"\(from [^,]+, account [^,]+, process \d+ on [^)]+\)", error["message"]), error
        assert "--retries" in error["hint"]
        plain = bob.dsg("sync")
        assert plain.status == 5 and "Nothing was changed" in plain.err, plain
    ended = running.end()
    assert ended.status == 0, ended
    bob.must("sync")
    expected = scene.after | {"input/of bob": File(b"bob's own")}
    assert bob.local() == scene.world.remote().check().live == expected
    scene.who.must("sync")
    assert scene.who.local() == expected


def test_retries_wait_until_it_is_free(base: World, folder: Path) -> None:
    scene = everything(base, folder)
    bob = scene.world.clients["bob"]
    bob.write("input/of bob", b"bob's own")
    with hung(scene, "uploaded") as running:
        waiting = bob.start("sync", "--json", "--retries", "10")
        time.sleep(2)
        assert waiting.process.poll() is None
    assert running.end().status == 0
    ended = waiting.end()
    assert ended.status == 0, ended
    assert any("locked by ann" in note["text"] for note in ended.document["notes"]), ended
    expected = scene.after | {"input/of bob": File(b"bob's own")}
    assert bob.local() == scene.world.remote().check().live == expected


def test_all_at_once(base: World, folder: Path) -> None:
    """Nobody waits for anybody; with retries all of them get through, one after another."""
    scene = everything(base, folder)
    world = scene.world
    for name in ("cat", "dan"):
        world.clone(name)
    expected = dict(scene.after)
    for name in ("bob", "cat", "dan"):
        world.clients[name].write(f"input/of {name}", name.encode())
        expected[f"input/of {name}"] = File(name.encode())
    running = [c.start("sync", "--json", "--retries", "20") for c in world.clients.values()]
    ended = [one.end() for one in running]
    assert [one.status for one in ended] == [0] * 4, "\n".join(map(str, ended))
    remote = world.remote().check()
    assert remote.live == expected
    # Each made one snapshot, and has its own.
    assert sorted(record.who for record in remote.records[len(scene.before.records) :]) == sorted(
        world.clients
    )
    for client in world.clients.values():
        client.must("sync")
        assert client.local() == expected


def test_two_syncs_in_one_folder(base: World, folder: Path) -> None:
    scene = everything(base, folder)
    with hung(scene, "local-flushed", there=False) as running:
        for command in ("sync", "recover", "clean"):
            refused = scene.who.dsg(command, "--json")
            assert refused.status == 5, refused
            message = refused.document["error"]["message"]
            assert "'dsg sync'" in message and re.search(SINCE, message), message
            assert f"process {running.process.pid}" in message, message
        assert scene.untouched_here()
    assert running.end().status == 0
    assert scene.verdict() == "after"


@pytest.mark.parametrize("step", ["uploaded", "remote-prepared", "remote-decided"])
def test_looking_on_disturbs_nothing(step: str, base: World, folder: Path) -> None:
    """A status and a clone beside a sync that hangs see the last decided state, whole."""
    scene = everything(base, folder)
    bob = scene.world.clients["bob"]
    decided = step == "remote-decided"
    with hung(scene, step) as running:
        was = photograph(scene.world.repository)
        seen = bob.dsg("status", "--json")
        assert seen.status == 0, seen
        assert bool(seen.document["changes"]["download"]) == decided
        assert scene.who.dsg("status", "--json").status == 0
        cat = scene.world.clone("cat")
        assert cat.local() == (scene.after if decided else merged(THEIRS))
        assert photograph(scene.world.repository) == was, "somebody wrote on the server"
    ended = running.end()
    assert ended.status == 0, ended
    assert scene.verdict() == "after"
    cat.must("sync")
    assert cat.local() == scene.after


def test_status_beside_a_sync_of_the_same_folder(base: World, folder: Path) -> None:
    scene = everything(base, folder)
    with hung(scene, "local-prepared", there=False) as running:
        was = photograph(scene.who.folder, without={".dsg/index", ".dsg/index.late"})
        seen = scene.who.dsg("status", "--json")
        assert seen.status == 0, seen
        assert photograph(scene.who.folder, without={".dsg/index", ".dsg/index.late"}) == was
    assert running.end().status == 0
    assert scene.verdict() == "after"


@pytest.mark.parametrize("times", [1, 2])
def test_head_moved_between_plan_and_begin(times: int, base: World, folder: Path) -> None:
    """Ann plans on a head that is gone when she begins: she plans again, from the start."""
    scene = everything(base, folder)
    bob = scene.world.clients["bob"]
    expected = dict(scene.after)
    running = scene.start("sync", "--json", here="planned=stop")
    for number in range(times):
        with standing(running.process.pid):
            bob.write(f"input/of bob {number}", b"meanwhile")
            bob.must("sync")
            expected[f"input/of bob {number}"] = File(b"meanwhile")
        until(lambda n=number: failpoints_met(running) > n + 1, "ann's next plan")
    with standing(running.process.pid):
        pass
    ended = running.end()
    assert ended.status == 0, ended
    again = [n for n in ended.document["notes"] if "planning again" in n["text"]]
    assert len(again) == times, ended
    assert scene.who.local() == scene.world.remote().check().live == expected
    assert scene.who.sync().document["state"] == "nothing"


def failpoints_met(running: Running) -> int:
    """How often a running command has come to its failpoint: one line of stderr each, unread so far."""
    return unread(running) // len("failpoint planned: stop\n")


def test_head_moved_into_a_conflict(base: World, folder: Path) -> None:
    """What bob did meanwhile meets what ann did: planned again, it is a conflict, and nothing moves."""
    scene = everything(base, folder)
    bob = scene.world.clients["bob"]
    with scene.stopped("planned", there=False) as (running, _):
        bob.write("input/mine.csv", b"bob has it otherwise\n")
        bob.must("sync")
    ended = running.end()
    assert ended.status == 3, ended
    assert [c["path"] for c in ended.document["error"]["facts"]["conflicts"]] == ["input/mine.csv"]
    assert scene.untouched_here()
    assert scene.world.remote().check().live["input/mine.csv"] == File(b"bob has it otherwise\n")


def test_the_lock_ends_with_its_holder(base: World, folder: Path) -> None:
    """A killed agent's lock is nobody's, whatever its note still says."""
    scene = everything(base, folder)
    running = scene.start("sync", "--json", there="uploaded=kill")
    assert running.end().status == 6
    assert (scene.world.repository / ".dsg" / "lock.holder").exists()
    bob = scene.world.clients["bob"]
    bob.write("input/of bob", b"x")
    bob.must("sync")
    assert scene.who.sync().status == 0
    assert scene.world.remote().check().live == scene.after | {"input/of bob": File(b"x")}


def test_a_killed_client_leaves_no_lock_in_its_folder(base: World, folder: Path) -> None:
    scene = everything(base, folder)
    running = scene.start("sync", "--json", here="downloaded=kill")
    assert running.end().status == -signal.SIGKILL
    assert (scene.who.folder / ".dsg" / "lock.holder").exists()
    assert scene.settle("sync", "--json").status == 0
    assert scene.verdict() == "after"

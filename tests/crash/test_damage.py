"""Damaged, missing and exchanged things: nothing is deleted or overwritten, and the way out works.

Each thing is taken away, cut short, and has a bit flipped. What is only a
cache is made anew without a word; all else is an error (exit 8) with a hint,
and the test then walks the way that the hint describes.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.scene import MINE, START, THEIRS, Scene, everything, files_of, merged, pending, until
from tests.e2e.oracle import File, photograph
from tests.e2e.world import Client, World

pytestmark = pytest.mark.slow

Harm = Callable[[Path, random.Random], None]


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def cut_short(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


HARMS: list[Harm] = [remove, cut_short, empty, flip]
harmed = pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
garbled = pytest.mark.parametrize("harm", HARMS[1:], ids=lambda harm: harm.__name__)
#: What commands may write beside L, C and R.
PASSING = {".dsg/index", ".dsg/index.late", ".dsg/lock", ".dsg/lock.holder", ".dsg/tmp"}


@pytest.fixture
def scene(near_base: World, folder: Path) -> Scene:
    return everything(near_base, folder)


def server_files(scene: Scene) -> dict[str, object]:
    return files_of(scene.world.repository)


def refused(client: Client, *command: str, status: int = 8) -> str:
    """Run a command that must be refused, with a hint; message and hint."""
    ended = client.dsg(*command, "--json")
    assert ended.status == status, ended
    error = ended.document["error"]
    assert error["outcome"] == "aborted" and error["hint"], ended
    return f"{error['message']}\n{error['hint']}"


# C


@harmed
def test_cache(harm: Harm, scene: Scene, rng: random.Random) -> None:
    ann = scene.who
    path = ann.path(".dsg/cache")
    harm(path, rng)
    was, there = photograph(ann.folder, without=PASSING), photograph(scene.world.repository)
    for command in ("sync", "status"):
        assert "dsg recover --rebuild-cache" in refused(ann, command)
        assert photograph(ann.folder, without=PASSING) == was
        assert photograph(scene.world.repository) == there
    # The way out changes neither side. What differs is a conflict then, and nothing is taken for deleted.
    files = files_of(ann.folder)
    ended = ann.dsg("recover", "--rebuild-cache", "--json")
    assert ended.status == 0 and "made anew" in " ".join(ended.document["settled"]), ended
    assert files_of(ann.folder) == files
    assert scene.world.remote().check().records == scene.before.records
    again = ann.sync()
    assert again.status == 3, again
    found = {c["path"] for c in again.document["error"]["facts"]["conflicts"]}
    assert {"input/mine.csv", "input/theirs.csv"} <= found
    ann.must("sync", "--prefer", "local")
    now = scene.world.remote().check()
    assert ann.local() == now.live
    # Nothing went: what either side alone had is on both.
    assert {"input/i delete", "input/new/of ann", "input/new/of bob", "input/they delete"} <= now.live.keys()
    assert now.live["input/mine.csv"] == MINE["input/mine.csv"]


@harmed
def test_local_index(harm: Harm, scene: Scene, rng: random.Random) -> None:
    """A cache only: a silent rebuild."""
    scene.who.must("status")
    scene.who.must("sync", "--dry-run")
    index = scene.who.path(".dsg/index")
    if not index.exists():
        scene.who.must("sync")
        scene.goes_on("after")
    harm(index, rng)
    ended = scene.who.sync()
    assert ended.status == 0 and not ended.document["notes"], ended
    assert scene.verdict() == "after"


@pytest.mark.turns(2)
@garbled
@pytest.mark.parametrize("state", ["prepared", "decided"])
def test_local_journal(state: str, harm: Harm, scene: Scene, rng: random.Random) -> None:
    """Never half read."""
    ann = scene.who
    step = {"prepared": "commit-sent", "decided": "local-trashed"}[state]
    scene.run("sync", here=f"{step}=kill")
    until_agents_end(scene)
    found = pending(ann.folder)
    assert found is not None and found[0] == state
    journal = ann.path(f".dsg/journal.{state}")
    harm(journal, rng)
    was, there = photograph(ann.folder, without=PASSING), server_files(scene)
    for command in ("sync", "recover", "status"):
        told = refused(ann, command)
        assert f"journal.{state}" in told and "dsg status" in told
        assert photograph(ann.folder, without=PASSING) == was
        assert server_files(scene) == there
    # As the hint says: .dsg copied aside, the journal moved out of it, and then a look.
    aside = ann.folder.with_name("aside")
    shutil.copytree(ann.path(".dsg"), aside, symlinks=True)
    journal.rename(aside / "damaged")
    seen = ann.dsg("status", "--json")
    assert seen.status == 0, seen
    contents = {v.content for v in ann.local().values() if isinstance(v, File)}
    kept = [p.read_bytes() for p in aside.rglob("*") if p.is_file() and not p.is_symlink()]
    before = {v.content for v in merged(MINE).values() if isinstance(v, File)}
    assert before <= contents | set(kept), "something of L is nowhere any more"
    if state == "prepared":
        assert scene.untouched_here()
        assert scene.settle("sync", "--json").status == 0
        assert scene.verdict() == "after"


def test_a_prepared_journal_that_is_gone(scene: Scene) -> None:
    """It is as if the sync had been given up."""
    scene.run("sync", here="local-prepared=kill")
    until_agents_end(scene)
    scene.who.path(".dsg/journal.prepared").unlink()
    assert scene.untouched_here()
    scene.goes_on("before")


def until_agents_end(scene: Scene) -> None:
    """The killed client's child agent has nobody to serve any more, and ends."""
    for _ in range(200):
        ended = scene.who.dsg("status", "--json")
        area = scene.world.repository / ".dsg"
        if ended.status == 0 and not (area / "lock.holder").exists():
            return


# R


def area(scene: Scene, name: str) -> Path:
    return scene.world.repository / ".dsg" / name


@pytest.mark.turns(2)
@harmed
@pytest.mark.parametrize("name", ["head", "records/00000002", "manifests/00000002"])
def test_newest_snapshot(name: str, harm: Harm, scene: Scene, rng: random.Random) -> None:
    """An unreadable R is never an empty one."""
    harm(area(scene, name), rng)
    there = photograph(scene.world.repository, without=PASSING)
    ann, bob = scene.who, scene.world.clients["bob"]
    was = photograph(ann.folder, without=PASSING)
    ended = ann.sync()
    if ended.status == 0 and harm is flip and name == "head":
        return  # It still says the same: JSON has room for that.
    assert ended.status == 8, ended
    assert "backup" in refused(ann, "sync")
    assert photograph(ann.folder, without=PASSING) == was
    # Bob is in step with the head: he needs its manifest when he has something to change.
    ended = bob.sync()
    if name == "manifests/00000002":
        assert (ended.status, ended.document["state"]) == (0, "nothing"), ended
        bob.write("input/of bob", b"x")
    was = photograph(bob.folder, without=PASSING)
    assert "backup" in refused(bob, "sync")
    assert photograph(bob.folder, without=PASSING) == was
    assert photograph(scene.world.repository, without=PASSING) == there


@harmed
def test_an_older_record(harm: Harm, scene: Scene, rng: random.Random) -> None:
    """The records after it vouch for it by its digest: who does not read it does not need it."""
    record = area(scene, "records/00000001")
    harm(record, rng)
    left = record.read_bytes() if record.exists() else None
    told = refused(scene.world.clients["bob"], "log")
    assert "records/00000001" in told and "backup" in told
    ann = scene.who
    assert ann.sync().document["state"] == "done"
    assert ann.local() == scene.after
    assert scene.world.clients["bob"].sync().document["state"] == "done"
    assert (record.read_bytes() if record.exists() else None) == left
    assert "records/00000001" in refused(ann, "log")


@harmed
def test_head_is_written_anew(harm: Harm, scene: Scene, rng: random.Random) -> None:
    """The hint of a broken head: remove it, and run ``dsg recover``."""
    head = area(scene, "head")
    whole = head.read_bytes()
    harm(head, rng)
    ended = scene.who.sync()
    if ended.status == 0:
        assert harm is flip
        return
    assert ended.status == 8, ended
    hint = ended.document["error"]["hint"]
    if harm is flip and "dsg recover" not in hint:
        assert (
            "backup" in hint
        )  # It names a record that is none: which of the two is damaged, nobody can tell.
        return
    assert "dsg recover" in hint
    head.unlink(missing_ok=True)
    scene.who.must("recover")
    assert head.read_bytes() == whole
    scene.goes_on("before")


@harmed
def test_server_index(harm: Harm, scene: Scene, rng: random.Random) -> None:
    harm(area(scene, "index"), rng)
    ended = scene.who.sync()
    assert ended.status == 0 and not ended.document["notes"], ended
    assert scene.verdict() == "after"


@pytest.mark.turns(2)
@garbled
@pytest.mark.parametrize("state", ["prepared", "decided"])
def test_server_journal(state: str, harm: Harm, scene: Scene, rng: random.Random) -> None:
    journal = left_on_the_server(scene, state)
    harm(journal, rng)
    there = server_files(scene)
    bob = scene.world.clients["bob"]
    bob.write("input/of bob", b"x")
    was = files_of(bob.folder)
    told = refused(bob, "sync")
    assert "journal" in told
    assert server_files(scene) == there
    assert files_of(bob.folder) == was


def left_on_the_server(scene: Scene, state: str) -> Path:
    """The journal of an agent that was killed, and whose client does not ask what became of it."""
    journal = area(scene, f"journal.{state}")
    running = scene.start("sync", here="commit-sent=hang:60", there=f"remote-{state}=kill")
    until(lambda: journal.exists() or running.process.poll() is not None, "the journal")
    if state == "decided":
        running.process.kill()
    running.end()
    assert journal.exists(), os.listdir(journal.parent)
    return journal


@pytest.mark.parametrize("state", ["prepared", "decided"])
def test_a_server_journal_that_is_gone(state: str, scene: Scene) -> None:
    """It is as if it had never been written."""
    left_on_the_server(scene, state).unlink()
    assert scene.untouched_here()
    scene.goes_on("before")


@harmed
def test_content_on_the_server(harm: Harm, scene: Scene, rng: random.Random) -> None:
    """A file in the repository's folder that is not what the head says is never handed out, nor replaced."""
    harm(scene.world.repository / "input/their big", rng)
    there = server_files(scene)
    ended = scene.who.sync()
    assert ended.status in (8, 16), ended
    assert "input/their big" in ended.document["error"]["message"]
    assert scene.untouched_here()
    assert server_files(scene) == there
    # The way out that costs nothing: somebody who has the file puts it back.
    shutil.copyfile(
        scene.world.clients["bob"].path("input/their big"), scene.world.repository / "input/their big"
    )
    scene.goes_on("before")


# Exchanged


def test_repository_restored_from_an_older_copy(scene: Scene, folder: Path) -> None:
    """To a plain comparison, all that came since would look deleted."""
    world, ann, bob = scene.world, scene.who, scene.world.clients["bob"]
    backup = folder / "backup"
    shutil.copytree(world.repository, backup, symlinks=True)
    ann.must("sync")
    bob.must("sync")
    shutil.rmtree(world.repository)
    shutil.copytree(backup, world.repository, symlinks=True)
    there = photograph(world.repository)
    for client in (ann, bob):
        was = photograph(client.folder, without=PASSING)
        for command in ("sync", "status"):
            told = refused(client, command)
            assert "does not know snapshot s3" in told and "restored" in told and "dsg clone" in told
        assert photograph(client.folder, without=PASSING) == was
    assert photograph(world.repository) == there
    # The way out: a clone beside, what is missing carried over, and a sync from there.
    cat = world.clone("cat")
    assert cat.local() == merged(THEIRS)
    shutil.rmtree(cat.path("input"))
    shutil.copytree(ann.path("input"), cat.path("input"), symlinks=True)
    cat.must("sync")
    assert world.remote().check().live == scene.after == cat.local()


def test_another_repository_in_its_place(scene: Scene) -> None:
    world, ann = scene.world, scene.who
    shutil.rmtree(world.repository)
    world.init("eve")
    was = photograph(ann.folder, without=PASSING)
    assert "another repository" in refused(ann, "sync")
    assert photograph(ann.folder, without=PASSING) == was
    assert world.remote().check().live == {}


def copied(scene: Scene) -> Client:
    """Ann's folder once more, as a backup tool or ``cp -a`` makes it."""
    ann = scene.who
    copy = ann.folder.with_name("copy")
    shutil.copytree(ann.folder, copy, symlinks=True)
    return Client("ann", copy, ann.machine, ann.program)


def test_copied_working_folder(scene: Scene) -> None:
    twin = copied(scene)
    twin.must("sync")
    assert twin.local() == scene.world.remote().check().live == scene.after
    scene.who.must("sync")
    assert scene.who.local() == scene.after
    # Each goes on by itself.
    twin.write("input/of the copy", b"x")
    twin.must("sync")
    scene.who.must("sync")
    assert scene.who.local() == twin.local()


@pytest.mark.turns(2)
@pytest.mark.parametrize("step", ["local-prepared", "commit-sent", "local-decided", "local-trashed"])
@pytest.mark.parametrize("first", ["the copy", "the original"])
def test_copied_with_a_pending_journal(step: str, first: str, scene: Scene) -> None:
    """Stats and inodes of the original say nothing in the copy: its journal is settled by outcome alone."""
    scene.run("sync", here=f"{step}=kill")
    until_agents_end(scene)
    twin = copied(scene)
    had = {v.content for v in merged(MINE).values() if isinstance(v, File)}
    order = [twin, scene.who] if first == "the copy" else [scene.who, twin]
    for client in order:
        ended = client.dsg("sync", "--json", "--retries", "5")
        if ended.status == 3:
            # Half applied, and no journal that holds here: it stops and lists, and loses nothing.
            assert client is twin and step == "local-trashed", ended
            continue
        assert ended.status == 0, ended
    for client in order:
        kept = {p.read_bytes() for p in client.path(".dsg/replaced").rglob("*") if p.is_file()}
        history = scene.world.remote().check()
        found = {v.content for v in client.local().values() if isinstance(v, File)}
        assert had <= found | kept | set(history.contents.values()), "something of L is nowhere any more"
    assert scene.who.local() == scene.after == scene.world.remote().check().live
    assert pending(twin.folder) is None
    assert set(START) - set(scene.after) == {path for path in START if path not in scene.world.remote().live}

"""Random trees under real syncs over SSH: nothing is lost, nothing is done twice, nothing is half done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.edits import edit, grow, paths_for
from tests.e2e.model import merge
from tests.e2e.oracle import File, Link, Taken, Tree, digests, photograph
from tests.e2e.world import Client, Running, World

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

WORLDS = int(os.environ.get("DSG_WORLDS", "8"))
INDEX = {".dsg/index", ".dsg/index.late"}


@pytest.fixture(scope="module")
def base(session_world: Callable[[], World]) -> World:
    """Ann and bob in step with an empty repository."""
    world = session_world()
    world.init("ann")
    world.clone("bob")
    return world


Pictures = dict[str, dict[str, Taken]]


def pictures(world: World) -> Pictures:
    """L and C of everybody, and R, byte for byte; the clients' stat indexes may change at any time."""
    found = {name: photograph(client.folder, without=INDEX) for name, client in world.clients.items()}
    return found | {"server": photograph(world.repository, folder_times=True)}


def changed(before: Pictures, after: Pictures) -> list[str]:
    """Whatever came, went or changed between two times."""
    return [
        f"{where}: {path}"
        for where in before
        for path in sorted({*before[where], *after[where]})
        if before[where].get(path) != after[where].get(path)
    ]


def at_rest(found: Pictures) -> Pictures:
    """Without what a transaction that was undone may leave: times of folders, and the server's stat index."""
    return {
        where: {
            path: t._replace(mtime_ns=0) if t.kind == "d" else t
            for path, t in taken.items()
            if (where, path) != ("server", ".dsg/index")
        }
        for where, taken in found.items()
    }


@pytest.mark.parametrize("number", range(WORLDS))
def test_random_world(number: int, base: World, tmp_path: Path, rng: random.Random) -> None:
    world = base.copy(tmp_path)
    ann, bob = world.clients["ann"], world.clients["bob"]
    paths = paths_for(rng, 14)
    start = grow(rng, paths, 9)
    assert len(start) >= 9 and any("/" in path.removeprefix("input/") for path in start)
    ann.put_all(start)
    ann.must("sync")
    bob.must("sync")
    local, remote = start, start
    for _ in range(6):
        local, step = edit(rng, ann, local, paths)
        print(f"ann {step}")
        remote, step = edit(rng, bob, remote, paths)
        print(f"bob {step}")
    bob.must("sync", "--allow-mass-delete")
    assert ann.local() == local
    assert ann.cache().tree == digests(start)
    before = world.remote().check()
    assert before.live == bob.local() == remote

    # Looking changes nothing.
    prefer = rng.choice(["local", "remote"])
    was = pictures(world)
    undecided = merge(local, start, remote)
    seen = ann.dsg("status", "--json")
    assert seen.status == 0, seen
    assert {c["path"] for c in seen.document["conflicts"]} == undecided.conflicts
    seen = ann.sync("--dry-run")
    assert seen.status == (3 if undecided.conflicts else 0), seen
    assert not changed(was, pictures(world))

    # A conflict stops all of it, and only a conflict does.
    ended = ann.sync("--allow-mass-delete")
    expected = undecided
    if undecided.conflicts:
        assert ended.status == 3, ended
        assert {c["path"] for c in ended.document["error"]["facts"]["conflicts"]} == undecided.conflicts
        assert not changed(was, pictures(world))
        ended = ann.sync("--prefer", prefer, "--allow-mass-delete")
        expected = merge(local, start, remote, prefer)
    assert ended.status == 0, ended
    after = world.remote().check()
    assert ann.local() == after.live == expected.tree
    assert ann.cache().tree == digests(expected.tree)

    # Nothing is lost in silence: what was here is here, in a snapshot, or kept. Of R, check() has seen all.
    snapshots = [after.snapshot(seq) for seq in range(len(after.records))]
    kept = ann.replaced()
    for path, version in local.items():
        held = [tree.get(path) for tree in (expected.tree, kept, *snapshots)]
        if isinstance(version, File):
            assert any(isinstance(v, File) and v.content == version.content for v in held), path
        else:
            assert version in held, path
    assert set(kept) <= expected.disputed & set(local)

    # Once is enough.
    was = pictures(world)
    ended = ann.sync()
    assert (ended.status, ended.document["state"]) == (0, "nothing"), ended
    assert not changed(was, pictures(world))
    bob.must("sync", "--allow-mass-delete")
    assert bob.local() == expected.tree
    assert bob.cache() == ann.cache()
    assert world.remote().check().head == after.head


# A sync that fails, at whatever moment and for whatever reason, leaves L, C and R as they were.

START: Tree = {
    **{f"input/stay/{number}": File(b"%d" % number) for number in range(6)},
    **{
        f"input/{name}": File(name.encode()) for name in ("mine", "theirs", "i delete", "they delete", "both")
    },
    "input/link": Link("mine"),
    "input/becomes a folder": File(b"still a file"),
}
MINE = {
    "input/mine": File(b"changed here", True),
    "input/i delete": None,
    "input/new/here": File(300_000 * b"n"),
    "input/link": Link("theirs"),
}
THEIRS = {
    "input/theirs": File(b"changed there", True),
    "input/they delete": None,
    "input/becomes a folder": None,
    "input/becomes a folder/now": File(300_000 * b"t"),
}


@pytest.fixture(scope="module")
def busy(base: World) -> World:
    """Much to do for ann: uploads, downloads and deletes on both sides, and no conflict."""
    world = base.copy(base.folder / "busy")
    ann, bob = world.clients["ann"], world.clients["bob"]
    ann.put_all(START)
    ann.must("sync")
    bob.must("sync")
    bob.put_all(THEIRS)
    bob.must("sync")
    ann.put_all(MINE)
    return world


Spoil = Callable[[World], None]


def conflict(world: World) -> None:
    world.clients["bob"].put("input/both", File(b"by bob"))
    world.clients["bob"].must("sync")
    world.clients["ann"].put("input/both", File(b"by ann"))


def other_form(world: World) -> None:
    world.clients["ann"].put("input/" + unicodedata.normalize("NFD", "é"), File(b""))


def line_break(world: World) -> None:
    world.clients["ann"].put("input/two\nlines", File(b""))


def case_pair(world: World) -> None:
    world.clients["ann"].put_all({"input/Pair": File(b""), "input/pair": File(b"")})


def not_utf8(world: World) -> None:
    (world.clients["ann"].folder / "input" / os.fsdecode(b"\xff")).write_bytes(b"")


def link_outside(world: World) -> None:
    world.clients["ann"].put("input/out", Link("../../elsewhere"))


def fifo(world: World) -> None:
    os.mkfifo(world.clients["ann"].path("input/fifo"))


def everything_deleted(world: World) -> None:
    world.clients["ann"].must("sync")
    shutil.rmtree(world.clients["ann"].path("input"))


def cache_damaged(world: World) -> None:
    path = world.clients["ann"].path(".dsg/cache")
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    path.write_bytes(stored)


def cache_missing(world: World) -> None:
    world.clients["ann"].path(".dsg/cache").unlink()


def cache_cut(world: World) -> None:
    path = world.clients["ann"].path(".dsg/cache")
    path.write_bytes(path.read_bytes()[:-40])


def head_missing(world: World) -> None:
    (world.repository / ".dsg/head").unlink()


def record_damaged(world: World) -> None:
    path = world.repository / ".dsg/records/00000002"
    path.write_bytes(path.read_bytes().replace(b"bob", b"eve"))


def manifest_missing(world: World) -> None:
    (world.repository / ".dsg/manifests/00000002").unlink()


def restored_older(world: World) -> None:
    """The repository as it was at s0, from a backup."""
    assert world.origin is not None and world.origin.origin is not None
    shutil.rmtree(world.repository)
    shutil.copytree(world.origin.origin.repository, world.repository)


def changed_outside(world: World) -> None:
    (world.repository / "input/mine").write_bytes(b"somebody on the server")


def deleted_outside(world: World) -> None:
    (world.repository / "input/theirs").unlink()


def nothing(world: World) -> None:
    pass


def here(failpoint: str) -> dict[str, str]:
    """The variable that lets something happen to the client at a step."""
    return {"DSG_FAILPOINTS": failpoint}


def there(failpoint: str) -> dict[str, str]:
    """The same for the agent."""
    return {"DSG_AGENT_COMMAND": f"env DSG_FAILPOINTS={failpoint} dsg-remote-agent"}


FAILURES: dict[str, tuple[int, Spoil, dict[str, str]]] = {
    "conflict": (3, conflict, {}),
    "a name in another normal form": (12, other_form, {}),
    "a name with a line break": (12, line_break, {}),
    "a name that is not UTF-8": (12, not_utf8, {}),
    "names that differ in case": (12, case_pair, {}),
    "a link that leads outside": (12, link_outside, {}),
    "a fifo": (12, fifo, {}),
    "everything deleted": (13, everything_deleted, {}),
    "damaged C": (8, cache_damaged, {}),
    "missing C": (8, cache_missing, {}),
    "C cut short": (8, cache_cut, {}),
    "missing head": (8, head_missing, {}),
    "damaged record": (8, record_damaged, {}),
    "missing manifest": (8, manifest_missing, {}),
    "an older repository": (8, restored_older, {}),
    "a file changed on the server": (16, changed_outside, {}),
    "a file deleted on the server": (16, deleted_outside, {}),
    "no agent": (6, nothing, {"DSG_AGENT_COMMAND": "no-such-program"}),
    "an error after the downloads": (10, nothing, here("downloaded=error:EIO")),
    "an error after the local flush": (10, nothing, here("local-flushed=error:EIO")),
    "an error after the last look": (10, nothing, here("local-checked=error:EIO")),
    "an error after the local journal": (10, nothing, here("local-prepared=error:EIO")),
    "an error after the remote lock": (9, nothing, there("remote-locked=error:EIO")),
    "an error at the first upload": (9, nothing, there("upload-started=error:ENOSPC")),
    "an error after the uploads": (9, nothing, there("uploaded=error:EDQUOT")),
    "an error after the remote flush": (9, nothing, there("remote-flushed=error:EIO")),
    "an error after the remote journal": (9, nothing, there("remote-prepared=error:EIO")),
    "an error before the decision": (9, nothing, there("remote-checked=error:EIO")),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failed_sync_changes_nothing(failure: str, busy: World, tmp_path: Path) -> None:
    status, spoil, variables = FAILURES[failure]
    world = busy.copy(tmp_path)
    spoil(world)
    was = pictures(world)
    ended = world.clients["ann"].dsg("sync", "--json", variables=variables)
    assert ended.status == status, ended
    assert ended.document["error"]["outcome"] == "aborted"
    assert not changed(at_rest(was), at_rest(pictures(world)))


def test_the_busy_world_would_sync(busy: World, tmp_path: Path) -> None:
    """What the failures above keep from happening happens when nothing fails."""
    world = busy.copy(tmp_path)
    ann = world.clients["ann"]
    assert ann.sync().status == 0
    expected = {p: v for p, v in {**START, **MINE, **THEIRS}.items() if v is not None}
    assert ann.local() == world.remote().check().live == expected


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of somebody who works there."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("where", ["the server", "the working folder"])
def test_locked_by_another(where: str, busy: World, tmp_path: Path) -> None:
    world = busy.copy(tmp_path)
    ann = world.clients["ann"]
    was = pictures(world)
    with held((world.repository if where == "the server" else ann.folder) / ".dsg" / "lock"):
        ended = ann.sync()
    assert ended.status == 5, ended
    assert not changed(at_rest(was), at_rest(pictures(world)))


@contextlib.contextmanager
def half_done(client: Client) -> Iterator[Running]:
    """A sync that waits a while when all bytes have been moved, before it looks at L for the last time."""
    running = client.start("sync", "--json", variables=here("local-flushed=hang:2"))
    wait_for(lambda: any(client.path(".dsg/staging").glob("*/cache")), "the staged cache")
    yield running
    running.end()


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(number: signal.Signals, busy: World, tmp_path: Path) -> None:
    world = busy.copy(tmp_path)
    was = pictures(world)
    with half_done(world.clients["ann"]) as running:
        running.process.send_signal(number)
        ended = running.end()
    assert (ended.status, ended.document["error"]["outcome"]) == (130, "aborted"), ended
    assert not changed(at_rest(was), at_rest(pictures(world)))


def test_cut_off(busy: World, tmp_path: Path) -> None:
    world = busy.copy(tmp_path)
    was = pictures(world)
    with half_done(world.clients["ann"]) as running:
        world.people.host.cut_sessions()
        ended = running.end()
    assert (ended.status, ended.document["error"]["outcome"]) == (6, "aborted"), ended
    # The agent undoes its side when it notices.
    wait_for(lambda: not changed(at_rest(was), at_rest(pictures(world))), "the agent's undoing")
    assert world.clients["ann"].sync().status == 0


@pytest.mark.parametrize(
    "path", ["input/mine", "input/theirs", "input/new/here", "input/they delete", "input/link"]
)
def test_planned_file_changes_meanwhile(path: str, busy: World, tmp_path: Path) -> None:
    world = busy.copy(tmp_path)
    ann = world.clients["ann"]
    with half_done(ann) as running:
        ann.put(path, File(b"an edit in the last moment"))
        was = pictures(world)
        ended = running.end()
    assert (ended.status, ended.document["error"]["outcome"]) == (15, "aborted"), ended
    assert path in ended.document["error"]["message"]
    now, was = at_rest(pictures(world)), at_rest(was)
    assert now["server"].keys() < was["server"].keys(), "staging was there, and is gone"
    assert now["bob"] == was["bob"]
    assert {p: t for p, t in now["ann"].items() if ".dsg/" not in p} == {
        p: t for p, t in was["ann"].items() if ".dsg/" not in p
    }
    assert world.remote().check().records == busy.remote().records
    assert ann.cache() == busy.clients["ann"].cache()


def test_unplanned_file_waits_for_the_next_sync(busy: World, tmp_path: Path) -> None:
    world = busy.copy(tmp_path)
    ann = world.clients["ann"]
    with half_done(ann) as running:
        ann.put("input/new/file", File(b"just written"))
        assert running.end().status == 0
    assert ann.path("input/new/file").read_bytes() == b"just written"
    assert "input/new/file" not in {*ann.cache().tree, *world.remote().check().live}
    assert ann.sync().document["changes"]["upload"] == ["input/new/file"]

"""Random edit scripts of three people over SSH, with syncs that really overlap.

Each script is a few rounds: everybody edits, then several sync at the same
moment. Which of them the server took first is not ours to say; but whatever
came out must be what *some* order of whole syncs, one after the other, comes
to in the model (:func:`tests.e2e.model.merge`): every exit status, L and C of
everybody, R, and who made which snapshot. Then everybody syncs until all are
in step, and the trees are equal, and the model's.

``DSG_SEED=N`` replays a run (as ``--seed N`` does), ``-k 17-directory`` one
script of it (``3-zfs`` on ZFS); ``DSG_SCRIPTS=20`` runs fewer, and
``DSG_ZFS_SCRIPTS=100`` more on ZFS.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import define, evolve, field, frozen

from tests.e2e.edits import KINDS, Step, edit, grow, paths_for
from tests.e2e.model import merge
from tests.e2e.oracle import Tree, digests
from tests.e2e.world import Ended, World
from tests.e2e.zfs import ZfsWorld

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen", "ssh")]

SCRIPTS = int(os.environ.get("DSG_SCRIPTS", "100"))
ZFS_SCRIPTS = int(os.environ.get("DSG_ZFS_SCRIPTS", "20"))
NAMES = ("ann", "bob", "cat")
LOCKED = 5
AT_ONCE = 2  # scripts; each has up to three syncs under way
# Moments at which somebody may dawdle, so that others come in between.
HERE = ("planned", "planned", "scanned", "local-flushed", "local-prepared")
THERE = ("remote-begun", "uploaded", "remote-prepared", "remote-checked")
READ_THROUGH = ("remote-decided", "remote-applied", "remote-published")  # committed, and not yet in its place


@frozen
class Sides:
    """L and C of each person, R, and who made which snapshot: all that a sync may change."""

    local: dict[str, Tree]
    cache: dict[str, Tree]
    remote: Tree
    makers: tuple[str, ...]

    def synced(self, name: str, prefer: str | None) -> tuple[Sides, int, frozenset[str]]:
        """After one sync of one person: its exit status, and the paths that were in dispute."""
        merged = merge(self.local[name], self.cache[name], self.remote, prefer)
        if merged.conflicts:
            return self, 3, merged.disputed
        after = Sides(
            self.local | {name: merged.tree},
            self.cache | {name: merged.tree},
            merged.tree,
            self.makers + ((name,) if merged.tree != self.remote else ()),
        )
        return after, 0, merged.disputed


@define
class Tally:
    """What a script was made of: whether it was worth running."""

    steps: Counter[str] = field(factory=Counter)
    in_conflict: Counter[str] = field(factory=Counter)
    statuses: Counter[int] = field(factory=Counter)
    moved_heads: int = 0
    commits: Counter[int] = field(factory=Counter)  # rounds by how many of their syncs committed
    scripts: int = 0

    def add(self, other: Tally) -> None:
        self.steps += other.steps
        self.in_conflict += other.in_conflict
        self.statuses += other.statuses
        self.moved_heads += other.moved_heads
        self.commits += other.commits
        self.scripts += 1


class Script:
    """One script being played."""

    def __init__(self, seed: str, world: World, start: Tree, paths: list[str]) -> None:
        self.rng = random.Random(seed)
        self.world = world
        self.paths = paths
        everybody = dict.fromkeys(NAMES, start)
        self.sides = Sides(everybody, everybody, start, self.makers())
        self.tally = Tally()
        self.steps: list[Step] = []  # those that have not met with a conflict
        self.told: list[str] = []  # what happened, for the one who reads a failure

    def makers(self) -> tuple[str, ...]:
        return tuple(record.who for record in self.world.remote().records)

    def play(self) -> Tally:
        for name in ("bob", "cat"):
            self.world.clients[name].variables["DSG_TRANSPORT"] = "openssh"
        for number in range(self.rng.choice([1, 1, 2])):
            self.told.append(f"round {number}")
            self.edit_all()
            prefers = {n: self.rng.choice([None, "local", "remote"]) if number else None for n in NAMES}
            self.sync_at_once(prefers, retries=number)
        for number in range(4):
            behind = [n for n in NAMES if self.sides.local[n] != self.sides.remote]
            if not behind:
                break
            self.told.append(f"in step, {number}")
            self.sync_at_once({n: self.rng.choice(["local", "remote"]) for n in behind}, retries=4)
        else:
            raise AssertionError("they do not come in step")
        final = self.world.remote().check()
        assert final.live == self.sides.remote
        for name in NAMES:
            assert self.world.clients[name].local() == final.live, name
        return self.tally

    def edit_all(self) -> None:
        """Everybody edits on their own."""
        local = dict(self.sides.local)
        for name in NAMES:
            for _ in range(self.rng.randint(2, 3)):
                local[name], step = edit(self.rng, self.world.clients[name], local[name], self.paths)
                self.steps.append(step)
                self.told.append(f"{name} {step}")
                self.tally.steps[step.kind] += 1
            assert self.world.clients[name].local() == local[name]
        self.sides = evolve(self.sides, local=local)

    def sync_at_once(self, prefers: dict[str, str | None], retries: int) -> None:
        """Let several people sync at the same time, and find the order that explains what came of it."""
        running = {}
        for name in self.rng.sample(sorted(prefers), len(prefers)):
            options = ["--allow-mass-delete", "--retries", str(retries)]
            prefer = prefers[name]
            options += ["--prefer", prefer] if prefer else []
            running[name] = self.world.clients[name].start(
                "sync", "--json", *options, variables=self.dawdle()
            )
            time.sleep(self.rng.choice([0, 0, 0.05, 0.2]))
        ended = {name: sync.end() for name, sync in running.items()}
        self.note(prefers, ended)
        self.settle(prefers, {name: end.status for name, end in ended.items()})

    def settle(self, prefers: dict[str, str | None], statuses: dict[str, int]) -> None:
        """Compare what is on the disks with what the syncs that were not locked out come to in some order."""
        found = Sides(
            {name: self.world.clients[name].local() for name in NAMES},
            {name: self.world.clients[name].cache().tree for name in NAMES},
            self.world.remote().check().live,
            self.makers(),
        )
        locked_out = [name for name in prefers if statuses[name] == LOCKED]
        for order in itertools.permutations(prefers.keys() - set(locked_out)):
            sides, predicted, disputed = self.sides, dict.fromkeys(locked_out, LOCKED), frozenset[str]()
            for name in order:
                sides, predicted[name], met = sides.synced(name, prefers[name])
                disputed |= met
            if predicted == statuses and found == evolve(
                sides, cache={name: digests(cache) for name, cache in sides.cache.items()}
            ):
                break
        else:
            raise AssertionError("no order of these syncs explains what came of them")
        if locked_out:
            assert sides.makers != self.sides.makers, "somebody was locked out by nobody"
        self.tally.in_conflict.update(s.kind for s in self.steps if disputed & s.changes.keys())
        self.steps = [s for s in self.steps if not disputed & s.changes.keys()]
        self.tally.commits[len(sides.makers) - len(self.sides.makers)] += 1
        self.sides = sides

    def dawdle(self) -> dict[str, str]:
        """Variables that make one sync stop for a while at some step, or at none."""
        steps = self.rng.choice([(), HERE, HERE, THERE, READ_THROUGH])
        if not steps:
            return {}
        point = f"{self.rng.choice(steps)}=hang:{self.rng.choice([0.3, 0.6, 1.0])}"
        self.told.append(f"the next to be started dawdles: {point}")
        if steps is HERE:
            return {"DSG_FAILPOINTS": point}
        return {"DSG_AGENT_COMMAND": f"env DSG_FAILPOINTS={point} dsg-remote-agent"}

    def note(self, prefers: dict[str, str | None], ended: dict[str, Ended]) -> None:
        for name, end in ended.items():
            notes = [note["text"] for note in end.document["notes"] if "Windows" not in note["text"]]
            moved = sum(text.endswith("planning again") for text in notes)
            error = end.document.get("error", {}).get("message", "")
            self.told.append(f"{name} syncs (prefer {prefers[name]}): {end.status} {error} {notes}")
            self.tally.statuses[end.status] += 1
            self.tally.moved_heads += moved


Base = tuple[World, Tree, list[str]]
BASES = 4


@pytest.fixture(scope="module")
def bases(seed: int, either_world: Callable[[], World]) -> list[Base]:
    """Three people in step, for each of a few trees: the world, the tree, and the paths to edit."""
    made = []
    for number in range(min(BASES, SCRIPTS)):
        rng = random.Random(f"{seed} base {number}")
        paths = paths_for(rng, 8)
        start = grow(rng, paths, 9)
        world = either_world()
        # Two of the three keep one connection for all their syncs, as ssh can: much quicker.
        for name in ("bob", "cat"):
            machine = world.people.machine(name)
            machine.write_config("ControlMaster auto", f"ControlPath {machine.home}/mux", "ControlPersist 60")
        ann = world.init("ann")
        ann.put_all(start)
        ann.must("sync")
        world.clone("bob")
        world.clone("cat")
        made.append((world, start, paths))
    return made


Played = dict[int, "Future[Tally]"]


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest, seed: int, bases: list[Base], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Played]:
    """The selected scripts, played ahead of the tests that wait for them, a few at once."""
    folder = tmp_path_factory.mktemp("scripts")
    backend = "zfs" if isinstance(bases[0][0], ZfsWorld) else "directory"

    def play(number: int) -> Tally:
        world, start, paths = bases[number % len(bases)]
        script = Script(f"{seed} script {number}", world.copy(folder / str(number)), start, paths)
        try:
            return script.play()
        except BaseException as error:
            again = f"DSG_SEED={seed} pytest {Path(__file__).name} -k '{number}-{backend}'"
            error.add_note("\n".join([*script.told, f"to play this again: {again}"]))
            raise

    items = [item for item in request.session.items if item.path == request.path]
    params = [item.callspec.params for item in items]  # type: ignore[attr-defined]
    numbers = [found["number"] for found in params if found["either_world"] == backend]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {number: pool.submit(play, number) for number in numbers}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    """What all scripts were made of; the whole of them must have been worth it."""
    tally = Tally()
    yield tally
    print(f"\n{tally}")
    if tally.scripts < 100:
        return
    assert set(tally.steps) == set(KINDS)
    assert set(tally.in_conflict) == set(KINDS), "some kind of edit was never in conflict"
    assert 5 * tally.in_conflict.total() >= tally.steps.total()
    # They met on the server, and not only on paper: two or three commits in one round, heads that moved.
    assert tally.commits[2] + tally.commits[3] >= 20
    assert tally.moved_heads + tally.statuses[LOCKED] >= 10


@pytest.mark.parametrize("either_world", ["directory"], indirect=True)
@pytest.mark.parametrize("number", range(SCRIPTS))
def test_script(number: int, played: Played, tally: Tally) -> None:
    tally.add(played[number].result())


@pytest.mark.needs("zfs-fuse", "root")
@pytest.mark.parametrize("either_world", ["zfs"], indirect=True)
@pytest.mark.parametrize("number", range(min(SCRIPTS, ZFS_SCRIPTS)))
def test_script_on_zfs(number: int, played: Played) -> None:
    played[number].result()

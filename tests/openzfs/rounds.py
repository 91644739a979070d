"""One crash after the other in one repository: a command costs seconds there, and seeding several of them.

Ann and bob take turns. Whoever's turn it is has made changes of every kind,
and the other's of the last turn are new to her: her sync changes L, C and R,
and it is this sync that something happens to. When it has been settled, all
three are as after the sync, and the other's turn comes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from protocol.transaction import STEPS, Side, StepRow
from tests.crash.conftest import NOTED_AGENT
from tests.crash.scene import FULL, Scene, Verdict
from tests.crash.test_failpoints import NEXT, settles
from tests.e2e.oracle import File, Link, Tree, Version
from tests.e2e.world import Client
from tests.e2e.zfs import ZfsWorld
from tests.hosts.openzfs.guest import Guest

__all__ = ["REMOTE", "QuickWorld", "Rounds", "dealt", "goes_on"]

REMOTE = [row for row in STEPS if row.side is Side.REMOTE]
_NAMES = ("ann", "bob")
_SHELL = b"#!/bin/sh\nexit 0\n"
_START: Tree = {
    "input/same.csv": File(b"nobody touches this\n"),
    "input/kept/also same.csv": File(b"nor this\n"),
}


def _changes(number: int) -> dict[str, Version | None]:
    """What is changed in a turn; each person's path is a file in one turn and a folder in the next."""
    who, turn = _NAMES[number % 2], number // 2 % 2
    content = b"%d, by %s\n" % (number, who.encode())
    shape = f"input/shape of {who}"
    return {
        f"input/{who}.csv": File(content),
        f"input/{who}.sh": File(_SHELL, executable=turn == 1),
        f"input/link of {who}": Link(("same.csv", "nowhere")[turn]),
        (f"{shape}/x", shape)[turn]: File(content),
        (shape, f"{shape}/x")[turn]: None,
        f"input/big of {who}": File(random.Random(number).randbytes(60_000)),
        f"input/new/deep/{number}": File(b""),
        f"input/new/{number}": File(content),
        f"input/new/{number - 2}": None,
    }


def _with(tree: Tree, changes: Mapping[str, Version | None]) -> Tree:
    return {path: version for path, version in {**tree, **changes}.items() if version is not None}


class QuickWorld(ZfsWorld):
    """A world whose people use the connection that the tests have: logging in costs the machine a second."""

    def client(self, name: str, *, working: str | None = None) -> Client:
        client = super().client(name, working=working)
        client.variables["DSG_TRANSPORT"] = "openssh"
        assert isinstance(self.people.host, Guest)
        client.machine.write_config(f"ControlPath {self.people.host.connection}")
        return client


class Rounds:
    """The repository, and whose turn it is. After a failure the next test gets a new one."""

    def __init__(self, guest: Guest, make_world: Callable[[], ZfsWorld]) -> None:
        self._guest = guest
        self._make_world = make_world
        self._world: ZfsWorld | None = None
        self._number = 0
        self._tree: Tree = {}

    @contextmanager
    def another(self) -> Iterator[Scene]:
        """The next one's sync, which is still to come; at the end all must be as after it."""
        if self._world is None:
            self._world = self._begun(self._make_world())
        world, self._world = self._world, None
        self._number += 1
        yield self._turn(world)
        world.settled()
        self._world = world

    def _begun(self, world: ZfsWorld) -> ZfsWorld:
        """They have something in common, and ann has synced changes since."""
        self._guest.install_program("noted-agent", NOTED_AGENT)
        self._tree = _with(_with(_START, _changes(0)), _changes(1))
        ann = world.init("ann")
        ann.put_all(self._tree)
        ann.must("sync")
        world.clone("bob")
        self._number = 2
        self._turn(world).who.must("sync")
        world.settled()
        return world

    def _turn(self, world: ZfsWorld) -> Scene:
        changes = _changes(self._number)
        self._tree = _with(self._tree, changes)
        who = world.clients[_NAMES[self._number % 2]]
        who.put_all(changes)
        return Scene(world, who, self._tree, snapshots=1)


def dealt(rows: Iterable[StepRow]) -> list[tuple[StepRow, str]]:
    """A next command for each of these steps; in short runs they take turns, and none only looks."""
    if FULL:
        return [(row, then) for row in rows for then in NEXT]
    return list(zip(rows, itertools.cycle(("recover", "sync")), strict=False))


def goes_on(scene: Scene, row: StepRow, then: str, said: set[Verdict]) -> None:
    """Settle the sync that was broken off at ``row`` by the command ``then``, and bring it to its end."""
    if settles(scene, then, said, row.committed) == "before":
        ended = scene.settle("sync", "--json")
        assert (ended.status, ended.document["state"]) == (0, "done"), ended
        assert scene.verdict() == "after"
    elif then == "sync" and row.committed:
        # It had nothing to change, and so no lock: what the dead agent left goes with the next that has it.
        assert scene.settle("recover").status == 0

"""One sync that does everything, to be broken off anywhere; and the verdict on what it left.

Ann and bob were in step. Bob then synced changes of every kind, and ann has
made others of every kind, which meet nowhere. Ann's next sync uploads,
downloads, replaces, deletes on both sides, changes links and executable bits,
and makes folders of files and files of folders. What L, C and R are before it
and after it is typed out here; :func:`verdict` says which of the two they are,
and is an AssertionError when they are neither.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import termios
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgpack
from attrs import define, field, frozen

from tests.e2e.oracle import Cache, File, Link, Record, Tree, Version, digests, photograph
from tests.e2e.world import Client, Ended, Running, World
from tests.hosts.sshd import state_of

__all__ = [
    "FULL",
    "MINE",
    "START",
    "THEIRS",
    "Scene",
    "Verdict",
    "files_of",
    "merged",
    "pending",
    "standing",
    "stands",
    "unread",
    "until",
]

# All combinations, instead of some that stand for the others.
FULL = bool(os.environ.get("DSG_FULL"))

_rng = random.Random(20261122)
_SHELL = b"#!/bin/sh\nexit 0\n"

START: Tree = {
    "input/same.csv": File(b"nobody touches this\n"),
    "input/kept/also same.csv": File(b"nor this\n"),
    "input/mine.csv": File(b"one\n"),
    "input/theirs.csv": File(b"two\n"),
    "input/i delete": File(b"three\n"),
    "input/they delete": File(b"four\n"),
    "input/i empty this/x": File(b"five\n"),
    "input/they empty this/deep/x": File(b"six\n"),
    "input/my link": Link("same.csv"),
    "input/their link": Link("same.csv"),
    "input/my.sh": File(_SHELL),
    "input/their.sh": File(_SHELL, True),
    "input/my file": File(b"becomes a folder\n"),
    "input/their file": File(b"becomes a folder too\n"),
    "input/my folder/x": File(b"becomes a file\n"),
    "input/their folder/x": File(b"becomes a file too\n"),
    "input/my file or link": File(b"becomes a link\n"),
    "input/their link or file": Link("nowhere"),
    "input/my big": File(_rng.randbytes(300_000)),
    "input/their big": File(_rng.randbytes(300_000)),
    **{f"input/rest/{number}": File(b"%d\n" % number) for number in range(20)},
}
MINE: Mapping[str, Version | None] = {
    "input/mine.csv": File(b"one, by ann\n"),
    "input/i delete": None,
    "input/i empty this/x": None,
    "input/my link": Link("mine.csv"),
    "input/my.sh": File(_SHELL, True),
    "input/my file": None,
    "input/my file/inner/x": File(b"it is a folder\n"),
    "input/my folder/x": None,
    "input/my folder": File(b"it is a file\n"),
    "input/my file or link": Link("kept"),
    "input/my big": File(_rng.randbytes(300_000)),
    "input/new/of ann": File(b"new\n"),
    "input/new/empty of ann": File(b""),
}
THEIRS: Mapping[str, Version | None] = {
    "input/theirs.csv": File(b"two, by bob\n"),
    "input/they delete": None,
    "input/they empty this/deep/x": None,
    "input/their link": Link("theirs.csv"),
    "input/their.sh": File(_SHELL),
    "input/their file": None,
    "input/their file/inner/x": File(b"it is a folder now\n"),
    "input/their folder/x": None,
    "input/their folder": File(b"it is a file now\n"),
    "input/their link or file": File(b"it was a link\n"),
    "input/their big": File(_rng.randbytes(300_000)),
    "input/new/of bob": File(b"newer\n"),
    "input/new/empty of bob": File(b""),
}


def merged(*changes: Mapping[str, Version | None]) -> Tree:
    """START with changes."""
    found: dict[str, Version | None] = dict(START)
    for some in changes:
        found |= some
    return {path: version for path, version in found.items() if version is not None}


def files_of(folder: Path) -> dict[str, object]:
    """Every file, link and folder that is not DSG's own: bytes, mode, mtime, inode."""
    return {
        path: taken
        for path, taken in photograph(folder).items()
        if path not in (".", ".dsg") and not path.startswith(".dsg/")
    }


def until(condition: Callable[[], object], what: str, limit: float = 30.0) -> None:
    """Wait for something that must come true soon."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit:.0f} s in vain for {what}"
        time.sleep(0.01)


def stands(running: Running) -> bool:
    """Whether a command with ``--json`` has come to its failpoint: nothing else speaks on stderr."""
    return unread(running) > 0


def unread(running: Running) -> int:
    """The bytes of stderr that wait to be read."""
    assert running.process.stderr is not None
    waiting = array("i", [0])
    fcntl.ioctl(running.process.stderr, termios.FIONREAD, waiting)
    return waiting[0]


@contextmanager
def standing(pid: int) -> Iterator[None]:
    """A process at its failpoint ``stop``: it stands as long as the context lasts, then goes on."""
    until(lambda: state_of(pid) == "T" or not state_of(pid), f"process {pid} to stop")
    assert state_of(pid) == "T", "it ended before it came to the step"
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pending(folder: Path) -> tuple[str, str] | None:
    """State and txid of the journal in a folder's ``.dsg``; None when there is none."""
    for state in ("decided", "prepared"):
        try:
            raw = (folder / ".dsg" / f"journal.{state}").read_bytes()
        except FileNotFoundError:
            continue
        assert raw.startswith(b"DSGJ1\n")
        unpacker = msgpack.Unpacker()
        unpacker.feed(raw[6:])
        return state, unpacker.unpack()["txid"]
    return None


Verdict = Literal["before", "after"]

#: What a person reads about the outcome, when a command did not succeed.
WORDS = {
    "aborted": "Nothing was changed: local, cache and remote are as they were.",
    "committed": "The sync itself is committed",
    "in_doubt": "It is not known whether the server committed; nothing was changed here.",
}


@frozen
class Before:
    """L, C and R as they were."""

    files: dict[str, object]
    cache: Cache
    records: tuple[Record, ...]
    live: Tree


@define
class Scene:
    """A world at the crossroads: ``who`` is about to sync.

    ``after``: what L, C and R must then hold. ``snapshots``: how many the sync
    makes.
    """

    world: World
    who: Client
    after: Tree
    snapshots: int
    before: Before = field(init=False)
    only_uploads: bool = field(init=False)  # L is the same before and after
    said: Path = field(init=False)  # what the agents of this scene wrote to stderr

    def __attrs_post_init__(self) -> None:
        remote = self.world.remote().check()
        self.before = Before(files_of(self.who.folder), self.who.cache(), remote.records, remote.live)
        self.only_uploads = self.who.local() == self.after
        folder = self.world.folder
        self.said = (folder if self.near else self.world.people.host.scratch(folder)) / "agents-said"
        assert " " not in str(self.said), "it is a word in the agent's command"

    @property
    def near(self) -> bool:
        """Whether the agent is a child process, with no SSH in between."""
        return not self.world.address.rpartition("@")[2].startswith("data-host:")

    # What is tried

    def agents(self) -> set[int]:
        """The agents that run on the server."""
        return set(self.world.people.host.running_agents())

    @contextmanager
    def stopped(self, step: str, *, there: bool) -> Iterator[tuple[Running, int]]:
        """The sync, and the process of it that stands at ``step`` as long as the context lasts."""
        others = self.agents() if there else set()
        running = self.start("sync", "--json", **{"there" if there else "here": f"{step}=stop"})
        pid = running.process.pid
        if there:
            until(lambda: self.agent_said(step), f"the agent at {step}")
            (pid,) = self.agents() - others
        with standing(pid):
            yield running, pid

    def variables(self, *, here: str = "", there: str = "") -> dict[str, str]:
        """The environment that lets things happen at steps of the client, and of the agents it starts."""
        if self.near:
            return {"DSG_FAILPOINTS": ",".join(filter(None, (here, there)))}
        return {
            "DSG_FAILPOINTS": here,
            "DSG_AGENT_COMMAND": f"noted-agent {self.said} {there}".strip(),
        }

    def start(self, *arguments: str, here: str = "", there: str = "") -> Running:
        """Start a command of whose way this scene is about."""
        return self.who.start(*arguments, variables=self.variables(here=here, there=there))

    def run(self, *arguments: str, here: str = "", there: str = "") -> Ended:
        """Run it to its end."""
        return self.start(*arguments, here=here, there=there).end()

    def agent_said(self, step: str) -> bool:
        """Whether an agent of this scene has come to the step where something was to happen."""
        return not self.near and f"failpoint {step}: " in self.world.people.host.read_text(self.said)

    def settle(self, *arguments: str) -> Ended:
        """Run the next command; while the last one's agent still ends, it may find the repository locked."""
        deadline = time.monotonic() + 100
        while True:
            ended = self.who.dsg(*arguments)
            if ended.status != 5 or time.monotonic() > deadline:
                return ended
            time.sleep(0.1)

    # What came of it

    def untouched_here(self) -> bool:
        """Whether L and C are as they were."""
        return self._local() == self._cache() == "before"

    def _local(self) -> str:
        if files_of(self.who.folder) == self.before.files:
            return "before"
        return "after" if self.who.local() == self.after else "neither"

    def _cache(self) -> str:
        now = self.who.cache()
        if now == self.before.cache:
            return "before"
        remote = self.world.remote()
        whole = now.tree == digests(self.after) and now.record == remote.head.digest
        assert now.repo_id == remote.head.repo_id
        return "after" if whole else "neither"

    def _remote(self) -> str:
        now = self.world.remote().check(killed=True)
        if now.records == self.before.records and now.live == self.before.live:
            return "before"
        count = len(self.before.records) + self.snapshots
        whole = now.records[: len(self.before.records)] == self.before.records and len(now.records) == count
        return "after" if whole and now.live == self.after else "neither"

    def verdict(self) -> Verdict:
        """Whether L, C and R are all as before or all as after, and nothing is left lying about.

        AssertionError with what each of the three is, when they do not agree.
        """
        sides = {"L": self._local(), "C": self._cache(), "R": self._remote()}
        if not self.snapshots:
            del sides["R"]  # the same before and after
            assert self._remote() == "before", "R changed"
        if self.only_uploads:
            del sides["L"]
            assert self._local() == "before", "L changed"
        values = set(sides.values())
        assert len(values) == 1 and values <= {"before", "after"}, f"not all or nothing: {sides}"
        left = [
            p for area in ("staging", "trash", "tmp") for p in (self.who.folder / ".dsg" / area).glob("*")
        ]
        assert not left and pending(self.who.folder) is None, f"left over in L: {left}"
        assert not self.who.replaced()
        return "before" if values == {"before"} else "after"

    def claim(self, ended: Ended) -> set[Verdict]:
        """What a command says has become of its sync; AssertionError when it does not say it clearly."""
        if ended.status == 0:
            return {"after"}
        if ended.out.startswith("{"):
            outcome = ended.document["error"]["outcome"]
            assert ended.document["exit_status"] == ended.status
        else:
            found = [name for name, words in WORDS.items() if words in ended.err]
            assert len(found) == 1, f"it does not say what became of the sync: {ended}"
            outcome = found[0]
        assert (outcome == "in_doubt") == (ended.status == 11), ended
        return {"aborted": {"before"}, "committed": {"after"}, "in_doubt": {"before", "after"}}[outcome]

    def goes_on(self, verdict: Verdict) -> None:
        """The next sync brings everything to ``after``, or finds it there; then there is nothing to do."""
        if verdict == "before":
            ended = self.settle("sync", "--json")
            assert ended.status == 0, ended
            assert ended.document["state"] == "done"
            assert self.verdict() == "after"
        ended = self.settle("sync", "--json")
        assert (ended.status, ended.document["state"]) == (0, "nothing"), ended
        assert self.verdict() == "after"
        if self.world.remote().leftovers():
            # A killed agent's, which nobody has needed to remove yet.
            assert self.settle("recover").status == 0
            self.world.remote().check()


def at_the_crossroads(world: World) -> World:
    """Ann and bob have START in common, and bob has synced THEIRS. What ann does is still to come."""
    ann = world.init("ann")
    ann.put_all(START)
    ann.must("sync")
    bob = world.clone("bob")
    bob.put_all(THEIRS)
    bob.must("sync", "-m", "changes of bob")
    return world


def everything(base: World, folder: Path) -> Scene:
    """Ann's sync brings changes of every kind in both directions."""
    world = base.copy(folder)
    ann = world.clients["ann"]
    ann.put_all(MINE)
    return Scene(world, ann, merged(MINE, THEIRS), snapshots=1)


def only_downloads(base: World, folder: Path) -> Scene:
    """Ann has changed nothing: the sync changes L and C alone, and her own journal decides."""
    world = base.copy(folder)
    return Scene(world, world.clients["ann"], merged(THEIRS), snapshots=0)


def only_uploads(base: World, folder: Path) -> Scene:
    """Bob has what is there, and changes of his own: the sync changes R, and of L nothing."""
    world = base.copy(folder)
    bob = world.clients["bob"]
    bob.put_all(MINE)
    return Scene(world, bob, merged(MINE, THEIRS), snapshots=1)

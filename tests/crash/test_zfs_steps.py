"""On ZFS the agent, or ZFS itself, dies after every step: each command, and each file operation between.

The steps are those of a recording, made anew in every run: of a sync that does
everything, of an adoption, and of recoveries of such a sync. What counts as
a step is held to what strace sees, so that an operation of a new kind fails
here until it is one. ``DSG_FULL=1`` visits all of them; without it, some.
Controls take a safety out, and the same verdict must fail.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.scene import FULL, Scene, at_the_crossroads, everything, until
from tests.crash.test_controls import DECIDED_TOO_EARLY, client_without
from tests.crash.test_failpoints import settled
from tests.e2e.oracle import File, Tree
from tests.e2e.world import Ended, Running
from tests.e2e.zfs import ZfsPeople, ZfsWorld
from tests.hosts.sshd import ssh_host, state_of
from tests.hosts.stepped_agent import CALLS, program
from tests.hosts.zfs_fuse import ZfsFuse, zfs_fuse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("zfs-fuse", "root", "sshd", "ssh-keygen"),
    pytest.mark.timeout(1200),
]

PARTS = 8 if FULL else 1  # for two processes to share
SOME = 1  # steps of each kind in a short run
POINTS = 300  # of a full one, at least
DECISION = "zfs set dsg:head="
NEXT = ("recover", "sync")
# Of the syncs whose recovery dies, too: half made, prepared and frozen, decided, and while housekeeping.
DEATHS = ("zfs clone", "zfs set readonly=on", DECISION, "zfs promote", "zfs unmount")
# What leaves a dataset as it was.
LOOKS = ("zfs get", "zfs list", "zfs holds")


class Stepped:
    """A world to be copied, and the programs that break off what is done in the copies."""

    def __init__(self, world: ZfsWorld, folder: Path) -> None:
        self.world = world
        self.host = world.people.zfs
        self._folder = folder
        self._count = 0

    def folder(self) -> Path:
        """A new one."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return folder

    def scene(self) -> Scene:
        """Ann is about to sync changes of every kind."""
        return everything(self.world, self.folder())

    def done_with(self, world: ZfsWorld) -> None:
        """Let its datasets go: a daemon that starts again mounts whatever is there."""
        self.host.discard(world.root)


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stepped]:
    """A world at the crossroads, on a ZFS of its own, which tests kill; this thread sees it."""
    with zfs_fuse() as zfs, zfs.entered(), ssh_host() as host:
        folders = _folders_of(host.install_agent().read_text())
        host.install_program("stepped-agent", program(sys.executable, folders, str(host.agents)))
        world = ZfsWorld(ZfsPeople(host, zfs), tmp_path_factory.mktemp("base"))
        at_the_crossroads(world)
        yield Stepped(world, tmp_path_factory.mktemp("steps"))


def _folders_of(launcher: str) -> list[str]:
    """Where that program finds DSG and what it needs."""
    line = next(line for line in launcher.splitlines() if line.endswith('"$@"'))
    found = line.split()[-2].strip("'")
    return found.split(":")


Look = Callable[[list[str]], None]


def run(
    world: ZfsWorld, who: str, log: Path, number: int | str, *command: str, look: Look | None = None
) -> Ended:
    """Run a command whose agent dies after its step ``number``, and await the end of all its agents.

    ``look``, which is told the steps, is called before anybody can have recovered.
    """
    running = start(world, who, log, number, *command)
    with looking(world, running, log) as ended:
        until(lambda: gone(world, running, log), "the agent to end", 60)
        if look is not None:
            look(steps_in(log))
    return ended[0]


@contextmanager
def looking(world: ZfsWorld, running: Running, log: Path) -> Iterator[list[Ended]]:
    """Until the end of this context nobody recovers; then the command and its agents come to their end."""
    ended: list[Ended] = []
    try:
        yield ended
    finally:
        log.with_name(f"{log.name}.looked").touch()
        ended.append(running.end())
        until(lambda: not world.people.host.running_agents(), "the agents to end", 60)


def gone(world: ZfsWorld, running: Running, log: Path) -> bool:
    """Whether the first agent of a command has ended."""
    agents = world.people.host.running_agents()
    if running.process.poll() is not None and not agents:
        return True
    return bool(steps_in(log)) and first_of(log) not in agents


def first_of(log: Path) -> int:
    """The process of the first agent that wrote to ``log``."""
    return int(log.read_text().split(" ", 1)[0])


def start(world: ZfsWorld, who: str, log: Path, number: int | str, *command: str) -> Running:
    """Start a command with such an agent; see :mod:`tests.hosts.stepped_agent`."""
    words = f"stepped-agent {log} {number}"
    return world.clients[who].start(*command, "--json", variables={"DSG_AGENT_COMMAND": words})


def steps_in(log: Path) -> list[str]:
    """The steps of the first agent that wrote to ``log``."""
    lines = [line.split(" ", 2) for line in log.read_text().splitlines()] if log.exists() else []
    return [what for pid, _, what in lines if pid == lines[0][0]]


def some_of(count: int, part: int, rng: random.Random) -> list[int]:
    """The numbers of the steps that this part of the run visits."""
    mine = [number for number in range(1, count + 1) if number % PARTS == part]
    return mine if FULL else sorted(rng.sample(mine, min(SOME, len(mine))))


def decided(steps: list[str]) -> bool:
    return any(step.startswith(DECISION) for step in steps)


@pytest.fixture(scope="module")
def of_a_sync(stepped: Stepped) -> list[str]:
    """The steps of a sync that nobody disturbs."""
    scene = stepped.scene()
    log = scene.world.folder / "steps"
    ended = run(scene.world, "ann", log, 0, "sync")  # type: ignore[arg-type]
    assert ended.status == 0, ended
    scene.world.settled()  # type: ignore[attr-defined]
    steps = steps_in(log)
    assert decided(steps) and len(steps) > 50, steps
    return steps


@pytest.mark.parametrize("part", range(PARTS))
def test_an_agent_that_syncs(part: int, stepped: Stepped, of_a_sync: list[str], rng: random.Random) -> None:
    for number in some_of(len(of_a_sync), part, rng):
        scene = stepped.scene()
        try:
            _killed(scene, number, NEXT[number // PARTS % len(NEXT)])
        except BaseException as error:
            error.add_note(f"killed after step {number}, {of_a_sync[number - 1]}")
            raise
        stepped.done_with(scene.world)  # type: ignore[arg-type]


def _killed(scene: Scene, number: int, then: str, without: str = "") -> None:
    world = scene.world
    assert isinstance(world, ZfsWorld)
    log = world.folder / "steps"

    def look(steps: list[str]) -> None:
        assert len(steps) >= number, "it was not reached"
        people_see_a_whole_tree(scene, decided(steps))

    ended = run(world, "ann", log, f"{number}{without}", "sync", look=look)
    settled(scene, then, scene.claim(ended), decided(steps_in(log)))
    assert scene.settle("recover").status == 0
    world.settled()


def people_see_a_whole_tree(scene: Scene, committed: bool) -> None:
    """Before anybody has recovered the link leads to a mounted tree, the old one or the decided one."""
    world = scene.world
    assert os.path.ismount(os.path.realpath(world.repository)), "nothing is mounted there"
    live = world.remote().check().live
    # No assertion on the trees: in CI pytest works out all that two of them differ in, for ten minutes.
    whole = live == scene.before.live or (committed and live == scene.after)
    assert whole, "people see something else"


# All of ZFS


@pytest.mark.parametrize("lives", [False, True], ids=["both", "daemon"])
@pytest.mark.parametrize("part", range(PARTS))
def test_zfs_itself(
    part: int, lives: bool, stepped: Stepped, of_a_sync: list[str], rng: random.Random
) -> None:
    """Its daemon and the agent at once, as in a power cut, or the daemon alone; then it is started again."""
    all_of_them = [number for number, step in enumerate(of_a_sync, 1) if lasts(step)]
    for number in all_of_them[part::PARTS] if FULL else rng.sample(all_of_them, 1):
        scene = stepped.scene()
        try:
            _cut(scene, stepped.host, number, lives=lives)
        except BaseException as error:
            error.add_note(f"killed after step {number}, {of_a_sync[number - 1]}")
            raise
        stepped.done_with(scene.world)  # type: ignore[arg-type]


def lasts(step: str) -> bool:
    """Whether a step is meant to outlive a power cut, or leads people elsewhere."""
    if step.startswith("zfs "):
        return not step.startswith(LOOKS)
    return step.split()[0] in ("fsync", "syncfs", "rename", "symlink")


def _cut(scene: Scene, zfs: ZfsFuse, number: int, *, lives: bool = False, without: str = "") -> None:
    """Kill the daemon when the agent has come to that step; one that ``lives`` goes on and finds it gone."""
    world = scene.world
    assert isinstance(world, ZfsWorld)
    log = world.folder / "steps"
    running = start(world, "ann", log, f"-{number}{without}", "sync")
    with looking(world, running, log) as ended:
        until(lambda: len(steps_in(log)) >= number or gone(world, running, log), f"step {number}", 60)
        assert len(steps_in(log)) >= number, "it was not reached"
        pid = first_of(log)
        until(lambda: state_of(pid) == "T", "the agent to stop")
        zfs.kill()
        if lives:
            os.kill(pid, signal.SIGCONT)
            until(lambda: gone(world, running, log), "the agent to end", 60)
            zfs.start()
        else:
            zfs.start()
            os.kill(pid, signal.SIGKILL)
        steps = steps_in(log)
        people_see_a_whole_tree(scene, decided(steps))
    said = scene.claim(ended[0])
    settled(scene, NEXT[number % len(NEXT)], said, decided(steps))
    assert scene.settle("recover").status == 0
    world.settled()


# Would it be noticed?

LINKED_TOO_EARLY = """
import dsg_remote_agent.storage.zfs.transaction as m
decide = m.decide
def later(site, value, before, lock):
    m.mend_link(site, value.generation)
    decide(site, value, before, lock)
m.decide = later
"""
NEVER_LET_MOUNT = """
import dsg_remote_agent.storage.zfs.clone as m
m.let_mount = lambda *args, **more: None
"""


def test_without_the_order_it_is_noticed(stepped: Stepped, of_a_sync: list[str]) -> None:
    """The client decides before the server; the link is set before the decision."""
    decision = 1 + next(n for n, step in enumerate(of_a_sync) if step.startswith(DECISION))
    scene = stepped.scene()
    client_without(scene, DECIDED_TOO_EARLY)
    with pytest.raises(AssertionError, match="not all or nothing"):
        _killed(scene, decision - 1, "recover")
    stepped.done_with(scene.world)  # type: ignore[arg-type]
    scene = stepped.scene()
    with pytest.raises(AssertionError, match="people see something else"):
        _killed(
            scene, decision + len(("symlink", "rename")), "recover", agent_without(scene, LINKED_TOO_EARLY)
        )
    stepped.done_with(scene.world)  # type: ignore[arg-type]


def test_without_mounting_it_is_noticed(stepped: Stepped, of_a_sync: list[str]) -> None:
    """The new generation would be mounted by nobody after a power cut."""
    linked = 1 + next(n for n, step in enumerate(of_a_sync) if step.startswith("rename .repo.dsg-link"))
    scene = stepped.scene()
    with pytest.raises(AssertionError, match="nothing is mounted there"):
        _cut(scene, stepped.host, linked, without=agent_without(scene, NEVER_LET_MOUNT))
    stepped.done_with(scene.world)  # type: ignore[arg-type]


def agent_without(scene: Scene, patch: str) -> str:
    """What to say behind the number of a step, so that the agent lacks something."""
    program = scene.world.folder / "without.py"
    program.write_text(patch)
    return f":{program}"


# What a step is


def test_no_operation_is_missed(stepped: Stepped) -> None:
    """strace sees as many calls of each kind as were written down, and none that nobody writes down."""
    scene = stepped.scene()
    world = scene.world
    assert isinstance(world, ZfsWorld)
    log, seen = world.folder / "steps", world.folder / "seen"
    names = ",".join(f"?{name}" for name in (*_ALL_CHANGING, "execve"))
    words = f"strace -f -y -qq -s 300 -o {seen} -e trace={names} stepped-agent {log} 0"
    ended = world.clients["ann"].dsg("sync", "--json", variables={"DSG_AGENT_COMMAND": words})
    assert ended.status == 0, ended
    until(lambda: not scene.agents(), "the agent to end")
    counted = Counter(step.split()[0] for step in steps_in(log))
    del counted["zfs"]
    assert _by_function(seen.read_text(), str(log)) == counted


# All calls of Linux that change a file, a folder, their rights or a lock, or flush them.
_ALL_CHANGING = (
    *(name for names in CALLS.values() for name in names),
    *("openat2", "writev", "pwritev", "pwritev2", "sendfile", "splice", "fallocate", "mknod", "mknodat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "fchmodat2"),
    *("utime", "utimes", "futimesat", "sync", "sync_file_range2", "mount", "umount2", "ftruncate64"),
)


def _by_function(traced: str, log: str) -> Counter[str]:
    """The successful calls of the agent itself, by the names in CALLS; others by their own."""
    function = {name: ours for ours, names in CALLS.items() for name in names}
    lines = [line.split(maxsplit=1) for line in _joined(traced)]
    # A process that runs another program is a command; the agent begins as the shell that starts it.
    started = [pid for pid, call in lines if call.startswith("execve(")]
    agent = started[0]
    others = set(started) - {agent}
    last = max(n for n, (pid, call) in enumerate(lines) if pid == agent and call.startswith("execve("))
    found: Counter[str] = Counter()
    for pid, call in lines[last + 1 :]:
        name, _, rest = call.partition("(")
        if pid in others or name == "execve" or " = -1 " in call or " = ?" in call or log in call:
            continue
        if name in ("open", "openat", "openat2") and "O_CREAT" not in call and "O_TRUNC" not in call:
            continue
        first = rest.partition(",")[0]
        if name.startswith(("write", "pwrite", "sendfile")) and (
            first.startswith(("1<", "2<")) or "<pipe:" in first or "<socket:" in first or "<UNIX" in first
        ):
            continue
        if name == "unlinkat" and "AT_REMOVEDIR" in call:
            name = "rmdir"
        found[function.get(name, name)] += 1
    return found


def _joined(traced: str) -> list[str]:
    """Calls during which strace told of another process are in two lines: as one."""
    waiting: dict[str, str] = {}
    found = []
    for line in traced.splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            waiting[pid] = call.removesuffix("<unfinished ...>")
            continue
        if call.startswith("<... "):
            call = waiting.pop(pid, "") + call.partition(" resumed>")[2]
        if "(" in call:
            found.append(f"{pid} {call}")
    return found


# Adopting


EDITED: Tree = {
    "input/same.csv": File(b"edited on the server\n"),
    "input/new on the server": File(b"made there\n"),
}


def edited(stepped: Stepped) -> ZfsWorld:
    """Bob is in step, and somebody has edited, made and deleted files on the server."""
    world = stepped.world.copy(stepped.folder())
    for path, version in EDITED.items():
        assert isinstance(version, File)
        (world.repository / path).write_bytes(version.content)
    (world.repository / "input" / "kept" / "also same.csv").unlink()
    return world


@pytest.fixture(scope="module")
def of_an_adoption(stepped: Stepped) -> list[str]:
    """The steps of an adoption that nobody disturbs."""
    world = edited(stepped)
    log = world.folder / "steps"
    ended = run(world, "bob", log, 0, "adopt")
    assert ended.status == 0, ended
    world.settled()
    steps = steps_in(log)
    assert decided(steps) and any(step.startswith("zfs snapshot") and "@base-" in step for step in steps)
    return steps


@pytest.mark.parametrize("part", range(PARTS))
def test_an_agent_that_adopts(
    part: int, stepped: Stepped, of_an_adoption: list[str], rng: random.Random
) -> None:
    """What was written on the server is never lost, and adopted once."""
    for number in some_of(len(of_an_adoption), part, rng):
        world = edited(stepped)
        try:
            _adoption_killed(world, number)
        except BaseException as error:
            error.add_note(f"killed after step {number}, {of_an_adoption[number - 1]}")
            raise
        stepped.done_with(world)


def _adoption_killed(world: ZfsWorld, number: int) -> None:
    bob = world.clients["bob"]
    local, cache, before = bob.local(), bob.cache(), world.remote()
    log = world.folder / "steps"
    live = before.live

    def look(steps: list[str]) -> None:
        assert len(steps) >= number, "it was not reached"
        assert world.remote().live == live, "what people see is what somebody wrote there, adopted or not"

    ended = run(world, "bob", log, number, "adopt", look=look)
    steps = steps_in(log)
    assert bob.local() == local
    while (again := bob.dsg("recover", "--json")).status == 5:
        pass  # its agent has yet to end
    assert again.status == 0, again
    now = world.remote()
    assert now.live == live
    assert len(now.records) == len(before.records) + decided(steps)
    if ended.status == 0:
        assert decided(steps)
    if not decided(steps):
        assert bob.cache() == cache
        bob.must("adopt")
    bob.must("sync")
    now = world.remote().check()
    assert len(now.records) == len(before.records) + 1
    assert now.live == live == bob.local()
    bob.must("recover")
    world.settled()


# Recovering


@pytest.fixture(scope="module")
def of_recoveries(stepped: Stepped, of_a_sync: list[str], seed: int) -> list[tuple[int, list[str]]]:
    """After which step a sync died, and the steps of the recovery that nobody disturbs."""
    found = []
    for beginning in DEATHS if FULL else [random.Random(seed).choice(DEATHS)]:
        died = 1 + next(n for n, step in enumerate(of_a_sync) if step.startswith(beginning))
        scene = stepped.scene()
        world = scene.world
        assert isinstance(world, ZfsWorld)
        die_for_good(world, died)
        log = world.folder / "steps"
        ended = run(world, "ann", log, 0, "recover")
        assert ended.status == 0, ended
        found.append((died, steps_in(log)))
        stepped.done_with(world)
    return found


def die_for_good(world: ZfsWorld, number: int) -> list[str]:
    """Break off ann's sync after a step, and ann with it, before either side can recover; its steps."""
    log = world.folder / "first"
    log.with_name(f"{log.name}.alone").touch()
    running = start(world, "ann", log, number, "sync")
    until(lambda: gone(world, running, log), "the agent to end", 60)
    steps = steps_in(log)
    if not any(step.startswith("zfs promote") for step in steps):
        running.process.kill()  # housekeeping has not begun, and ann still waits for the reply
    running.end()
    until(lambda: not world.people.host.running_agents(), "the agents to end", 60)
    return steps


@pytest.mark.parametrize("part", range(PARTS))
def test_an_agent_that_recovers(
    part: int, stepped: Stepped, of_recoveries: list[tuple[int, list[str]]], rng: random.Random
) -> None:
    for died, recorded in of_recoveries:
        for number in some_of(len(recorded), part, rng)[: None if FULL else 1]:
            scene = stepped.scene()
            try:
                _recovery_killed(scene, died, number)
            except BaseException as error:
                error.add_note(
                    f"killed after step {died}, and recovering after step {number}, {recorded[number - 1]}"
                )
                raise
            stepped.done_with(scene.world)  # type: ignore[arg-type]


def _recovery_killed(scene: Scene, died: int, number: int) -> None:
    world = scene.world
    assert isinstance(world, ZfsWorld)
    log = world.folder / "steps"
    committed = decided(die_for_good(world, died))

    def look(steps: list[str]) -> None:
        assert len(steps) >= number, "it was not reached"
        people_see_a_whole_tree(scene, committed)

    run(world, "ann", log, number, "recover", look=look)
    settled(scene, "recover", {"before", "after"}, committed)
    assert scene.settle("recover").status == 0
    world.settled()


def test_a_full_run_has_enough_points(
    of_a_sync: list[str], of_an_adoption: list[str], of_recoveries: list[tuple[int, list[str]]]
) -> None:
    points = {
        "syncs": len(of_a_sync),
        "adoptions": len(of_an_adoption),
        "recoveries": sum(len(steps) for _, steps in of_recoveries),
        "zfs itself": 2 * sum(map(lasts, of_a_sync)),
    }
    print(points, sum(points.values()))
    assert not FULL or sum(points.values()) >= POINTS, points

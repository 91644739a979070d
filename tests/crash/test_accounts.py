"""Two ordinary Unix accounts of one group, umask 022, share a repository on one server through sshd.

Each syncs after the other, replaces and deletes the other's files, and settles
what the other's killed agent left. Needs root, to make the accounts.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from protocol.transaction import STEPS, Side, Step, StepRow
from tests.crash.conftest import NOTED_AGENT
from tests.crash.scene import FULL, MINE, START, THEIRS, Scene, merged, until
from tests.e2e.oracle import File
from tests.e2e.world import People, World
from tests.hosts.accounts import Account, shared_python, unix_accounts
from tests.hosts.sshd import LAUNCHER, REPOSITORY, SshClient, SshHost, ssh_host

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]


class Colleagues(People):
    """People who each sign in to an account of their own."""

    def __init__(self, host: SshHost, accounts: dict[str, Account]) -> None:
        super().__init__(host)
        self.accounts = accounts

    def machine(self, name: str) -> SshClient:
        if name not in self._known:
            self._known[name] = self.host.client(name, account=self.accounts[name])
        return self._known[name]


@frozen
class Server:
    """An sshd with two accounts, and where an administrator made room for their group."""

    people: Colleagues
    group: str
    gid: int


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with unix_accounts(2) as (ann, bob), ssh_host() as host:
        source = host.folder / "source"
        _install(host, source)
        yield Server(Colleagues(host, {"ann": ann, "bob": bob}), ann.group, ann.gid)


def _install(host: SshHost, source: Path) -> None:
    """The agent where every account can read it; a login of this server has the umask 022."""
    import attr
    import attrs
    import msgpack
    import structlog

    leave_out = shutil.ignore_patterns("__pycache__")
    for package in ("protocol", "dsg_remote_agent"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=leave_out)
    for module in (attr, attrs, msgpack, structlog):
        folder = Path(module.__file__ or "").resolve().parent
        shutil.copytree(folder, source / folder.name, ignore=leave_out)
    for here, folders, files in os.walk(source):
        for name in [".", *folders, *files]:
            path = Path(here, name)
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    text = LAUNCHER.format(
        agents=host.agents, python=shlex.quote(shared_python()), folders=shlex.quote(str(source))
    )
    host.install_agent(command=text.replace("#!/bin/sh\n", "#!/bin/sh\numask 022\n", 1))
    noted = host.bin / "noted-agent"
    noted.write_text(NOTED_AGENT)
    noted.chmod(0o755)


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    """Ann made the repository for the group, and synced START; bob has cloned it."""
    folder = Path(tempfile.mkdtemp(prefix="dsg-group-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        world = World(server.people, folder / "world")
        place = world.repository.parent
        os.chown(place, 0, server.gid)
        place.chmod(0o2775)
        ann = world.init("ann", "--group", server.group)
        ann.put_all(START)
        ann.must("sync")
        world.clone("bob")
        yield world
    finally:
        shutil.rmtree(folder)


def scene_of(world: World, who: str) -> Scene:
    scene = Scene(world, world.clients[who], merged(MINE, THEIRS), snapshots=1)
    scene.said.touch()
    scene.said.chmod(0o666)
    return scene


def owners(world: World) -> dict[str, int]:
    """Who owns the live files."""
    return {
        os.path.relpath(os.path.join(here, name), world.repository): os.lstat(os.path.join(here, name)).st_uid
        for here, _, files in os.walk(world.repository)
        for name in files
        if "/.dsg" not in here
    }


def open_to_the_group(world: World, server: Server) -> None:
    """Every folder lets the group in and hands it on; nothing belongs to root or to another group."""
    for here, folders, files in os.walk(world.repository):
        for name in [".", *folders, *files]:
            path = os.path.normpath(os.path.join(here, name))
            seen = os.lstat(path)
            assert seen.st_gid == server.gid, path
            assert seen.st_uid != 0, path
            if stat.S_ISDIR(seen.st_mode):
                assert seen.st_mode & 0o2070 == 0o2070, f"{path}: {stat.filemode(seen.st_mode)}"
            elif stat.S_ISREG(seen.st_mode):
                assert seen.st_mode & 0o040, f"{path}: {stat.filemode(seen.st_mode)}"


def test_each_replaces_and_deletes_the_others_files(world: World, server: Server) -> None:
    ann, bob = world.clients["ann"], world.clients["bob"]
    accounts = server.people.accounts
    assert set(owners(world).values()) == {accounts["ann"].uid}
    bob.put_all(THEIRS)
    bob.must("sync")
    assert owners(world)["input/theirs.csv"] == accounts["bob"].uid
    open_to_the_group(world, server)
    ann.put_all(MINE)
    ann.must("sync")
    ann.put("input/theirs.csv", File(b"ann takes over\n"))
    ann.put("input/new/of bob", None)
    ann.must("sync")
    bob.must("sync")
    bob.put("input/new/of ann", None)
    bob.put("input/theirs.csv", File(b"and back\n", True))
    bob.must("sync")
    ann.must("sync")
    expected = merged(MINE, THEIRS) | {"input/theirs.csv": File(b"and back\n", True)}
    del expected["input/new/of bob"], expected["input/new/of ann"]
    assert ann.local() == bob.local() == world.remote().check().live == expected
    open_to_the_group(world, server)


REMOTE = [row for row in STEPS if row.side is Side.REMOTE and row.step is not Step.REMOTE_REPLIED]
SHORT = {
    Step.UPLOADED,
    Step.REMOTE_PREPARED,
    Step.REMOTE_CHECKED,
    Step.REMOTE_DECIDED,
    Step.REMOTE_APPLIED,
    Step.REMOTE_PUBLISHED,
}


WAYS = [("ann", "bob"), ("bob", "ann")]
#: In a full run every step in both directions; in a short one some, in turn.
DEALT = (
    [(row, *way) for row in REMOTE for way in WAYS]
    if FULL
    else [(row, *WAYS[n % 2]) for n, row in enumerate(row for row in REMOTE if row.step in SHORT)]
)


@pytest.mark.parametrize(
    ("row", "broken", "other"), DEALT, ids=lambda v: v.step.value if isinstance(v, StepRow) else None
)
def test_each_settles_what_the_others_killed_agent_left(
    row: StepRow, broken: str, other: str, world: World, server: Server
) -> None:
    changes = {"ann": MINE, "bob": THEIRS}
    for name, some in changes.items():
        world.clients[name].put_all(some)
    scene = scene_of(world, broken)
    host = server.people.host
    others = set(host.running_agents())
    running = scene.start("sync", "--json", there=f"{row.step.value}=hang:60")
    until(lambda: scene.agent_said(row.step.value), f"the agent at {row.step.value}")
    # The client too: it would settle it by itself.
    running.process.kill()
    (agent,) = set(host.running_agents()) - others
    assert os.stat(f"/proc/{agent}").st_uid == server.people.accounts[broken].uid
    os.kill(agent, signal.SIGKILL)
    running.end()
    until(lambda: agent not in host.running_agents(), "its end")

    ended = world.clients[other].sync()
    assert ended.status == 0, ended
    remote = world.remote().check()
    makers = [record.who for record in remote.records[len(scene.before.records) :]]
    assert makers == ([broken, other] if row.committed else [other])
    assert remote.live == (merged(MINE, THEIRS) if row.committed else merged(changes[other]))
    open_to_the_group(world, server)

    assert scene.settle("sync", "--json").status == 0
    world.clients[other].must("sync")
    expected = merged(MINE, THEIRS)
    assert world.clients[broken].local() == world.clients[other].local() == expected
    assert world.remote().check().live == expected
    open_to_the_group(world, server)

"""The agent as an account that a kernel's ZFS delegated rights to: set up as the doctor says, and at work."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.transaction import Step, StepRow
from tests.crash.scene import FULL
from tests.crash.test_failpoints import die_at, name_of
from tests.e2e.oracle import File
from tests.e2e.zfs import ZfsPeople, ZfsWorld
from tests.hosts.openzfs.guest import Guest
from tests.openzfs.rounds import REMOTE, Rounds, dealt, goes_on
from tests.openzfs.test_keeping import install_backup, snapshots, three_syncs

pytestmark = pytest.mark.needs("sudo")

ACCOUNT = "agent"
# Where every run kills its agent: with something to undo, all prepared, decided, and all but published.
SHORT = (Step.REMOTE_BEGUN, Step.REMOTE_PREPARED, Step.REMOTE_DECIDED, Step.REMOTE_APPLIED)


class DelegatedWorld(ZfsWorld):
    """A world whose people sign in as an ordinary account."""

    @property
    def address(self) -> str:
        return f"{ACCOUNT}@data-host:zfs:{self.dataset}"


@pytest.fixture(scope="module")
def account(guest: Guest) -> None:
    """An account, and sudo as this machine has it: the image is of the same Debian."""
    guest.sh(f"useradd --create-home --shell /bin/sh {ACCOUNT}")
    guest.sh(f"cp -r ~/.ssh /home/{ACCOUNT}/; chown -R {ACCOUNT}: /home/{ACCOUNT}; usermod -p '*' {ACCOUNT}")
    listed = subprocess.run(["dpkg", "-L", "sudo"], capture_output=True, text=True, check=True).stdout
    files = [
        path for path in listed.split("\n") if path and not Path(path).is_dir() and "/share/" not in path
    ]
    packed = subprocess.run(["tar", "-C", "/", "-cPf", "-", *files], capture_output=True, check=True)
    subprocess.run([*guest._ssh(), "root@127.0.0.1", "tar -C / -xPf -"], input=packed.stdout, check=True)
    guest.sh("chmod 4755 /usr/bin/sudo; mkdir -p /etc/sudoers.d; chmod 0750 /etc/sudoers.d")


@pytest.fixture
def world(account: None, people: ZfsPeople, tmp_path: Path) -> Iterator[DelegatedWorld]:
    yield DelegatedWorld(people, tmp_path)


def cured(guest: Guest, world: DelegatedWorld) -> list[str]:
    """Run what the doctor prints; the names of what was missing."""
    ended = world.client("sam").dsg("doctor", "--json", world.address)
    bad = [check for check in ended.document["checks"] if not check["ok"]]
    for check in bad:
        guest.sh(f"set -e\n{check['cure']}")
    return [check["name"].removeprefix("server: ") for check in bad]


@pytest.fixture(scope="module")
def rounds(
    guest: Guest, account: None, people: ZfsPeople, tmp_path_factory: pytest.TempPathFactory
) -> Rounds:
    """A repository of that account, which one thing after the other happens to."""

    def made() -> DelegatedWorld:
        world = DelegatedWorld(people, tmp_path_factory.mktemp("rounds"))
        cured(guest, world)
        return world

    return Rounds(guest, made)


def test_from_nothing_to_syncs(guest: Guest, world: DelegatedWorld) -> None:
    refused = world.client("eve").dsg("init", world.address)
    assert refused.status == 14 and f"zfs allow -u {ACCOUNT} " in refused.err, refused
    assert world.zfs.datasets(world.root) == []
    missing = cured(guest, world)
    assert missing == ["delegation", "dsg-zfs-mount", "its configuration", "sudo", "folders"]
    healthy = world.clients["sam"].dsg("doctor", "--json", world.address)
    assert healthy.status == 0, healthy
    ann = world.init("ann")
    for n in range(2):
        ann.put_all({"input/a": File(b"%d" % n), f"input/f{n}": File(b"x" * 5000)})
        ann.must("sync", "-m", f"number {n}")
        world.settled()
    bob = world.clone("bob")
    assert bob.local() == ann.local() == world.remote().check().live
    head = f"{world.dataset}/g2"
    told = guest.sh(f"zfs get -H -o value origin,mounted,readonly {head}; stat -c %U {world.repository}/.")
    assert told.split() == ["-", "yes", "off", ACCOUNT]
    assert guest.sh(f"stat -c '%U %a' {world.root.folder}/.gen/repo").split()[0] == "root"
    # What was written on the server is adopted; and somebody may sit in the old tree.
    guest.sh(f"su {ACCOUNT} -c 'echo there > {world.repository}/input/there'")
    ann.must("adopt", "-m", "as found")
    ann.must("sync")
    assert (ann.folder / "input" / "there").read_bytes() == b"there\n"
    assert ann.dsg("doctor").status == 0
    world.settled()


def may_receive(vault: str) -> str:
    """What lets the account make backups below ``vault``."""
    return f"zfs allow -u {ACCOUNT} canmount,create,mount,readonly,receive,userprop {vault}"


@pytest.mark.parametrize(
    ("row", "then"), dealt(REMOTE if FULL else [row for row in REMOTE if row.step in SHORT]), ids=name_of
)
def test_killed(row: StepRow, then: str, rounds: Rounds) -> None:
    with rounds.another() as scene:
        goes_on(scene, row, then, die_at(scene, row))


def test_an_agent_that_lacks_one_thing(guest: Guest, rounds: Rounds) -> None:
    with rounds.another() as scene:
        assert isinstance(scene.world, DelegatedWorld)
        root = scene.world.root.dataset
        before = guest.sh(f"zfs list -H -r -t all -o name {root}")
        for take, give in (
            ("mv /etc/sudoers.d/dsg-zfs-mount /root/kept", "mv /root/kept /etc/sudoers.d/dsg-zfs-mount"),
            (f"zfs unallow -u {ACCOUNT} clone {root}", f"zfs allow -u {ACCOUNT} clone {root}"),
            (f"zfs allow -u {ACCOUNT} mountpoint {root}", f"zfs unallow -u {ACCOUNT} mountpoint {root}"),
        ):
            guest.sh(take)
            ended = scene.who.sync()
            left = guest.sh(f"{give}; zfs list -H -r -t all -o name {root}")
            assert ended.status == 14, (take, ended)
            assert left == before, take
        scene.who.must("sync")
        assert scene.verdict() == "after"


def lacks_what_they_need(guest: Guest, world: DelegatedWorld) -> None:
    """Without a right that only these commands need they are refused; it is named, and by the doctor, too."""
    ann, root = world.clients["ann"], world.root.dataset
    before = snapshots(guest, world.dataset)
    for right, command in (("hold", ["protect", "s1"]), ("destroy", ["prune", "--keep-last", "1"])):
        guest.sh(f"zfs unallow -u {ACCOUNT} {right} {root}")
        cure = f"zfs allow -u {ACCOUNT} {right} {root}"
        ended = ann.dsg(*command)
        assert ended.status == 14 and cure in ended.err, ended
        doctor = ann.dsg("doctor")
        assert doctor.status == 1 and cure in doctor.out, doctor
        guest.sh(cure)
        assert snapshots(guest, world.dataset) == before


@pytest.mark.full
def test_pruned_protected_and_backed_up(guest: Guest, world: DelegatedWorld) -> None:
    cured(guest, world)
    install_backup(guest)
    ann = three_syncs(world)
    vault = f"{world.root.dataset}-vault"
    guest.sh(f"zfs create -o canmount=off -o mountpoint=none {vault}")
    send = f"su {ACCOUNT} -c 'dsg-zfs-backup send {world.dataset} {vault}/copy'"
    # Without the rights that only a backup needs, one after the other: the sender's, the receiver's.
    for cure in (f"zfs allow -u {ACCOUNT} send {world.root.dataset}", may_receive(vault)):
        done = guest.try_sh(send)
        assert done.returncode == 14 and cure in done.stderr, done
        guest.sh(cure)
    lacks_what_they_need(guest, world)
    assert "up to s3" in guest.sh(send)
    ann.must("protect", "s1")
    ann.must("prune", "--keep-last", "1")
    assert snapshots(guest, world.dataset) == {"g3@s1": 1, "g3@s3": 1}
    ann.write("input/a", b"4")
    ann.must("sync")
    world.settled()
    ann.must("protect", "s1", "--remove")
    assert "from s3 to s4" in guest.sh(send)
    assert snapshots(guest, world.dataset) == {"g4@s1": 0, "g4@s3": 0, "g4@s4": 1}
    assert list(snapshots(guest, vault)) == [f"copy@s{n}" for n in range(5)]

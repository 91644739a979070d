"""The agent as an account that a kernel's ZFS delegated rights to: set up as the doctor says, and at work."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.oracle import File
from tests.e2e.zfs import ZfsPeople, ZfsWorld
from tests.hosts.openzfs.guest import Guest

pytestmark = pytest.mark.needs("sudo")

ACCOUNT = "agent"


class DelegatedWorld(ZfsWorld):
    """A world whose people sign in as an ordinary account."""

    @property
    def address(self) -> str:
        return f"{ACCOUNT}@data-host:zfs:{self.dataset}"


@pytest.fixture(scope="module")
def account(guest: Guest) -> None:
    """An account, and sudo as this machine has it: the image is of the same Debian."""
    guest.sh(f"useradd --create-home --shell /bin/sh {ACCOUNT}")
    guest.sh(
        f"cp -r /root/.ssh /home/{ACCOUNT}/; chown -R {ACCOUNT}: /home/{ACCOUNT}; usermod -p '*' {ACCOUNT}"
    )
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


def set_up(guest: Guest, world: DelegatedWorld) -> list[str]:
    """Run what the doctor prints until it finds all well; the names of what was missing."""
    sam = world.client("sam")
    ended = sam.dsg("doctor", "--json", world.address)
    bad = [check for check in ended.document["checks"] if not check["ok"]]
    for check in bad:
        guest.sh(f"set -e\n{check['cure']}")
    ended = sam.dsg("doctor", "--json", world.address)
    assert ended.status == 0, ended
    return [check["name"].removeprefix("server: ") for check in bad]


def test_from_nothing_to_syncs(guest: Guest, world: DelegatedWorld) -> None:
    refused = world.client("eve").dsg("init", world.address)
    assert refused.status == 14 and f"zfs allow -u {ACCOUNT} " in refused.err, refused
    assert world.zfs.datasets(world.root) == []
    missing = set_up(guest, world)
    assert missing == ["delegation", "dsg-zfs-mount", "its configuration", "sudo", "folders"]
    ann = world.init("ann")
    for n in range(3):
        ann.put_all({"input/a": File(b"%d" % n), f"input/f{n}": File(b"x" * 5000)})
        ann.must("sync", "-m", f"number {n}")
        world.settled()
    bob = world.clone("bob")
    assert bob.local() == ann.local() == world.remote().check().live
    head = f"{world.dataset}/g3"
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


def test_killed_before_and_after_the_decision(guest: Guest, world: DelegatedWorld) -> None:
    set_up(guest, world)
    ann = world.init("ann")
    ann.put_all({"input/a": File(b"1")})
    ann.must("sync")
    for step, committed in (("remote-prepared", False), ("remote-checked", False), ("remote-decided", True)):
        ann.write("input/a", step.encode())
        ann.variables["DSG_AGENT_COMMAND"] = f"env DSG_FAILPOINTS={step}=kill dsg-remote-agent"
        ended = ann.sync()
        del ann.variables["DSG_AGENT_COMMAND"]
        assert ended.status == (0 if committed else 6), ended
        ann.must("recover")
        ann.must("sync")
        world.settled()
        assert world.remote().check().live == ann.local()


def test_an_agent_that_lacks_one_thing(guest: Guest, world: DelegatedWorld) -> None:
    set_up(guest, world)
    ann = world.init("ann")
    ann.put_all({"input/a": File(b"1")})
    ann.must("sync")
    world.settled()
    before = guest.sh(f"zfs list -H -r -t all -o name {world.root.dataset}")
    ann.write("input/a", b"2")
    for take, give in (
        ("mv /etc/sudoers.d/dsg-zfs-mount /root/kept", "mv /root/kept /etc/sudoers.d/dsg-zfs-mount"),
        (
            f"zfs unallow -u {ACCOUNT} clone {world.root.dataset}",
            f"zfs allow -u {ACCOUNT} clone {world.root.dataset}",
        ),
        (
            f"zfs allow -u {ACCOUNT} mountpoint {world.root.dataset}",
            f"zfs unallow -u {ACCOUNT} mountpoint {world.root.dataset}",
        ),
    ):
        guest.sh(take)
        ended = ann.sync()
        guest.sh(give)
        assert ended.status == 14, (take, ended)
        assert guest.sh(f"zfs list -H -r -t all -o name {world.root.dataset}") == before, take
    ann.must("sync")
    world.settled()

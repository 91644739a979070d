"""Pruning, protecting and backing up on a kernel's ZFS, where promotions move snapshots with their holds."""

from __future__ import annotations

from tests.e2e.oracle import File
from tests.e2e.world import Client
from tests.e2e.zfs import ZfsWorld
from tests.hosts.openzfs.guest import Guest


def install_backup(guest: Guest) -> None:
    """Put ``dsg-zfs-backup`` on its PATH, as DSG's package does."""
    agent = guest.sh("cat /usr/local/bin/dsg-remote-agent")
    text = "\n".join(line for line in agent.split("\n") if not line.startswith("echo "))
    guest.install_program("dsg-zfs-backup", text.replace("dsg_remote_agent.main", "dsg_remote_agent.backup"))


def three_syncs(world: ZfsWorld) -> Client:
    """Somebody who made s1 to s3."""
    ann = world.init("ann")
    for n in range(1, 4):
        ann.put_all({"input/a": File(b"%d" % n), f"input/f{n}": File(b"x" * 3000)})
        ann.must("sync", "-m", f"number {n}")
    world.settled()
    return ann


def snapshots(guest: Guest, dataset: str) -> dict[str, int]:
    """How many holds each snapshot in or below ``dataset`` has."""
    told = guest.sh(f"zfs list -H -r -t snapshot -o name,userrefs {dataset}")
    lines = [line.split("\t") for line in told.splitlines()]
    return {name.rpartition("/")[2]: int(holds) for name, holds in lines}


def test_prune_protect_back_up_and_restore(guest: Guest, world: ZfsWorld) -> None:
    install_backup(guest)
    ann = three_syncs(world)
    vault = f"{world.root.dataset}-vault"
    guest.sh(f"zfs create -o canmount=off -o mountpoint=none {vault}")
    send = f"dsg-zfs-backup send {world.dataset} {vault}/copy"
    assert "up to s3" in guest.sh(send)
    ann.must("protect", "s1")
    guest.sh(f"zfs hold somebody {world.dataset}/g3@s0")
    ann.must("prune", "--keep-last", "1")
    assert snapshots(guest, world.dataset) == {"g3@s0": 1, "g3@s1": 1, "g3@s3": 1}
    # A promotion takes all of it along, and the backup goes on from what it holds.
    ann.write("input/a", b"4")
    ann.must("sync")
    world.settled()
    assert "from s3 to s4" in guest.sh(send)
    assert snapshots(guest, world.dataset) == {"g4@s0": 1, "g4@s1": 1, "g4@s3": 0, "g4@s4": 1}
    assert list(snapshots(guest, vault)) == [f"copy@s{n}" for n in range(5)]
    log = ann.must("log").out
    assert "(held by somebody)" in log and "(protected)" in log and log.count("pruned: only") == 1
    ann.must("protect", "s1", "--remove")
    ann.must("prune", "--keep-last", "1")
    assert snapshots(guest, world.dataset) == {"g4@s0": 1, "g4@s4": 1}
    # Where it was, from the backup: with all that was pruned.
    guest.sh(f"zfs rename {world.dataset} {vault}/broken && rm {world.repository}")
    guest.sh(f"dsg-zfs-backup restore {vault}/copy {world.dataset}")
    assert world.clone("bob").local() == ann.local() == world.remote().check().live
    assert list(snapshots(guest, world.dataset)) == [f"g4@s{n}" for n in range(5)]
    ann.write("input/a", b"6")
    ann.must("sync")
    world.settled()

"""Life on a kernel's OpenZFS: what is made on the server, and what people there see of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.oracle import File, digests
from tests.e2e.zfs import ZfsPeople, ZfsWorld
from tests.hosts.openzfs.guest import Guest
from tests.openzfs.test_keeping import install_backup, snapshots


@pytest.fixture
def world(people: ZfsPeople, tmp_path: Path) -> ZfsWorld:
    """Everybody makes a connection of their own for every command, as people do."""
    return ZfsWorld(people, tmp_path)


def test_from_nothing_to_two_people_in_step(guest: Guest, world: ZfsWorld) -> None:
    ann = world.init("ann", "--data-dir", "input")
    assert world.link() == ".gen/repo/g0"
    ann.put_all({"input/a.csv": File(b"1\n"), "input/run.sh": File(b"#!/bin/sh\n", True)})
    ann.must("sync", "-m", "first")
    assert world.link() == ".gen/repo/g1"
    bob = world.clone("bob")
    assert bob.local() == ann.local() == world.remote().check().live
    bob.write("input/a.csv", b"2\n")
    bob.must("sync", "-m", "second")
    ann.must("sync")
    assert bob.local() == ann.local()
    found = world.remote().check()
    assert found.tree == digests(ann.local())
    assert [record.message for record in found.records[1:]] == ["first", "second"]
    world.settled()
    head = f"{world.dataset}/g2"
    assert world.zfs.datasets(world.root, "snapshot") == [f"{head}@s{number}" for number in range(3)]
    assert world.zfs.zfs("get", "-H", "-o", "value", "origin,mounted,readonly", head).split() == [
        "-", "yes", "off",
    ]  # fmt: skip
    # What an ordinary user of the server sees: the head by its link, and every older state.
    seen = guest.sh(f"su reader -c 'cat {world.repository}/input/a.csv'")
    older = guest.sh(f"su reader -c 'cd {world.repository}/.zfs/snapshot && ls && cat s1/input/a.csv'")
    assert (seen, older) == ("2\n", "s0\ns1\ns2\n1\n")
    # What is kept and sent by its snapshots, which each sync moves to another dataset.
    install_backup(guest)
    guest.sh(f"zfs create -o canmount=off -o mountpoint=none {world.root.dataset}-vault")
    copy = f"{world.root.dataset}-vault/copy"
    assert "up to s2" in guest.sh(f"dsg-zfs-backup send {world.dataset} {copy}")
    bob.must("protect", "s0")
    bob.must("prune", "--keep-last", "1")
    assert snapshots(guest, world.dataset) == {"g2@s0": 1, "g2@s2": 1}
    assert list(snapshots(guest, copy)) == ["copy@s0", "copy@s1", "copy@s2"]


def test_doctor_has_nothing_to_complain_about(world: ZfsWorld) -> None:
    ann = world.init("ann")
    ended = ann.dsg("doctor", "--json")
    checks = {check["name"]: check for check in ended.document["checks"]}
    assert ended.status == 0 and all(check["ok"] for check in checks.values()), ended
    assert {"server: dataset", "server: head", "server: link"} <= checks.keys()

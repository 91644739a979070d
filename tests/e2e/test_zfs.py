"""Every command against a repository on ZFS, over SSH."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.oracle import File, digests
from tests.e2e.zfs import ZfsPeople, ZfsWorld

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root", "sshd", "ssh-keygen")]


@pytest.fixture
def world(zfs_people: ZfsPeople, tmp_path: Path) -> Iterator[ZfsWorld]:
    with zfs_people.zfs.entered():
        yield ZfsWorld(zfs_people, tmp_path)


def test_from_nothing_to_two_people_in_step(world: ZfsWorld) -> None:
    ann = world.init("ann", "--data-dir", "input")
    assert os.readlink(world.repository) == ".gen/repo/g0"
    ann.put_all({"input/a.csv": File(b"1\n"), "input/run.sh": File(b"#!/bin/sh\n", True)})
    ann.must("sync", "-m", "first")
    bob = world.clone("bob")
    assert bob.local() == ann.local() == world.remote().check().live
    bob.write("input/a.csv", b"2\n")
    bob.must("sync", "-m", "second")
    ann.write("input/b.csv", b"3\n")
    told = ann.must("status").out
    assert "input/b.csv" in told and "input/a.csv" in told
    ann.must("sync")
    bob.must("sync")
    assert bob.local() == ann.local() == world.remote().check().live
    log = ann.must("log").out
    assert "first" in log and "second" in log
    assert "a.csv" in ann.must("list-files").out
    # The name is in use; and a folder's command does not take a generation for a repository.
    cat = world.client("cat")
    ended = cat.dsg("init", world.address)
    assert ended.status == 4 and "in use" in ended.err, ended
    ended = cat.dsg("clone", f"data-host:{world.repository}", ".")
    assert ended.status == 4 and "zfs" in ended.err, ended
    world.settled()


def test_changes_made_on_the_server_are_adopted(world: ZfsWorld) -> None:
    ann = world.init("ann")
    ann.put_all({"input/a": File(b"1"), "input/b": File(b"2"), "input/c": File(b"3")})
    ann.must("sync")
    (world.repository / "input" / "a").write_bytes(b"edited on the server")
    (world.repository / "input" / "b").unlink()
    (world.repository / "input" / "new").write_bytes(b"made on the server")
    (world.repository / "notes.txt").write_bytes(b"beside the data")
    ann.write("input/c", b"4")
    ended = ann.sync()
    assert ended.status == 16, ended
    ann.write("input/c", b"3")
    ann.must("adopt", "-m", "as found")
    ann.must("sync")
    assert ann.local() == {
        "input/a": File(b"edited on the server"),
        "input/c": File(b"3"),
        "input/new": File(b"made on the server"),
    }
    found = world.remote()
    assert found.tree == digests(ann.local())
    assert (world.repository / "notes.txt").read_bytes() == b"beside the data"
    assert found.head.message == "as found"
    world.settled()
    # Life goes on with the stray beside it.
    ann.write("input/c", b"5")
    ann.must("sync")
    assert (world.repository / "notes.txt").read_bytes() == b"beside the data"


def test_doctor_looks_at_all_of_it(world: ZfsWorld) -> None:
    ann = world.client("ann")
    ended = ann.dsg("doctor", world.address)
    assert "init" in ended.out and "Traceback" not in ended.out + ended.err, ended
    ann.must("init", world.address)
    ended = ann.dsg("doctor", "--json")
    checks = {check["name"]: check for check in ended.document["checks"]}
    assert ended.status == 0, ended
    for name in ("rights", "dataset", "head", "link", "older generations", "repository", "lock"):
        assert checks[f"server: {name}"]["ok"], name
    world.repository.unlink()
    ended = ann.dsg("doctor", "--json")
    checks = {check["name"]: check for check in ended.document["checks"]}
    assert ended.status == 1 and not checks["server: link"]["ok"], ended
    ann.must("recover")
    assert ann.dsg("doctor").status == 0
    nowhere = world.address.replace(world.root.dataset, "no-such-pool/dsg")
    ended = ann.dsg("doctor", nowhere)
    assert ended.status == 1 and "zfs create" in ended.out, ended


def test_unusual_properties_are_told_at_init_and_by_the_doctor(world: ZfsWorld) -> None:
    zfs = world.zfs
    zfs.zfs("set", "compression=on", world.root.dataset)
    ann = world.client("ann")
    quiet = ann.dsg("init", f"{world.address}-quiet")
    assert quiet.status == 0 and "warning" not in quiet.err, quiet
    zfs.zfs("set", "atime=on", world.root.dataset)
    zfs.zfs("set", "quota=900M", world.root.dataset)
    zfs.zfs("set", "snapdir=visible", world.root.dataset)
    bob = world.client("bob")
    ended = bob.dsg("init", world.address)
    assert ended.status == 0, ended
    assert f"zfs set atime=off {world.dataset}" in ended.err and "snapdir=visible" in ended.err, ended
    assert "MiB are left" in ended.err
    checks = {check["name"]: check for check in bob.dsg("doctor", "--json").document["checks"]}
    assert f"zfs set atime=off {world.dataset}" in checks["server: property atime"]["detail"]
    zfs.zfs("set", "atime=off", world.dataset)
    checks = {check["name"]: check for check in bob.dsg("doctor", "--json").document["checks"]}
    assert "server: property atime" not in checks and "server: property snapdir" in checks


def test_a_read_only_key(world: ZfsWorld) -> None:
    ann = world.init("ann")
    ann.write("input/a", b"1")
    ann.must("sync")
    bob = world.clone("bob")
    ann.write("input/a", b"2")
    ann.must("sync")
    bob.variables["DSG_AGENT_COMMAND"] = f"dsg-remote-agent --role read --root zfs:{world.root.dataset}"
    bob.must("sync")
    assert bob.local() == {"input/a": File(b"2")}
    bob.write("input/a", b"3")
    assert bob.sync().status == 14
    bob.variables["DSG_AGENT_COMMAND"] = f"dsg-remote-agent --root {world.root.folder}"
    assert bob.sync().status == 14

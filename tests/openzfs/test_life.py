"""What a server's life brings: people in old trees, edits beside DSG, large files, keys not at hand."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench.steps import steps_of
from tests.crash.scene import FULL, until
from tests.e2e.oracle import File
from tests.e2e.zfs import ZfsWorld
from tests.hosts.openzfs.guest import Guest

MIB = 1 << 20
COUNTING = """\
#!/usr/bin/python3 -I
import os, sys
noted = os.open("/run/counts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, _):
    if event in ("open", "os.scandir", "os.listdir"):
        os.write(noted, b"o")
    elif event == "subprocess.Popen":
        os.write(noted, b"c")
sys.path[1:1] = ["/opt/dsg", "/opt/site"]
sys.argv[0] = "dsg-remote-agent"
from dsg_remote_agent.main import main
sys.addaudithook(note)
sys.exit(main())
"""


@contextmanager
def behind(guest: Guest, *lines: str) -> Iterator[None]:
    """Lines of shell that run in the machine meanwhile."""
    pids = [
        guest.sh(f"setsid sh -c {shlex.quote(line)} > /dev/null 2>&1 < /dev/null & echo $!").strip()
        for line in lines
    ]
    try:
        yield
    finally:
        for pid in pids:
            guest.sh(f"kill -9 -- -{pid} || kill -9 {pid} || true")


def test_whoever_uses_old_trees_holds_up_no_sync(guest: Guest, world: ZfsWorld) -> None:
    ann = world.init("ann")
    ann.put_all({"input/a": File(b"1"), "input/big": File(random.Random(1).randbytes(MIB))})
    ann.must("sync")
    tree = world.root.folder / ".gen" / "repo" / "g1"
    uses = (
        f"zfs send {world.dataset}/g1@s1 | sleep 1000",
        f"cd {tree}/.zfs/snapshot/s1/input && sleep 1000",
        f"cd {tree}/input && exec sleep 1000",
        f"exec sleep 1000 < {tree}/input/a",
    )
    with behind(guest, *uses):
        until(
            lambda: guest.try_sh(f"ls {tree}/.zfs/snapshot/s1").returncode == 0,
            "they have begun",
            guest.patience,
        )
        for content in (b"2", b"3"):
            ann.write("input/a", content)
            ended = ann.sync()
            assert ended.status == 0, ended
            assert guest.sh(f"cat {world.repository}/input/a") == content.decode()
        assert f"{world.dataset}/g1" in world.zfs.datasets(world.root)
        assert guest.sh(f"cat {tree}/input/a") == "1"
    # What an automounter does after some minutes.
    guest.sh(f"umount {tree}/.zfs/snapshot/s1 || true")
    ann.write("input/a", b"4")
    assert ann.sync().status == 0
    world.settled()
    assert world.remote().check().live == ann.local()


def test_an_edit_on_the_server_is_found_and_adopted(guest: Guest, world: ZfsWorld) -> None:
    ann = world.init("ann")
    ann.put_all({"input/a": File(b"1"), "input/b": File(b"2")})
    ann.must("sync")
    guest.sh(f"printf edited > {world.repository}/input/a")
    ann.write("input/b", b"3")
    before = world.head()
    ended = ann.sync()
    assert ended.status == 16, ended
    assert world.head() == before
    ann.write("input/b", b"2")
    # At once, though the kernel may not have counted it yet.
    guest.sh(f"printf again > {world.repository}/input/a")
    ann.must("adopt", "-m", "as found")
    ann.must("sync")
    assert ann.local() == {"input/a": File(b"again"), "input/b": File(b"2")} == world.remote().check().live


def test_a_large_file_is_changed_in_place(guest: Guest, world: ZfsWorld) -> None:
    content = bytearray(random.Random(2).randbytes(8 * MIB))
    ann = world.init("ann")
    ann.write("input/big", bytes(content))
    ann.must("sync")
    content[5 * MIB] ^= 1
    ann.write("input/big", bytes(content))
    ann.must("sync")
    world.settled()
    used = int(world.zfs.zfs("get", "-Hp", "-o", "value", "used", f"{world.dataset}/g2@s1"))
    assert used < MIB, "the older version shares all other blocks"
    assert guest.sh(f"sha256sum < {world.repository}/input/big") == guest.sh(
        f"sha256sum < {world.repository}/.zfs/snapshot/s2/input/big"
    )


_MANY_S = 900.0  # for 100,000 files, where Python is emulated


@pytest.mark.timeout(3000)
def test_the_cost_of_a_sync_goes_by_what_changed(guest: Guest, world: ZfsWorld) -> None:
    """A sync of one file runs as many commands and opens as much, however many files there are."""
    guest.install_program("counting-agent", COUNTING)
    ann = world.init("ann")
    costs = []
    for count in (1_000, 100_000) if FULL else (20, 500):
        made = f"mkdir -p input/{count} && cd input/{count} && seq {count} | xargs -n 1000 touch"
        guest.sh(f"cd {world.repository} && {made} && zpool sync")
        for command in ("adopt", "sync"):
            assert (ended := ann.start(command).end(_MANY_S)).status == 0, ended
        world.settled()
        guest.sh("rm -f /run/counts /run/agent.log")
        ann.write("input/a", b"%d" % count)
        counting = "counting-agent --log-level debug --log-file /run/agent.log"
        ended = ann.dsg("sync", "--json", variables={"DSG_AGENT_COMMAND": counting})
        assert ended.status == 0, ended
        world.settled()
        noted = guest.sh("cat /run/counts")
        costs.append((noted.count("o"), noted.count("c")))
        for step in steps_of(guest.read_text(Path("/run/agent.log")).splitlines()):
            print(f"{count} files: {step.request} {step.command}: {step.ms:.0f} ms, {step.times:g} times")
    print(costs)
    (few, commands), (many, same) = costs
    assert abs(same - commands) <= 2 and 5 < commands < 30, costs
    assert abs(few - many) < 50, "it looked through the tree"


def test_without_its_key_nothing_happens(guest: Guest, world: ZfsWorld) -> None:
    guest.sh(f"zfs destroy -r {world.root.dataset}")
    guest.sh(
        f"echo passphrase > /tmp/key && zfs create -o encryption=on -o keyformat=passphrase "
        f"-o keylocation=file:///tmp/key -o canmount=off -o mountpoint={world.root.folder}/.gen "
        f"{world.root.dataset}"
    )
    ann = world.init("ann")
    ann.write("input/a", b"1")
    ann.must("sync")
    world.settled()
    before = world.head()
    guest.sh(f"zfs unmount {world.dataset}/{before[0]} && zfs unload-key {world.root.dataset}")
    ann.write("input/a", b"2")
    ended = ann.sync()
    assert ended.status == 9 and "load-key" in ended.out, ended
    assert world.head() == before
    guest.sh(f"zfs load-key {world.root.dataset} && zfs mount -a")
    ended = ann.sync()
    assert ended.status == 0, ended
    assert world.remote().check().live == {"input/a": File(b"2")}


def test_with_a_pool_that_is_only_read_nothing_happens(guest: Guest, world: ZfsWorld) -> None:
    ann = world.init("ann")
    ann.write("input/a", b"1")
    ann.must("sync")
    world.settled()
    before = world.head()
    ann.write("input/a", b"2")
    until(lambda: guest.try_sh("zpool export tank").returncode == 0, "nobody uses the pool", guest.patience)
    try:
        guest.sh("zpool import -o readonly=on -d /dev/vdb1 tank")
        ended = ann.sync()
        assert ended.status in (9, 14), ended
        assert world.head() == before
        assert ann.local() == {"input/a": File(b"2")}
    finally:
        guest.sh("zpool export tank && zpool import -d /dev/vdb1 tank")
    ann.must("sync")
    assert world.remote().check().live == {"input/a": File(b"2")}


@pytest.mark.full  # it takes 40 s
def test_a_dataset_with_files_is_taken_over(guest: Guest, world: ZfsWorld) -> None:
    """By renaming it, while nobody uses it; every path leads to what is current from then on."""
    old, folder = f"{world.root.dataset}-data", f"{world.root.folder}-data"
    guest.sh(
        f"zfs create -o mountpoint={folder} -o readonly=off {old} && mkdir {folder}/input && "
        f"echo 1 > {folder}/input/a && echo 2 > {folder}/notes && zfs snapshot {old}@mine"
    )
    ann = world.client("ann")
    with behind(guest, f"cd {folder}/input && exec sleep 1000"):
        sits = f"ls -l /proc/[0-9]*/cwd 2> /dev/null | grep -q {folder}/input"
        until(lambda: guest.try_sh(sits).returncode == 0, "it is there", guest.patience)
        ended = ann.dsg("init", world.address, "--from-dataset", old)
        assert ended.status == 9 and "sleep (process" in ended.err, ended
        assert world.zfs.datasets(world.root) == []
    inode = guest.sh(f"stat -c %i {folder}/input/a")
    ann.must("init", world.address, "--from-dataset", old)
    assert guest.sh(f"stat -c %i {world.repository}/input/a") == inode, "it was not copied"
    told = guest.sh(f"zfs get -H -o source mountpoint,canmount,readonly {world.dataset}/g0").split("\n")
    assert told[0] == f"inherited from {world.root.dataset}" and told[2] != "local"
    ann.write("input/b", b"new")
    ann.must("sync")
    assert guest.sh(f"cat {folder}/input/b {folder}/input/a {folder}/notes") == "new1\n2\n"
    world.settled()
    names = guest.sh(f"zfs list -H -r -t snapshot -o name {world.dataset}").split()
    assert [name.partition("@")[2] for name in names] == ["mine", "s0", "s1"]
    assert world.remote().check().head.seq == 1

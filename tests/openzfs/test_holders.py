"""Whoever uses an old tree for long: what they write there is kept, and at the bound they are named."""

from __future__ import annotations

from tests.crash.scene import until
from tests.e2e.oracle import File
from tests.e2e.zfs import ZfsWorld
from tests.hosts.openzfs.guest import Guest
from tests.openzfs.test_life import behind

MOST = 16


def test_what_somebody_goes_on_writing_is_kept(guest: Guest, world: ZfsWorld) -> None:
    """Each line that a program could write to its open file is in the head, or in a tree that is kept."""
    ann = world.init("ann")
    ann.put_all({"input/a": File(b"1")})
    ann.must("sync")
    world.settled()
    tree = world.root.folder / ".gen" / "repo" / "g1"
    loop = "n=$((n + 1)); echo $n >&3 && echo $n > /tmp/last; sleep 0.2"
    writes = f"exec 3>> {tree}/log; n=0; while :; do {loop}; done"
    with behind(guest, writes):
        until(lambda: guest.try_sh("test -s /tmp/last").returncode == 0, "it writes", guest.patience)
        for content in (b"2", b"3"):
            ann.write("input/a", content)
            ended = ann.sync()
            assert ended.status == 0, ended
            assert guest.sh(f"cat {world.repository}/input/a") == content.decode()
    ended = ann.dsg("recover", "--json")
    last = guest.sh("cat /tmp/last")
    lines = guest.sh(f"cat {world.repository}/log {tree}/log 2> /dev/null || true").split()
    assert set(lines) >= {str(n) for n in range(1, int(last) + 1)}
    kept = f"{world.dataset}/g1" in world.zfs.datasets(world.root)
    assert kept == any("g1 is kept" in note for note in ended.document["settled"]), ended


def test_a_send_that_does_not_end_is_named_at_the_bound(guest: Guest, world: ZfsWorld) -> None:
    ann = world.init("ann")
    ann.put_all({"input/a": File(b"0"), "input/big": File(bytes(range(256)) * 8192)})
    ann.must("sync")
    world.settled()
    with behind(guest, f"zfs send {world.dataset}/g1@s1 | sleep 10000"):
        until(lambda: guest.try_sh("pgrep -x zfs").returncode == 0, "it sends", guest.patience)
        pid = guest.sh("pgrep -x zfs").split()[0]
        for n in range(MOST):
            ann.write("input/a", b"%d" % n)
            assert ann.sync().status == 0, n
        ann.write("input/a", b"too many")
        before = world.head()
        ended = ann.sync()
        assert ended.status == 9 and f"zfs (process {pid})" in ended.out, ended
        assert world.head() == before
    assert ann.sync().status == 0
    world.settled()
    assert world.remote().check().live == ann.local()

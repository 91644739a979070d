"""The machine that these tests run on: it survives a power cut, is alone, and leaves nothing behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.hosts.openzfs.guest import Guest, openzfs_guest
from tests.hosts.sshd import state_of


def test_a_power_cut_and_the_end() -> None:
    with openzfs_guest() as guest:
        guest.sh("zfs create tank/kept && echo kept > /tank/kept/file && zpool sync && sync")
        drawn = drawn_by(guest)
        # Not by chance: its kernel writes by itself every 5 seconds.
        guest.sh("echo 3600 > /sys/module/zfs/parameters/zfs_txg_timeout && zpool sync")
        guest.sh("echo lost > /tank/kept/lost")
        guest.kill()
        assert guest.try_sh("true").returncode != 0
        guest.start()
        assert guest.sh("cat /tank/kept/file") == "kept\n"
        assert guest.sh("zpool get -H -o value health tank") == "ONLINE\n"
        # It went on from the same state as the first time, but with another clock, and other randomness.
        assert drawn_by(guest).isdisjoint(drawn)
        assert abs(int(guest.sh("date +%s")) - time.time()) < 60
        # What no flush has waited for is in nobody's memory any more: the cut is a real one.
        assert guest.try_sh("test -e /tank/kept/lost").returncode == 1
        # It reaches nothing: not even the machine that it runs on.
        reached = guest.try_sh(f"timeout 5 bash -c ': < /dev/tcp/10.0.2.2/{guest.port}'")
        assert reached.returncode != 0
        pid, folder = guest.machine.pid, guest.folder
        assert pid is not None
    assert not state_of(pid)
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert not [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, str(folder))]


def drawn_by(guest: Guest) -> set[str]:
    """Some of what the machine draws at random: an id of this boot, and ids of its ZFS."""
    snapshots = [f"tank@drawn{number}" for number in range(8)]
    made = " && ".join(f"zfs snapshot {name}" for name in snapshots)
    told = guest.sh(
        f"cat /proc/sys/kernel/random/boot_id && {made} && zfs get -H -o value guid {' '.join(snapshots)} "
        f"&& zfs destroy {snapshots[0]}%drawn7"
    ).split()
    assert len(set(told)) == 9
    return set(told)


def _leads_to(fd: str, folder: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(folder)
    except OSError:
        return False

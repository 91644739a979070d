"""The machine that these tests run on: it survives a power cut, is alone, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

from tests.hosts.openzfs.guest import openzfs_guest
from tests.hosts.sshd import state_of


def test_a_power_cut_and_the_end() -> None:
    with openzfs_guest() as guest:
        guest.sh("zfs create tank/kept && echo kept > /tank/kept/file && zpool sync && sync")
        # Not by chance: its kernel writes by itself every 5 seconds.
        guest.sh("echo 3600 > /sys/module/zfs/parameters/zfs_txg_timeout && zpool sync")
        guest.sh("echo lost > /tank/kept/lost")
        guest.kill()
        assert guest.try_sh("true").returncode != 0
        guest.start()
        assert guest.sh("cat /tank/kept/file") == "kept\n"
        assert guest.sh("zpool get -H -o value health tank") == "ONLINE\n"
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


def _leads_to(fd: str, folder: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(folder)
    except OSError:
        return False

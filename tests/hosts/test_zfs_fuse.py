"""The ZFS that the tests run on."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import mount_or_skip
from tests.hosts.zfs_fuse import ZfsFuse, zfs_fuse

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root")]


def test_only_who_is_inside_sees_it() -> None:
    with zfs_fuse() as host:
        with host.entered():
            root = host.make_root("seen")
            host.zfs("create", f"{root.dataset}/x")
            (root.folder / ".gen/x/file").write_text("here")
            told = subprocess.run(
                ["cat", str(root.folder / ".gen/x/file")], capture_output=True, text=True, check=True
            )
            assert told.stdout == "here"
        assert not (root.folder / ".gen/x/file").exists()
        assert str(host.folder) not in Path("/proc/self/mounts").read_text()


def test_two_beside_each_other(zfs_host: ZfsFuse) -> None:
    with zfs_fuse() as other:
        with zfs_host.entered():
            first = zfs_host.zpool("list", "-H", "-o", "name")
        with other.entered():
            assert other.zpool("list", "-H", "-o", "name") == f"{other.pool}\n" != first


def test_what_was_snapshotted_survives_the_daemon() -> None:
    with zfs_fuse() as host, host.entered():
        root = host.make_root("kept")
        host.zfs("create", f"{root.dataset}/x")
        file = root.folder / ".gen/x/file"
        file.write_text("kept")
        host.zfs("snapshot", f"{root.dataset}/x@s")
        host.kill()
        with pytest.raises(OSError, match="not connected"):
            file.read_text()
        host.start()
        assert file.read_text() == "kept"
        assert host.datasets(root, "snapshot") == [f"{root.dataset}/x@s"]


def test_it_rests_when_nobody_asks(zfs_host: ZfsFuse) -> None:
    ticks = os.sysconf("SC_CLK_TCK")

    def used() -> float:
        assert zfs_host.pid is not None
        fields = Path(f"/proc/{zfs_host.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    time.sleep(1)
    before = used()
    time.sleep(2)
    assert used() - before < 0.1


def test_what_others_have_mounted_is_let_go_of(tmp_path: Path) -> None:
    """A disk that is unmounted by its test, and mounted again, must not be in use in here."""
    at = tmp_path / "disk of another test"
    at.mkdir()
    mount_or_skip("-t", "tmpfs", "tmpfs", str(at))
    host = ZfsFuse(tmp_path)
    try:
        host._make_namespace()
        with host.entered():
            assert not os.path.ismount(at)
        assert os.path.ismount(at)
    finally:
        host.stop()
        subprocess.run(["umount", str(at)], check=True)

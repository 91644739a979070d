"""The ZFS backend, closely."""

from __future__ import annotations

import os
import time

import pytest

from tests.agent.client import tree_of
from tests.agent.storage.ground import ZfsGround

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root")]


def test_syncs_leave_one_generation(zfs_ground: ZfsGround) -> None:
    for n in range(6):
        t = time.perf_counter()
        zfs_ground.sync({"a": b"%d" % n, f"d/{n}": b"x"}, ["d/0"] if n == 3 else [])
        print("sync", time.perf_counter() - t)
    assert tree_of(zfs_ground.folder) == {"a": b"5", **{f"d/{n}": b"x" for n in (1, 2, 3, 4, 5)}}
    assert zfs_ground.generations() == ["g6"]
    assert zfs_ground.snapshots() == [f"g6@s{n}" for n in range(7)]
    assert os.readlink(zfs_ground.folder) == ".gen/repo/g6"

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.agent.spots import BACKENDS
from tests.agent.storage.ground import Ground, ZfsGround

if TYPE_CHECKING:
    from tests.hosts.zfs_fuse import ZfsFuse

_numbers = itertools.count()


@pytest.fixture(params=BACKENDS)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    """A new, empty repository, of each backend unless the test is for ``only_directory``."""
    if request.param == "zfs":
        found: Ground = request.getfixturevalue("zfs_ground")
        return found
    made = Ground(tmp_path / "repo")
    made.init()
    return made


@pytest.fixture
def zfs_ground(zfs_host: ZfsFuse) -> Iterator[ZfsGround]:
    """A new, empty repository on ZFS; the test is in the namespace that sees it."""
    with zfs_host.entered():
        root = zfs_host.make_root(f"t{next(_numbers)}")
        made = ZfsGround(root.folder / "repo", host=zfs_host, root=root)
        made.init()
        yield made
        zfs_host.discard(root)

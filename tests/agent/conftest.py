"""Places for repositories, of each backend."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.agent.spots import BACKENDS, Spot, ZfsSpot

if TYPE_CHECKING:
    from tests.hosts.zfs_fuse import ZfsFuse

_numbers = itertools.count()


@pytest.fixture
def zfs_spot(zfs_host: ZfsFuse) -> Iterator[ZfsSpot]:
    """A place for a repository on ZFS; the test is in the namespace that sees it."""
    with zfs_host.entered():
        root = zfs_host.make_root(f"a{next(_numbers)}")
        yield ZfsSpot(f"zfs:{root.dataset}/repo", root.folder / "repo", zfs_host, root)
        zfs_host.discard(root)


@pytest.fixture(params=BACKENDS)
def spot(request: pytest.FixtureRequest, tmp_path: Path) -> Spot:
    """A place for a repository, of each backend."""
    if request.param == "zfs":
        found: Spot = request.getfixturevalue("zfs_spot")
        return found
    return Spot(str(tmp_path / "repo"), tmp_path / "repo")

"""The worlds on a kernel's OpenZFS: one machine for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.scene import FULL
from tests.e2e.zfs import ZfsPeople, ZfsWorld
from tests.hosts.openzfs.guest import Guest, openzfs_guest
from tests.openzfs.rounds import QuickWorld, Rounds

# What takes minutes: make test-openzfs FULL=1
collect_ignore = [] if FULL else ["test_holders.py", "test_inside.py", "test_keeping.py"]


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    """The machine; whoever kills it starts it again."""
    with openzfs_guest() as found:
        yield found


@pytest.fixture(scope="session")
def people(guest: Guest) -> ZfsPeople:
    """Who can sign in to it."""
    return ZfsPeople(guest, guest)


@pytest.fixture
def world(people: ZfsPeople, tmp_path: Path) -> ZfsWorld:
    """A world with no repository and nobody in it yet."""
    return QuickWorld(people, tmp_path)


@pytest.fixture(scope="session")
def rounds(guest: Guest, people: ZfsPeople, tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """The repository that one crash after the other happens to."""
    return Rounds(guest, lambda: QuickWorld(people, tmp_path_factory.mktemp("rounds")))

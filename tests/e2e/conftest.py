"""The worlds of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.near import NearPeople, NearWorld
from tests.e2e.world import People, World
from tests.e2e.zfs import ZfsPeople, ZfsWorld
from tests.hosts.sshd import ssh_host
from tests.hosts.zfs_fuse import ZfsFuse


@pytest.fixture(scope="session")
def people() -> Iterator[People]:
    """Everybody who can sign in to one sshd, shared by all tests of the run."""
    with ssh_host() as host:
        host.install_agent()
        yield People(host)


MakeWorld = Callable[[], World]


@pytest.fixture(scope="session")
def zfs_people(zfs_host: ZfsFuse) -> Iterator[ZfsPeople]:
    """The same behind an sshd that sees the tests' own ZFS."""
    with zfs_host.entered(), ssh_host() as host:
        host.install_agent()
        yield ZfsPeople(host, zfs_host)


@pytest.fixture(scope="session")
def session_world(people: People, tmp_path_factory: pytest.TempPathFactory) -> MakeWorld:
    """Makes worlds that live as long as the test run, for others to be copied from."""
    return lambda: World(people, tmp_path_factory.mktemp("world"))


@pytest.fixture(
    scope="session",
    params=["directory", pytest.param("zfs", marks=pytest.mark.needs("zfs-fuse", "root"))],
)
def either_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeWorld:
    """The same for worlds of each backend; on ZFS everything happens in the namespace that sees it."""
    if request.param == "directory":
        made: MakeWorld = request.getfixturevalue("session_world")
        return made
    # It keeps this thread in its namespace until the end of the run.
    people: ZfsPeople = request.getfixturevalue("zfs_people")
    return lambda: ZfsWorld(people, tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(people: People, tmp_path: Path) -> World:
    """A world with no repository and nobody in it yet."""
    return World(people, tmp_path)


@pytest.fixture(scope="session")
def near_people(tmp_path_factory: pytest.TempPathFactory) -> NearPeople:
    """People with homes on this machine, for worlds without a server."""
    return NearPeople(tmp_path_factory.mktemp("near"))


@pytest.fixture
def near(near_people: NearPeople, tmp_path: Path) -> NearWorld:
    """A world without a server, with no repository and nobody in it yet."""
    return NearWorld(near_people, tmp_path)

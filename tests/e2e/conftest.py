"""The worlds of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.near import NearPeople, NearWorld
from tests.e2e.world import People, World
from tests.hosts.sshd import ssh_host


@pytest.fixture(scope="session")
def people() -> Iterator[People]:
    """Everybody who can sign in to one sshd, shared by all tests of the run."""
    with ssh_host() as host:
        host.install_agent()
        yield People(host)


MakeWorld = Callable[[], World]


@pytest.fixture(scope="session")
def session_world(people: People, tmp_path_factory: pytest.TempPathFactory) -> MakeWorld:
    """Makes worlds that live as long as the test run, for others to be copied from."""
    return lambda: World(people, tmp_path_factory.mktemp("world"))


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

"""What the fault lane stands on: an sshd, a line to it that can be cut, and worlds at the crossroads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import frozen

from tests.crash.scene import at_the_crossroads
from tests.e2e.near import NearPeople, NearWorld
from tests.e2e.world import People, World
from tests.hosts.proxy import Proxy
from tests.hosts.sshd import ssh_host

# Starts the agent with failpoints ($2) and keeps what it says on stderr ($1); options may follow.
NOTED_AGENT = """\
#!/bin/sh
said=$1; shift
case $1 in
    *=*) DSG_FAILPOINTS=$1; export DSG_FAILPOINTS; shift;;
esac
exec dsg-remote-agent "$@" 2>> "$said"
"""


@frozen
class Line:
    """People behind an sshd, and the wire between ann and it."""

    people: People
    proxy: Proxy


@contextmanager
def make_line() -> Iterator[Line]:
    """Everybody reaches the server directly, but ann goes through a proxy."""
    with ssh_host() as host:
        host.install_agent()
        host.install_program("noted-agent", NOTED_AGENT)
        people = People(host)
        with Proxy(host.port) as proxy:
            ann = people.machine("ann")
            ann.write_config(port=proxy.port)
            ann.trust(proxy.port)
            yield Line(people, proxy)


@pytest.fixture(scope="session")
def line() -> Iterator[Line]:
    """The line of the whole run."""
    with make_line() as made:
        yield made


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test finds a line that works."""
    yield
    if "line" in request.fixturenames:
        line: Line = request.getfixturevalue("line")
        line.proxy.mend()


@pytest.fixture(scope="session")
def base(line: Line, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world at the crossroads, on the server. Copy it."""
    return at_the_crossroads(World(line.people, tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="session")
def near_base(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with the repository on this machine and the agent a child process. Copy it."""
    folder = tmp_path_factory.mktemp("near")
    return at_the_crossroads(NearWorld(NearPeople(folder), folder / "world"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's own world goes."""
    return tmp_path

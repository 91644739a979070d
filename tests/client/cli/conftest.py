"""Working folders on this machine, for commands run as processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.near import NearPeople, NearWorld


@pytest.fixture(scope="session")
def near_people(tmp_path_factory: pytest.TempPathFactory) -> NearPeople:
    """People with homes on this machine."""
    return NearPeople(tmp_path_factory.mktemp("near"))


@pytest.fixture
def near(near_people: NearPeople, tmp_path: Path) -> NearWorld:
    """A world without a server, with no repository and nobody in it yet."""
    return NearWorld(near_people, tmp_path)

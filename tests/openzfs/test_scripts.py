"""Random edit scripts of three people: see :mod:`tests.e2e.test_scripts`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.scene import FULL
from tests.e2e.edits import grow, paths_for
from tests.e2e.oracle import Tree
from tests.e2e.test_scripts import Script
from tests.e2e.zfs import ZfsPeople
from tests.openzfs.rounds import QuickWorld


@pytest.fixture(scope="module")
def base(
    people: ZfsPeople, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> tuple[QuickWorld, Tree, list[str]]:
    """Three people in step, the tree, and the paths to edit. Copy the world."""
    rng = random.Random(f"{seed} base")
    paths = paths_for(rng, 8)
    start = grow(rng, paths, 9)
    world = QuickWorld(people, tmp_path_factory.mktemp("base"))
    ann = world.init("ann")
    ann.put_all(start)
    ann.must("sync")
    world.clone("bob")
    world.clone("cat")
    return world, start, paths


@pytest.mark.parametrize("number", range(20 if FULL else 5))
def test_script(number: int, base: tuple[QuickWorld, Tree, list[str]], seed: int, tmp_path: Path) -> None:
    world, start, paths = base
    copy = world.copy(tmp_path)
    script = Script(f"{seed} script {number}", copy, start, paths)
    try:
        script.play()
    except BaseException as error:
        error.add_note("\n".join(script.told))
        raise
    copy.settled()

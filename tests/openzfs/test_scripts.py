"""Random edit scripts of three people: see :mod:`tests.e2e.test_scripts`."""

from __future__ import annotations

import random

import pytest

from tests.e2e.edits import grow, paths_for
from tests.e2e.test_scripts import Script
from tests.e2e.zfs import ZfsWorld


@pytest.mark.parametrize("number", range(5))
def test_script(number: int, world: ZfsWorld, seed: int, rng: random.Random) -> None:
    paths = paths_for(rng, 8)
    start = grow(rng, paths, 9)
    ann = world.init("ann")
    ann.put_all(start)
    ann.must("sync")
    world.clone("bob")
    world.clone("cat")
    script = Script(f"{seed} script {number}", world, start, paths)
    try:
        script.play()
    except BaseException as error:
        error.add_note("\n".join(script.told))
        raise
    world.settled()

"""The 15 states of the sync matrix, all in one sync: each in a folder of its own, with every kind of file."""

from __future__ import annotations

import pytest

from tests.crash.scene import FULL
from tests.e2e.oracle import Tree, digests
from tests.e2e.test_states import ANCHOR, HELD_ANYWAY, STATES, VARIANTS, State
from tests.e2e.zfs import ZfsWorld

PEACEFUL = [state for state in STATES if state.after is not None]


def outcome(state: State, prefer: str | None) -> str:
    """The letters of L, C and R after a sync."""
    if state.after is not None:
        return state.after
    found = state.if_local if prefer == "local" else state.if_remote
    assert found is not None
    return found[0]


def tree_of(letters: dict[str, str]) -> Tree:
    """Every path of VARIANTS in each state's folder, at that state's letter."""
    found: Tree = dict(ANCHOR)
    for number, state in enumerate(STATES):
        letter = letters.get(state.name, "-")
        if letter == "-":
            continue
        # Their links name the anchor beside them.
        found |= {f"input/{number}{path[5:]}": versions[letter] for path, versions in VARIANTS.items()}
    return found


@pytest.mark.parametrize("prefer", [None, "local", "remote"] if FULL else [None, "remote"])
def test_states(prefer: str | None, world: ZfsWorld) -> None:
    states = STATES if prefer else PEACEFUL
    local, cache, remote = ({s.name: s.before[at] for s in states} for at in range(3))
    ann = world.init("ann")
    ann.put_all(tree_of(cache))
    ann.must("sync")
    bob = world.clone("bob")
    for client, letters in ((bob, remote), (ann, local)):
        tree = tree_of(letters)
        client.put_all({path: None for path in client.local() if path not in tree} | tree)
        assert client.local() == tree
    bob.must("sync", "--allow-mass-delete")

    ended = ann.sync("--allow-mass-delete", *(["--prefer", prefer] if prefer else []))

    assert ended.status == 0, ended
    after = [tree_of({s.name: outcome(s, prefer)[at] for s in states}) for at in range(3)]
    assert ann.local() == after[0]
    assert ann.cache().tree == digests(after[1])
    found = world.remote().check()
    assert found.live == after[2]
    assert (ann.cache().record, len(found.records)) == (found.head.digest, 4)
    kept: Tree = {}
    for number, state in enumerate(STATES):
        if prefer == "remote" and state.kept:
            versions = {path: v[state.kept] for path, v in VARIANTS.items() if path not in HELD_ANYWAY}
            kept |= {f"input/{number}{path[5:]}": version for path, version in versions.items()}
    assert ann.replaced() == kept
    world.settled()

"""Every world of two or three paths, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

import dsg_client.core.reconcile as module
from dsg_client.core.conflict import ConflictKind
from dsg_client.core.plan import Plan
from dsg_client.core.reconcile import reconcile
from dsg_client.core.states import Take

from .oracle import clashing, expect, possible
from .trees import Tree, file, in_order, tree
from .world import World, actions, carry_out, check_after, check_lost

PATHS = [
    ("a", "b"),
    ("a", "a/b"),  # a file where a folder is
    ("a", "A"),  # case
    ("d/x", "D/y"),  # folders that differ in case
    ("d/ä", "d/Ä"),
    ("a", "A/b"),  # both at once
    ("a/b/c", "a/b"),
    ("a", "a-b"),
]


def trees(paths: tuple[str, ...], texts: str) -> list[Tree]:
    """Every tree over these paths; '-' in ``texts`` is absence."""
    return [
        tree(*(file(p, t) for p, t in zip(paths, chosen, strict=True) if t != "-"))
        for chosen in product(texts, repeat=len(paths))
    ]


def worlds(paths: tuple[str, ...], texts: str) -> Iterator[World]:
    """Every L, C and R over these paths that are possible trees."""
    valid = [t for t in trees(paths, texts) if possible(t)]
    for a, b, c in product(valid, repeat=3):
        local = {p: e._replace(who="", seq=0) for p, e in a.items()}
        cache = {p: e._replace(who="ann", seq=1) for p, e in b.items()}
        remote = {p: e._replace(who="bob", seq=2) for p, e in c.items()}
        yield World(local, cache, remote)


def plan_of(world: World, prefer: Take | None = None) -> Plan:
    return reconcile(
        in_order(world.local),
        in_order(world.cache),
        in_order(world.remote),
        who="eve",
        seq=3,
        prefer=prefer,
    )


def check(world: World, prefer: Take | None) -> None:
    expected = expect(world.local, world.cache, world.remote, prefer.value if prefer else None)
    plan = plan_of(world, prefer)
    assert actions(plan) == expected.actions
    shape = (ConflictKind.FILE_AND_FOLDER, ConflictKind.NAMES_COLLIDE)
    assert {c.path for c in plan.conflicts if c.kind in shape} == expected.impossible
    assert plan.unchanged == len({*world.local, *world.cache, *world.remote}) - len(expected.actions)
    assert {e.path for e in plan.delete_local} <= set(world.local)
    if prefer is None:
        # Without anybody's decision, only what a side had at the last sync is ever deleted.
        assert {e.path for e in (*plan.delete_local, *plan.delete_remote)} <= set(world.cache)
        assert not plan.kept
        assert not plan.resolutions
    if plan.conflicts:
        assert prefer is None
        for conflict in plan.conflicts:
            assert conflict.explain()
        return
    after = carry_out(plan, world)
    check_after(world, after)
    again = plan_of(after, prefer)
    assert again.is_empty
    assert again.unchanged == len(after.remote)


@pytest.mark.parametrize("prefer", [None, Take.LOCAL, Take.REMOTE])
@pytest.mark.parametrize("paths", PATHS, ids="+".join)
def test_two_paths(paths: tuple[str, str], prefer: Take | None) -> None:
    count = 0
    for world in worlds(paths, "-XYZ"):
        check(world, prefer)
        count += 1
    assert count >= 7**3


@pytest.mark.parametrize("prefer", [None, Take.LOCAL, Take.REMOTE])
@pytest.mark.parametrize(
    "paths", [("a", "a/b", "A/b"), ("d/x", "D/x", "d/x/y"), ("a", "A", "b")], ids="+".join
)
def test_three_paths(paths: tuple[str, str, str], prefer: Take | None) -> None:
    for world in worlds(paths, "-XY"):
        check(world, prefer)


@pytest.mark.parametrize("prefer", [None, Take.LOCAL, Take.REMOTE])
@pytest.mark.parametrize("paths", [("a", "a/b"), ("a", "A"), ("d/x", "D/y")], ids="+".join)
def test_trees_that_are_impossible_from_the_start(paths: tuple[str, str], prefer: Take | None) -> None:
    """Scan and agent refuse such trees; a plan for them is still made, and still loses nothing."""
    everything = trees(paths, "-XY")
    for local, cache, remote in product(everything, repeat=3):
        world = World(local, cache, remote)
        plan = plan_of(world, prefer)
        if plan.conflicts:
            continue
        after = carry_out(plan, world)
        assert check_lost(world, after) == []
        # Nothing was added beside what it clashes with.
        brought = {change.path for change in (*plan.uploads, *plan.downloads) if change.before is None}
        assert not [pair for pair in clashing(after.remote) if brought & set(pair)]


def test_control_without_the_check_of_names_the_oracle_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_clashes", lambda *_: [])
    for paths in (("a", "a/b"), ("a", "A"), ("d/x", "D/y")):
        with pytest.raises(AssertionError):
            for world in worlds(paths, "-X"):
                check(world, None)


def test_control_without_keeping_aside_the_oracle_notices() -> None:
    world = World(tree(file("a", "mine")), {}, tree(file("a", "theirs")))
    plan = plan_of(world, Take.REMOTE)
    assert [e.path for e in plan.kept] == ["a"]
    after = carry_out(plan, world)
    assert check_lost(world, after) == []
    assert check_lost(world, World(after.local, after.cache, after.remote)) == ["a"]

"""Properties of every plan, over random trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, assume, event, given, settings
from hypothesis import strategies as st

from dsg_client.core.choices import Choice
from dsg_client.core.plan import Plan
from dsg_client.core.reconcile import reconcile
from dsg_client.core.states import Take
from protocol.manifest import Manifest

from .oracle import clashing, expect, possible, version
from .random_trees import worlds
from .trees import Tree, file, in_order
from .trees import versions as versions_of
from .world import World, actions, carry_out, check_after, check_lost

preferences = st.sampled_from([None, Take.LOCAL, Take.REMOTE])


def plan_of(world: World, **options: Any) -> Plan:
    return reconcile(
        in_order(world.local), in_order(world.cache), in_order(world.remote), who="eve", seq=3, **options
    )


@settings(max_examples=150)
@given(worlds(), preferences)
def test_the_plan_is_what_the_oracle_says(world: World, prefer: Take | None) -> None:
    assert len({*world.local, *world.cache, *world.remote}) >= 8
    expected = expect(world.local, world.cache, world.remote, prefer.value if prefer else None)
    plan = plan_of(world, prefer=prefer)
    assert actions(plan) == expected.actions
    for entries in (
        [c.after for c in plan.uploads],
        [c.after for c in plan.downloads],
        plan.delete_local,
        plan.delete_remote,
        plan.cache_updates,
        plan.cache_drops,
    ):
        assert list(entries) == in_order(entries)
    event(f"impossible: {bool(expected.impossible)}")


@settings(max_examples=100)
@given(worlds(), preferences)
def test_a_plan_carried_out_loses_nothing_and_is_final(world: World, prefer: Take | None) -> None:
    plan = plan_of(world, prefer=prefer)
    if prefer is None:
        gone = {e.path for e in (*plan.delete_local, *plan.delete_remote)}
        assert gone <= set(world.cache)
        # Content that is new on a side is in the result or in a conflict.
        safe = {(e.kind, e.content) for c in plan.conflicts for e in (c.local, c.remote) if e}
        safe |= {(e.kind, e.content) for e in world.cache.values()}
        for change in (*plan.uploads, *plan.downloads):
            safe.add((change.after.kind, change.after.content))
        safe |= {(e.kind, e.content) for e in plan.cache_updates}
        for tree in (world.local, world.remote):
            assert [e for e in tree.values() if (e.kind, e.content) not in safe] == []
    else:
        assert not plan.conflicts
    assume(not plan.conflicts)
    after = carry_out(plan, world)
    check_after(world, after)
    assert plan_of(after, prefer=prefer).is_empty
    # Attribution: what this sync uploaded is eve's, and nothing else is.
    mine = {c.path for c in plan.uploads}
    for path, entry in after.remote.items():
        assert entry == world.remote[path] if path not in mine else (entry.who, entry.seq) == ("eve", 3)


@given(worlds(), preferences)
def test_the_same_input_gives_the_same_plan(world: World, prefer: Take | None) -> None:
    one = plan_of(world, prefer=prefer)
    other = reconcile(
        iter(in_order(world.local)),
        iter(in_order(world.cache)),
        in_order(world.remote),
        {},
        who="eve",
        seq=3,
        prefer=prefer,
    )
    assert one == other
    assert one.digest() == other.digest()


@given(worlds(), worlds())
def test_different_plans_have_different_digests(one: World, other: World) -> None:
    a, b = plan_of(one), plan_of(other)

    def content(plan: Plan) -> tuple[object, ...]:
        edits = (list(plan.local_edits()), list(plan.remote_edits()))
        return (*edits, plan.cache_updates, plan.cache_drops, plan.kept, plan.conflicts)

    assert (a.digest() == b.digest()) == (content(a) == content(b))


@settings(max_examples=60)
@given(worlds(), st.sampled_from([Take.LOCAL, Take.REMOTE]))
def test_choosing_one_side_everywhere_is_the_same_as_preferring_it(world: World, take: Take) -> None:
    """Choices are asked for until nothing is left; clashes of names may come up in the second round."""
    choices: dict[str, Choice] = {}
    for _ in range(3):
        plan = plan_of(world, choices=choices)
        if not plan.conflicts:
            break
        choices.update((c.path, c.choose(take)) for c in plan.conflicts)
    preferred = plan_of(world, prefer=take)
    assert actions(plan) == actions(preferred)
    assert plan.kept == preferred.kept
    assert all(r.chosen for r in plan.resolutions)
    assert not any(r.chosen for r in preferred.resolutions)
    assert {r.conflict.path for r in plan.resolutions} >= {r.conflict.path for r in preferred.resolutions}


@settings(max_examples=60)
@given(worlds(), st.data())
def test_any_choices_and_preference_lose_nothing(world: World, data: st.DataObject) -> None:
    choices: dict[str, Choice] = {}
    for _ in range(3):
        for conflict in plan_of(world, choices=choices).conflicts:
            choices[conflict.path] = conflict.choose(data.draw(st.sampled_from(Take)))
    plan = plan_of(world, choices=choices, prefer=data.draw(preferences))
    event(f"conflicts left: {bool(plan.conflicts)}")
    if not plan.conflicts:
        check_after(world, carry_out(plan, world))


@settings(max_examples=60)
@given(worlds(), preferences, st.data())
def test_a_held_path_is_not_lost_by_the_next_sync(
    world: World, prefer: Take | None, data: st.DataObject
) -> None:
    """What the user wrote to while the plan was carried out keeps the user's file and C's entry."""
    plan = plan_of(world, prefer=prefer)
    touched = [edit.path for edit in plan.local_edits()]
    assume(not plan.conflicts and touched)
    held = set(data.draw(st.lists(st.sampled_from(touched), min_size=1, unique=True)))
    fresh = {path: file(path, f"fresh {path}") for path in held}
    # A held file keeps away what would stand below it, and a held file below keeps its folder.
    after = carry_out(plan, world)
    rivals = {p for p, q in clashing({*after.local, *fresh}) if q in held and p not in held}
    assume(possible(fresh))
    local: Tree = {p: e for p, e in after.local.items() if p not in held and p not in rivals} | fresh
    merged = in_order(after.remote)
    cache = list(plan.new_cache(in_order(world.cache), merged, held))
    assert cache == in_order(cache)
    for path in held:
        assert [e for e in cache if e.path == path] == [world.cache[p] for p in [path] if p in world.cache]
    files = {e.path for e in cache}
    assert not any(parent in files for e in cache for parent in _parents(e.path))
    following = World(local, {e.path: e for e in cache}, after.remote)
    again = plan_of(following)
    replaced = {c.path for c in again.downloads if c.before} | {e.path for e in again.delete_local}
    assert not replaced & held
    assert check_lost(following, carry_out(again, following) if not again.conflicts else following) == []


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


@settings(max_examples=60)
@given(worlds(), preferences)
def test_what_is_out_of_scope_stays_as_it_is(world: World, prefer: Take | None) -> None:
    def in_scope(path: str) -> bool:
        return "data" not in path.split("/") and not path.endswith("b")

    here = World({p: e for p, e in world.local.items() if in_scope(p)}, world.cache, world.remote)
    plan = plan_of(here, prefer=prefer, in_scope=in_scope)
    assert all(in_scope(path) for path, action in actions(plan).items() if action != "drop")
    outside = {p: e for p, e in world.remote.items() if not in_scope(p)}
    assert plan.outside_scope == len(outside)
    # C may be filtered upstream as well as here: the plan is the same but for what C forgets.
    cache = {p: e for p, e in world.cache.items() if in_scope(p)}
    filtered = plan_of(World(here.local, cache, here.remote), prefer=prefer, in_scope=in_scope)
    forgotten = {p for p in world.cache if not in_scope(p)}
    assert {e.path for e in plan.cache_drops} - forgotten == {e.path for e in filtered.cache_drops}
    assert (plan.uploads, plan.downloads, plan.conflicts) == (
        filtered.uploads,
        filtered.downloads,
        filtered.conflicts,
    )
    assume(not plan.conflicts)
    merged = {e.path: e for e in plan.merged_remote(Manifest.from_entries(in_order(world.remote)))}
    assert {p: merged[p] for p in merged if not in_scope(p)} == outside
    assert possible(merged)
    new_cache = list(plan.new_cache(in_order(world.cache), in_order(merged)))
    assert new_cache == [e for e in in_order(merged) if in_scope(e.path)]
    local = dict(here.local)
    for edit in plan.local_edits():
        if edit.after is None:
            del local[edit.path]
        else:
            local[edit.path] = edit.after
    assert versions_of(local.values()) == versions_of(new_cache)
    after = World(local, {e.path: e for e in new_cache}, merged)
    assert plan_of(after, in_scope=in_scope).is_empty


@settings(max_examples=60)
@given(worlds(), st.data())
def test_a_choice_lapses_when_a_version_changes(world: World, data: st.DataObject) -> None:
    conflicts = [c for c in plan_of(world).conflicts if c.other is None]
    assume(conflicts)
    conflict = data.draw(st.sampled_from(conflicts))
    choices = {conflict.path: conflict.choose(data.draw(st.sampled_from(Take)))}
    assert conflict.path not in {c.path for c in plan_of(world, choices=choices).conflicts if c.other is None}
    changed = World(dict(world.local), dict(world.cache), dict(world.remote))
    side = data.draw(st.sampled_from([t for t in (changed.local, changed.remote) if conflict.path in t]))
    side[conflict.path] = file(conflict.path, "written later")
    plan = plan_of(changed, choices=choices)
    assert conflict.path in {c.path for c in plan.conflicts}
    assert plan.lapsed == (conflict.path,)


def test_control_without_binding_a_choice_replaces_what_nobody_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = World({"a": file("a", "mine")}, {}, {"a": file("a", "theirs")})
    choices = {"a": plan_of(seen).conflicts[0].choose(Take.REMOTE)}
    later = World({"a": file("a", "mine, much better")}, {}, seen.remote)
    assert [c.path for c in plan_of(later, choices=choices).conflicts] == ["a"]
    monkeypatch.setattr(Choice, "fits", lambda *_: True)
    assert not plan_of(later, choices=choices).conflicts


@pytest.mark.parametrize(
    "forget",
    [lambda plan: plan.but(delete_local=()), lambda plan: plan.but(uploads=())],
    ids=["delete_local", "uploads"],
)
def test_control_the_oracle_sees_a_plan_that_leaves_something_out(forget: Callable[[Plan], Plan]) -> None:
    """A run of the properties over a product that forgets one kind of action fails."""

    @settings(max_examples=100, database=None, phases=[Phase.generate])
    @given(worlds())
    def run(world: World) -> None:
        plan = forget(plan_of(world))
        assert actions(plan) == expect(world.local, world.cache, world.remote).actions

    with pytest.raises(AssertionError):
        run()


def test_versions_compare_what_the_design_says() -> None:
    assert version(file("a", "x", who="ann", seq=4)) == version(file("a", "x"))
    assert version(file("a", "x", executable=True)) != version(file("a", "x"))

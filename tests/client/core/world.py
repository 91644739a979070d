"""A plan carried out on dictionaries, with the checks that every sync must pass."""

from __future__ import annotations

from attrs import frozen

from dsg_client.core.plan import Plan
from protocol.manifest import Entry, Manifest

from .oracle import possible, version
from .trees import Tree, in_order


@frozen
class World:
    """The three trees, and what was put aside."""

    local: Tree
    cache: Tree
    remote: Tree
    kept: tuple[Entry, ...] = ()


def actions(plan: Plan) -> dict[str, str]:
    """Path to action, as the oracle names them; fails when a path is there twice."""
    pairs = [
        *((change.path, "upload") for change in plan.uploads),
        *((change.path, "download") for change in plan.downloads),
        *((entry.path, "delete local") for entry in plan.delete_local),
        *((entry.path, "delete remote") for entry in plan.delete_remote),
        *((entry.path, "update") for entry in plan.cache_updates),
        *((entry.path, "drop") for entry in plan.cache_drops),
        *((conflict.path, "conflict") for conflict in plan.conflicts),
    ]
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


def carry_out(plan: Plan, world: World) -> World:
    """Do what the plan says, one change at a time; fails where something else stands than it says."""
    local, remote = dict(world.local), dict(world.remote)
    for entry in plan.delete_local:
        assert local.pop(entry.path) == entry
    for entry in plan.delete_remote:
        assert remote.pop(entry.path) == entry
    for change in plan.downloads:
        assert local.get(change.path) == change.before
        assert remote[change.path] == change.after
        # A scan gives the entry without attribution.
        local[change.path] = change.after._replace(who="", seq=0)
    for change in plan.uploads:
        assert remote.get(change.path) == change.before
        assert local[change.path]._replace(who=plan.who, seq=plan.seq) == change.after
        remote[change.path] = change.after
    merged = list(plan.merged_remote(Manifest.from_entries(in_order(world.remote))))
    assert merged == in_order(remote)
    cache = list(plan.new_cache(in_order(world.cache), merged))
    assert cache == in_order(cache)
    return World(local, {e.path: e for e in cache}, remote, (*world.kept, *plan.kept))


def check_lost(before: World, after: World) -> list[str]:
    """Paths whose content is gone for good: in L, in no snapshot, and neither in the result nor kept.

    C and the old R are in snapshots.
    """
    held = {(e.kind, e.content) for t in (before.cache, before.remote, after.local) for e in t.values()}
    held |= {(e.kind, e.content) for e in after.kept}
    return [e.path for e in before.local.values() if (e.kind, e.content) not in held]


def check_after(before: World, after: World) -> None:
    """What holds after every sync that was carried out."""
    assert {p: version(e) for p, e in after.local.items()} == {p: version(e) for p, e in after.remote.items()}
    assert after.cache == after.remote
    assert possible(after.remote)
    assert check_lost(before, after) == []

"""The mass-deletion guard, at its edges."""

from __future__ import annotations

import pytest

from dsg_client.core.guard import Why, mass_deletions, refuse_mass_deletion
from dsg_client.core.reconcile import reconcile
from dsg_client.core.states import Take
from protocol.errors import MassDeleteError
from protocol.manifest import Entry

from .trees import file, in_order


def entries(count: int, folder: str = "input") -> list[Entry]:
    return in_order(file(f"{folder}/{n:03}", f"{folder} {n}") for n in range(count))


@pytest.mark.parametrize("side", [Take.LOCAL, Take.REMOTE])
@pytest.mark.parametrize(
    ("count", "deleted", "why"),
    [
        (1, 1, Why.EVERYTHING),
        (2, 2, Why.EVERYTHING),
        (2, 1, None),
        (19, 18, None),
        (19, 19, Why.EVERYTHING),
        (20, 10, None),
        (20, 11, Why.MORE_THAN_HALF),
        (21, 10, None),
        (21, 11, Why.MORE_THAN_HALF),
        (20, 20, Why.EVERYTHING),
        (20, 0, None),
        (1000, 501, Why.MORE_THAN_HALF),
        (1000, 500, None),
    ],
)
def test_counts(side: Take, count: int, deleted: int, why: Why | None) -> None:
    """Deleted on one side by the user, so that the plan deletes it on the other."""
    full = entries(count)
    left = full[deleted:]
    local, remote = (full, left) if side is Take.LOCAL else (left, full)
    plan = reconcile(local, full, remote, who="w", seq=1)
    found = mass_deletions(plan)
    assert [(d.why, d.side, d.deleted, d.entries) for d in found] == (
        [(why, side, deleted, count)] if why else []
    )
    if why:
        with pytest.raises(MassDeleteError) as caught:
            refuse_mass_deletion(plan)
        assert caught.value.exit_status == 13
        assert caught.value.facts["reasons"][0]["deleted"] == deleted
        assert "--allow-mass-delete" in caught.value.hint
    else:
        refuse_mass_deletion(plan)


def test_each_side_is_counted_by_itself() -> None:
    """11 of 20 go here and 11 of 20 there: neither is hidden by what the other side brings."""
    mine, theirs, new = entries(11, "mine"), entries(11, "theirs"), entries(9, "both")
    everything = in_order([*mine, *theirs, *new])
    plan = reconcile(in_order([*theirs, *new]), everything, in_order([*mine, *new]), who="w", seq=1)
    assert [(d.side, d.deleted, d.entries) for d in mass_deletions(plan)] == [
        (Take.LOCAL, 11, 20),
        (Take.REMOTE, 11, 20),
    ]


def test_it_counts_after_choices() -> None:
    """Twenty conflicts that a preference makes deletions are a mass deletion."""
    old = entries(20)
    changed = [e._replace(content=b"n" * 32) for e in old]
    plan = reconcile([], old, changed, who="w", seq=1)
    assert mass_deletions(plan) == ()
    plan = reconcile([], old, changed, who="w", seq=1, prefer=Take.LOCAL)
    assert [d.why for d in mass_deletions(plan)] == [Why.EVERYTHING]
    plan = reconcile([], old, changed, who="w", seq=1, prefer=Take.REMOTE)
    assert mass_deletions(plan) == ()


def test_what_is_out_of_scope_does_not_hide_a_deletion() -> None:
    old, others = entries(3), entries(500, "others")
    plan = reconcile(
        [], old, in_order([*old, *others]), who="w", seq=1, in_scope=lambda p: p.startswith("input/")
    )
    assert [(d.why, d.deleted, d.entries) for d in mass_deletions(plan)] == [(Why.EVERYTHING, 3, 3)]


def test_a_vanished_data_folder() -> None:
    kept, lost = entries(100, "project/output"), entries(2, "project/input")
    beside = entries(2, "project/input2")
    old = in_order([*kept, *lost, *beside])
    plan = reconcile(in_order(kept), old, old, who="w", seq=1)
    assert mass_deletions(plan) == ()
    (found,) = mass_deletions(plan, {"project/input"})
    assert (found.why, found.deleted, found.folder) == (Why.FOLDER_VANISHED, 2, "project/input")
    with pytest.raises(MassDeleteError, match="project/input is missing, empty or on another device"):
        refuse_mass_deletion(plan, {"project/input"})
    # Nothing would be deleted: the other side deleted it too, or the folder is back.
    assert (
        mass_deletions(reconcile(in_order(kept), old, in_order(kept), who="w", seq=1), {"project/input"})
        == ()
    )
    assert mass_deletions(reconcile(old, old, old, who="w", seq=1), {"project/input"}) == ()


def test_a_move_is_told_from_a_loss() -> None:
    old = entries(30, "input/run1")
    moved = in_order(e._replace(path=e.path.replace("run1", "run2")) for e in old)
    (found,) = mass_deletions(reconcile(moved, old, old, who="w", seq=1))
    assert (found.deleted, found.moved) == (30, 30)
    assert "30 of them come back under another path" in found.explain()


def test_names_are_escaped() -> None:
    folder = "bad\u202ename"
    old = entries(1, folder)
    plan = reconcile([], old, old, who="w", seq=1)
    assert "\u202e" not in "".join(d.explain() for d in mass_deletions(plan, {folder}))

"""Merged trees that cannot be: by hand, with what each choice and preference does."""

from __future__ import annotations

from typing import Any

import pytest

from dsg_client.core.choices import Choice
from dsg_client.core.conflict import ConflictKind
from dsg_client.core.plan import Plan
from dsg_client.core.reconcile import reconcile
from dsg_client.core.states import Take
from protocol.manifest import Entry

from .trees import file, in_order
from .world import actions


def plan_of(local: list[Entry], cache: list[Entry], remote: list[Entry], **options: Any) -> Plan:
    return reconcile(
        in_order(local), in_order(cache), in_order(remote), who="eve <eve@here>", seq=3, **options
    )


BOB: dict[str, Any] = {"who": "bob", "seq": 2}

# new in L, new in R, the kind of the conflict, and which paths are in it
CLASHES = [
    (["a"], ["a/b"], ConflictKind.FILE_AND_FOLDER, {"a": "a/b", "a/b": "a"}),
    (["a/b/c"], ["a"], ConflictKind.FILE_AND_FOLDER, {"a": "a/b/c", "a/b/c": "a"}),
    (["Report.csv"], ["report.csv"], ConflictKind.NAMES_COLLIDE, None),
    (["d/Straße"], ["d/STRASSE"], ConflictKind.NAMES_COLLIDE, None),
    (["d/é"], ["d/É"], ConflictKind.NAMES_COLLIDE, None),
    (["Data/one"], ["data/two"], ConflictKind.NAMES_COLLIDE, None),
    (["Data/one"], ["data"], ConflictKind.NAMES_COLLIDE, None),
    (
        ["Data/1", "Data/2", "other"],
        ["data/3"],
        ConflictKind.NAMES_COLLIDE,
        {"Data/1": "data/3", "Data/2": "data/3", "data/3": "Data/1"},
    ),
    # The nearest rival is named, not just any in a folder of the same name.
    (
        ["D/b"],
        ["d/a", "d/b"],
        ConflictKind.NAMES_COLLIDE,
        {"D/b": "d/b", "d/a": "D/b", "d/b": "D/b"},
    ),
    # In canonical order a-b stands between a and a/b for plain strings, and not for paths.
    (["a", "a-b"], ["a/b"], ConflictKind.FILE_AND_FOLDER, {"a": "a/b", "a/b": "a"}),
]


@pytest.mark.parametrize(("mine", "theirs", "kind", "rivals"), CLASHES, ids=lambda v: str(v))
def test_one_new_from_each_side(
    mine: list[str], theirs: list[str], kind: ConflictKind, rivals: dict[str, str] | None
) -> None:
    old = [file("keep/z", "z"), file("m", "m")]
    local = [*old, *(file(p, f"mine {p}") for p in mine)]
    remote = [*old, *(file(p, f"theirs {p}", **BOB) for p in theirs)]
    rivals = rivals or {mine[0]: theirs[0], theirs[0]: mine[0]}
    plan = plan_of(local, old, remote)
    assert {c.path: c.other.path for c in plan.conflicts if c.other} == rivals
    assert {c.kind for c in plan.conflicts} == {kind}
    free = {p: "upload" for p in mine if p not in rivals} | {p: "download" for p in theirs if p not in rivals}
    assert actions(plan) == free | dict.fromkeys(rivals, "conflict")

    preferred = plan_of(local, old, remote, prefer=Take.LOCAL)
    assert actions(preferred) == dict.fromkeys(mine, "upload") | dict.fromkeys(theirs, "delete remote")
    assert preferred.kept == ()  # R's snapshot holds what goes
    preferred = plan_of(local, old, remote, prefer=Take.REMOTE)
    going = [p for p in mine if p in rivals]
    assert actions(preferred) == dict.fromkeys(theirs, "download") | {
        p: "delete local" if p in rivals else "upload" for p in mine
    }
    assert [e.path for e in preferred.kept] == going


def test_one_choice_that_lets_a_path_go_is_enough() -> None:
    local, remote = [file("a", "mine")], [file("a/b", "theirs", **BOB)]
    asked = {c.path: c for c in plan_of(local, [], remote).conflicts}
    plan = plan_of(local, [], remote, choices={"a": asked["a"].choose(Take.REMOTE)})
    assert actions(plan) == {"a": "delete local", "a/b": "download"}
    assert [e.path for e in plan.kept] == ["a"]
    plan = plan_of(local, [], remote, choices={"a/b": asked["a/b"].choose(Take.LOCAL)})
    assert actions(plan) == {"a": "upload", "a/b": "delete remote"}
    assert plan.kept == ()


def test_a_choice_to_stay_does_not_remove_what_nobody_chose_about() -> None:
    local, remote = [file("a", "mine")], [file("a/b", "theirs", **BOB)]
    asked = {c.path: c for c in plan_of(local, [], remote).conflicts}
    stay = {"a": asked["a"].choose(Take.LOCAL)}
    assert actions(plan_of(local, [], remote, choices=stay)) == {"a": "conflict", "a/b": "conflict"}
    # The preference does not go against the choice either.
    plan = plan_of(local, [], remote, choices=stay, prefer=Take.REMOTE)
    assert actions(plan) == {"a": "conflict", "a/b": "conflict"}
    # It may let the other one go.
    plan = plan_of(local, [], remote, choices=stay, prefer=Take.LOCAL)
    assert actions(plan) == {"a": "upload", "a/b": "delete remote"}
    assert plan.lapsed == ()


def test_a_choice_about_a_clash_that_is_gone_does_not_delete() -> None:
    """The versions are the same as when it was made, but there is nothing to choose any more."""
    local, remote = [file("a", "mine")], [file("a/b", "theirs", **BOB)]
    choice = plan_of(local, [], remote).conflicts[0].choose(Take.REMOTE)
    plan = plan_of(local, [], [], choices={"a": choice})
    assert actions(plan) == {"a": "upload"}
    assert plan.lapsed == ("a",)


def test_a_type_change_is_no_clash() -> None:
    """File to folder on one side, unchanged on the other: the old entry goes."""
    old = [file("a", "x"), file("z", "z")]
    new = [file("a/b", "x"), file("z", "z")]
    assert actions(plan_of(new, old, old)) == {"a": "delete remote", "a/b": "upload"}
    assert actions(plan_of(old, old, new)) == {"a": "delete local", "a/b": "download"}
    assert actions(plan_of(old, new, new)) == {"a/b": "delete remote", "a": "upload"}
    assert actions(plan_of([file("A", "x")], [file("a", "x")], [file("a", "x")])) == {
        "a": "delete remote",
        "A": "upload",
    }


def test_a_folder_here_for_a_file_that_changed_there() -> None:
    """The file's own conflict is settled first, then what stands below it."""
    old, local, remote = [file("a", "x")], [file("a/b", "mine")], [file("a", "changed", **BOB)]
    plan = plan_of(local, old, remote)
    assert [(c.path, c.kind) for c in plan.conflicts] == [("a", ConflictKind.DELETED_HERE_CHANGED_THERE)]
    choices = {"a": plan.conflicts[0].choose(Take.REMOTE)}
    plan = plan_of(local, old, remote, choices=choices)
    assert [(c.path, c.kind) for c in plan.conflicts] == [
        ("a", ConflictKind.FILE_AND_FOLDER),
        ("a/b", ConflictKind.FILE_AND_FOLDER),
    ]
    choices["a/b"] = plan.conflicts[1].choose(Take.REMOTE)
    plan = plan_of(local, old, remote, choices=choices)
    assert actions(plan) == {"a": "download", "a/b": "delete local"}
    assert [e.path for e in plan.kept] == ["a/b"]
    assert actions(plan_of(local, old, remote, prefer=Take.REMOTE)) == actions(plan)
    assert actions(plan_of(local, old, remote, prefer=Take.LOCAL)) == {"a": "delete remote", "a/b": "upload"}


@pytest.mark.parametrize("name", ["A", "a/b", "A/b"])
@pytest.mark.parametrize("prefer", [None, Take.LOCAL])
def test_what_is_out_of_scope_is_never_removed(name: str, prefer: Take | None) -> None:
    """Another client's file, which the rules here do not see, stands where this one's would come."""

    def in_scope(path: str) -> bool:
        return path != name

    plan = plan_of([file("a", "mine")], [], [file(name, "x", **BOB)], prefer=prefer, in_scope=in_scope)
    assert actions(plan) == {"a": "conflict"}
    other = plan.conflicts[0].other
    assert other is not None
    assert (other.path, other.who) == (name, "bob")
    plan = plan_of([file("a", "mine")], [], [file(name, "x")], prefer=Take.REMOTE, in_scope=in_scope)
    assert actions(plan) == {"a": "delete local"}
    assert [e.path for e in plan.kept] == ["a"]


def test_an_unchanged_neighbour_in_an_untouched_folder_is_found() -> None:
    """R brings a name beside one that all sides have: only a broken client commits that, and it is seen."""
    old = [file(f"d/{n}/{m}", "x") for n in range(5) for m in ("p", "q", "r")]
    for name in ("d/3/P", "d/3/Q", "d/3/R", "D/9", "d/2/q/deep", "d/4"):
        remote = [*old, file(name, "new", **BOB)]
        plan = plan_of(old, old, remote)
        assert actions(plan) == {name: "conflict"}, name
    assert actions(plan_of(old, old, [*old, file("d/3/s", "new")])) == {"d/3/s": "download"}


def test_a_clash_inside_r_goes_by_what_the_preferred_side_has() -> None:
    """Two of R's own names clash. L has one of them, or neither: then no preference can tell which goes."""
    a, b = file("a", "x", **BOB), file("A", "new", **BOB)
    assert actions(plan_of([a], [a], [a, b], prefer=Take.LOCAL)) == {"A": "delete remote"}
    assert actions(plan_of([a], [a], [a, b], prefer=Take.REMOTE)) == {"A": "conflict"}
    for prefer in (None, Take.LOCAL, Take.REMOTE):
        assert actions(plan_of([], [], [a, b], prefer=prefer)) == {"a": "conflict", "A": "conflict"}
        plan = plan_of([], [], [a, b], prefer=prefer, in_scope=lambda path: path == "a")
        assert actions(plan) == {"a": "conflict"}
    asked = {c.path: c for c in plan_of([], [], [a, b]).conflicts}
    plan = plan_of([], [], [a, b], choices={"A": asked["A"].choose(Take.LOCAL)})
    assert actions(plan) == {"a": "download", "A": "delete remote"}


def test_a_choice_goes_before_the_preference() -> None:
    local, remote = [file("a", "1"), file("b", "1")], [file("a", "2", **BOB), file("b", "2", **BOB)]
    choices = {"a": plan_of(local, [], remote).conflicts[0].choose(Take.REMOTE)}
    plan = plan_of(local, [], remote, choices=choices, prefer=Take.LOCAL)
    assert actions(plan) == {"a": "download", "b": "upload"}
    assert [(r.conflict.path, r.take, r.chosen) for r in plan.resolutions] == [
        ("a", Take.REMOTE, True),
        ("b", Take.LOCAL, False),
    ]


def test_a_choice_lapses_when_any_of_the_three_versions_changes() -> None:
    a, b, c, new = file("p", "1"), file("p", "0"), file("p", "2", **BOB), file("p", "9")
    (conflict,) = plan_of([a], [b], [c]).conflicts
    choices = {"p": conflict.choose(Take.LOCAL)}
    assert actions(plan_of([a], [b], [c], choices=choices)) == {"p": "upload"}
    for versions in ((new, b, c), (a, new, c), (a, b, new), (None, b, c), (a, None, c), (a, b, None)):
        plan = plan_of(*([e] if e else [] for e in versions), choices=choices)
        assert actions(plan) == {"p": "conflict"}, versions
        assert plan.lapsed == ("p",)


def test_one_shot_remote_is_refused() -> None:
    with pytest.raises(TypeError, match="more than once"):
        reconcile([], [], iter([]), who="w", seq=1)


def test_explanations_name_both_sides_and_escape_what_they_show() -> None:
    evil = "a\u202ecsv"
    local, remote = [file("d/x", "mine")], [file("D/x", "theirs", **BOB)]
    mine, theirs = sorted(plan_of(local, [], remote).conflicts, key=lambda c: c.path, reverse=True)
    why = "differ only in case or Unicode form"
    assert mine.explain() == f"d/x (here) cannot stand beside D/x: 'd' and 'D' {why}"
    assert theirs.explain() == f"D/x (added there by bob in s2) cannot stand beside d/x: 'D' and 'd' {why}"
    (folder, _) = plan_of([file("a", "mine")], [], [file("a/b", "theirs", **BOB)]).conflicts
    assert folder.explain() == "a (here) cannot stand beside a/b: one is a folder of the other's path"
    cases = [
        (
            file("p", "1"),
            file("p", "0"),
            file("p", "2", **BOB),
            "changed here by eve <eve@here>",
            "changed there by bob in s2",
        ),
        (
            file("p", "1"),
            None,
            file("p", "2", **BOB),
            "added here by eve <eve@here>",
            "added there by bob in s2",
        ),
        (
            None,
            file("p", "0"),
            file("p", "2", **BOB),
            "deleted here by eve <eve@here>",
            "changed there by bob in s2",
        ),
        (file("p", "1"), file("p", "0"), None, "changed here by eve <eve@here>", "deleted there"),
        (
            file("p", "0", executable=True),
            file("p", "0"),
            file("p", "2", who=evil, seq=2),
            "changed here (executable) by eve <eve@here>",
            "changed there by a\\u{202e}csv in s2",
        ),
    ]
    for a, b, c, here, there in cases:
        (conflict,) = plan_of([a] if a else [], [b] if b else [], [c] if c else []).conflicts
        assert conflict.explain() == f"p: {here}; {there}"
        assert conflict.choose(Take.LOCAL) == Choice.of(Take.LOCAL, a, b, c)
        when = conflict.here.mtime_ns
        assert when == (a.mtime_ns if a else None)

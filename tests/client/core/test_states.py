"""The 15 states, typed out by hand from the design's table (section 5)."""

from __future__ import annotations

from itertools import product

import pytest

from dsg_client.core.reconcile import reconcile
from dsg_client.core.states import STATES, Action, State, classify
from protocol.manifest import Entry

from .trees import file, link

# L, C, R: the text of the file in each, None where there is none; then what the design says.
TABLE = [
    ("A", "A", "A", "L=C=R", "none"),
    ("A", "A", "B", "L=C≠R", "download"),
    ("A", "B", "A", "L=R≠C", "update cache"),
    ("B", "A", "A", "C=R≠L", "upload"),
    ("A", "B", "C", "all differ", "conflict"),
    (None, "A", "A", "C=R, no L", "delete on remote"),
    (None, "A", "B", "C≠R, no L", "conflict"),
    ("A", None, "A", "L=R, no C", "update cache"),
    ("A", None, "B", "L≠R, no C", "conflict"),
    ("A", "A", None, "L=C, no R", "delete on local"),
    ("A", "B", None, "L≠C, no R", "conflict"),
    (None, None, "A", "only R", "download"),
    (None, "A", None, "only C", "drop from cache"),
    ("A", None, None, "only L", "upload"),
    (None, None, None, "none", "none"),
]


def at(text: str | None, who: str = "", seq: int = 0) -> Entry | None:
    return None if text is None else file("input/a.csv", text, who=who, seq=seq)


def test_the_table_here_has_every_combination_once() -> None:
    """Up to renaming of versions there are 15 combinations, and TABLE has each of them."""
    seen = set()
    for combination in product([None, "A", "B", "C"], repeat=3):
        names: dict[str, int] = {}
        seen.add(tuple(0 if v is None else names.setdefault(v, len(names) + 1) for v in combination))
    mine = set()
    for *texts, _, _ in TABLE:
        names = {}
        mine.add(tuple(0 if v is None else names.setdefault(v, len(names) + 1) for v in texts))
    assert len(TABLE) == len(mine) == 15
    assert mine == seen


@pytest.mark.parametrize(("local", "cache", "remote", "state", "action"), TABLE, ids=lambda v: str(v))
def test_classify(local: str | None, cache: str | None, remote: str | None, state: str, action: str) -> None:
    row = classify(at(local), at(cache, "ann", 3), at(remote, "bob", 4))
    assert (row.state.value, row.action.value) == (state, action)


@pytest.mark.parametrize(("local", "cache", "remote", "state", "action"), TABLE, ids=lambda v: str(v))
def test_reconcile(local: str | None, cache: str | None, remote: str | None, state: str, action: str) -> None:
    """The plan for a tree with this one path holds this one action and nothing else."""
    a, b, c = at(local), at(cache, "ann", 3), at(remote, "bob", 4)
    plan = reconcile([a] if a else [], [b] if b else [], [c] if c else [], who="eve", seq=9)
    found = {
        "download": [change.after for change in plan.downloads],
        "upload": [change.after for change in plan.uploads],
        "delete on local": list(plan.delete_local),
        "delete on remote": list(plan.delete_remote),
        "update cache": list(plan.cache_updates),
        "drop from cache": list(plan.cache_drops),
        "conflict": [(conflict.local, conflict.cache, conflict.remote) for conflict in plan.conflicts],
    }
    expected: dict[str, list[object]] = {name: [] for name in found}
    if action == "download":
        expected[action] = [c]
    elif action == "upload":
        assert a is not None
        expected[action] = [a._replace(who="eve", seq=9)]
    elif action == "delete on local":
        expected[action] = [a]
    elif action in ("delete on remote", "update cache"):
        expected[action] = [c]
    elif action == "drop from cache":
        expected[action] = [b]
    elif action == "conflict":
        expected[action] = [(a, b, c)]
    assert found == expected
    assert plan.is_empty == (action == "none")
    assert plan.unchanged == (1 if state == "L=C=R" else 0)
    assert (plan.local_entries, plan.remote_entries) == (int(a is not None), int(c is not None))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (file("p", "x", who="ann", seq=1), file("p", "x", who="bob", seq=2), True),
        (file("p", "x"), file("p", "x")._replace(mtime_ns=5), True),
        (file("p", "x"), file("p", "y"), False),
        (file("p", "x"), file("p", "x", executable=True), False),
        (link("p", "q"), link("p", "q"), True),
        (link("p", "q"), link("p", "r"), False),
        # A link whose target is the same 32 bytes as a file's digest is another thing.
        (file("p", "x")._replace(content=b"a" * 32), link("p", "a" * 32), False),
    ],
)
def test_what_counts_as_the_same_version(one: Entry, other: Entry, equal: bool) -> None:
    assert (classify(one, one, other).state is State.ALL_SAME) == equal
    assert reconcile([one], [one], [other], who="w", seq=1).is_empty == equal


def test_every_conflict_says_what_each_preference_does() -> None:
    for row in STATES:
        assert (row.action is Action.CONFLICT) == (row.if_local is not None) == (row.if_remote is not None)

"""The plan's own promises: attribution, bytes, digest, what it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dsg_client.core.reconcile import reconcile
from dsg_client.core.states import Take
from protocol.errors import InternalError
from protocol.manifest import Entry, Manifest

from .trees import file, in_order, link

OLD = [
    file(name, f"old {name}", who="ann", seq=1) for name in ("both", "down", "gone here", "gone there", "up")
]


def world() -> tuple[list[Entry], list[Entry], list[Entry]]:
    local = [
        file("both", "same new"),
        file("down", "old down"),
        file("gone there", "old gone there"),
        file("mine", "12345"),
        file("up", "1234567"),
    ]
    remote = [
        file("both", "same new", who="bob", seq=2),
        file("down", "123", who="bob", seq=2),
        file("gone here", "old gone here", who="ann", seq=1),
        file("theirs", "1", who="cat", seq=2),
        file("up", "old up", who="ann", seq=1),
    ]
    return in_order(local), in_order(OLD), in_order(remote)


def test_results_and_attribution() -> None:
    local, cache, remote = world()
    plan = reconcile(local, cache, remote, who="eve", seq=3)
    merged = list(plan.merged_remote(Manifest.from_entries(remote)))
    assert [(e.path, e.who, e.seq) for e in merged] == [
        ("both", "bob", 2),
        ("down", "bob", 2),
        ("mine", "eve", 3),
        ("theirs", "cat", 2),
        ("up", "eve", 3),
    ]
    assert list(plan.new_cache(cache, merged)) == merged
    assert [(e.path, e.before is None, e.after is None) for e in plan.remote_edits()] == [
        ("gone here", False, True),
        ("mine", True, False),
        ("up", False, False),
    ]
    assert [(e.path, e.before is None, e.after is None) for e in plan.local_edits()] == [
        ("down", False, False),
        ("gone there", False, True),
        ("theirs", True, False),
    ]
    assert (plan.upload_bytes, plan.download_bytes) == (5 + 7, 3 + 1)
    assert (plan.changes_remote, plan.changes_local, plan.changes_cache, plan.is_empty) == (
        True,
        True,
        True,
        False,
    )
    assert (plan.local_entries, plan.remote_entries, plan.unchanged) == (5, 5, 0)


def test_mtime_travels_and_is_not_equality() -> None:
    old = [file("a", "x", who="ann", seq=1)]
    touched = [old[0]._replace(mtime_ns=5, who="", seq=0)]
    assert reconcile(touched, old, old, who="eve", seq=2).is_empty
    changed = [file("a", "y")._replace(mtime_ns=5)]
    plan = reconcile(changed, old, old, who="eve", seq=2)
    assert [e.mtime_ns for e in plan.merged_remote(Manifest.from_entries(old))] == [5]


def test_c_takes_the_attribution_of_r_for_what_is_unchanged() -> None:
    """There and back again on the remote side: same version, newer attribution."""
    local, cache = [file("a", "x")], [file("a", "x", who="ann", seq=1)]
    remote = [file("a", "x", who="bob", seq=3), file("b", "new", who="bob", seq=3)]
    plan = reconcile(local, cache, remote, who="eve", seq=4)
    assert list(plan.new_cache(cache, remote)) == remote


def test_content_that_the_receiver_has_does_not_travel() -> None:
    old = [file("a", "x"), file("b", "x"), link("l", "a")]
    new = [file("a", "x", executable=True), file("b", "longer"), link("l", "b")]
    plan = reconcile(new, old, old, who="w", seq=1)
    assert [(c.path, c.moves_content) for c in plan.uploads] == [("a", False), ("b", True), ("l", False)]
    assert plan.upload_bytes == len("longer")
    # The same bytes as a link's target and as a digest are not the same content.
    raw = b"a" * 32
    was, now = link("p", "a" * 32), file("p", "x")._replace(content=raw)
    assert [c.moves_content for c in reconcile([now], [was], [was], who="w", seq=1).uploads] == [True]


def test_kept_is_only_what_no_snapshot_holds() -> None:
    old, theirs = file("a", "old"), file("a", "theirs", who="bob", seq=2)
    cases = [
        (file("a", "mine"), old, theirs, True),
        (file("a", "mine"), None, theirs, True),
        (file("a", "mine"), old, None, True),
        (file("a", "old", executable=True), old, theirs, False),  # C has the content
        (file("a", "theirs", executable=True), old, theirs, False),  # R has it
        (link("a", "old"), old, theirs, True),
        (link("a", "a" * 32), old._replace(content=b"a" * 32), theirs, True),  # a target, not that digest
    ]
    for local, cache, remote, kept in cases:
        a, b, c = ([e] if e else [] for e in (local, cache, remote))
        plan = reconcile(a, b, c, who="w", seq=3, prefer=Take.REMOTE)
        assert plan.kept == ((local,) if kept else ())
        assert reconcile(a, b, c, who="w", seq=3, prefer=Take.LOCAL).kept == ()
        assert [r.take for r in plan.resolutions] == [Take.REMOTE]


def test_a_plan_with_conflicts_is_not_carried_out() -> None:
    local, remote = [file("a", "1")], [file("a", "2")]
    plan = reconcile(local, [], remote, who="w", seq=1)
    with pytest.raises(InternalError, match="1 conflicts"):
        plan.merged_remote(Manifest.from_entries(remote))
    with pytest.raises(InternalError, match="1 conflicts"):
        plan.new_cache([], remote)


def test_new_cache_refuses_an_iterator() -> None:
    plan = reconcile([], [], [], who="w", seq=1)
    with pytest.raises(TypeError, match="more than once"):
        plan.new_cache(iter([]), [])


DIGEST_OF_WORLD = """
from tests.client.core.test_plan import world
from dsg_client.core.reconcile import reconcile
local, cache, remote = world()
print(reconcile(local, cache, remote, who="é\\u2028ve", seq=3).digest())
"""


def test_the_digest_is_the_same_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST_OF_WORLD],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert found.pop().startswith("sha256:")


def test_the_digest_tells_plans_apart() -> None:
    local, cache, remote = world()
    digests = [
        reconcile(local, cache, remote, who="eve", seq=3).digest(),
        reconcile(local, cache, remote, who="eve", seq=4).digest(),
        reconcile(local, cache, remote, who="bob", seq=3).digest(),
        reconcile(local[1:], cache, remote, who="eve", seq=3).digest(),
        reconcile(local, cache[2:], remote, who="eve", seq=3).digest(),
        reconcile(local, cache, remote[1:], who="eve", seq=3).digest(),
        reconcile([file("a", "x")], [], [], who="eve", seq=3).digest(),
        reconcile([], [], [file("a", "x")], who="eve", seq=3).digest(),
        reconcile([file("a", "x", executable=True)], [], [], who="eve", seq=3).digest(),
        reconcile([], [file("a", "x")], [], who="eve", seq=3).digest(),
        reconcile([], [], [], who="eve", seq=3).digest(),
        # A choice decides the same action, but what is kept aside differs.
        reconcile(
            [file("a", "x")], [file("a", "y")], [file("a", "z")], who="eve", seq=3, prefer=Take.REMOTE
        ).digest(),
        reconcile([file("a", "x")], [file("a", "x")], [file("a", "z")], who="eve", seq=3).digest(),
    ]
    assert len(set(digests)) == len(digests)

"""The streaming merges: order, laziness, memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

import dsg_client.core.merge as module
from dsg_client.core.merge import differences, kept_beside
from dsg_client.core.reconcile import reconcile
from protocol.errors import InternalError
from protocol.manifest import Entry, Manifest

from .trees import file, in_order


def test_differences_counts_what_it_passes() -> None:
    old = [file(name, "x") for name in "abcdefg"]
    local = [*old[:3], file("d", "new"), *old[4:]]
    remote = [e for e in old if e.path != "f"]
    found = list(differences(local, old, remote))
    assert [(d.equal_before, d.local and d.local.path, d.remote and d.remote.path) for d in found] == [
        (3, "d", "d"),
        (1, "f", None),
        (1, None, None),
    ]


@pytest.mark.parametrize(
    ("local", "cache", "remote"),
    [
        ("ba", "ab", "ab"),
        ("ab", "ba", "ab"),
        ("ab", "ab", "ba"),
        ("ca", "c", "ca"),  # after a path that is the same everywhere
        ("aa", "a", "a"),
        ("", "", "aa"),
        ("", "", "ba"),
    ],
)
def test_a_stream_out_of_order_is_refused(local: str, cache: str, remote: str) -> None:
    a, b, c = ([file(name, "x") for name in names] for names in (local, cache, remote))
    with pytest.raises(InternalError, match="not in order"):
        reconcile(a, b, c, who="w", seq=1)


def test_control_without_the_check_of_order_a_plan_deletes_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_key", lambda entry, _: entry[0] if entry else None)
    local, old = [file("b", "x"), file("a", "x")], [file("a", "x"), file("b", "x")]
    assert [e.path for e in reconcile(local, old, old, who="w", seq=1).delete_remote] == ["a"]


def test_the_canonical_order_is_by_component() -> None:
    """'a b' and 'a-b' sort before 'a/b' as strings, and after all of a/ as paths."""
    entries = [file(p, "x") for p in ("a/b", "a/c", "a b", "a-b", "a.b", "b")]
    assert reconcile(entries, entries, entries, who="w", seq=1).is_empty
    plan = reconcile(entries, [], [], who="w", seq=1)
    assert [c.path for c in plan.uploads] == ["a/b", "a/c", "a b", "a-b", "a.b", "b"]
    assert list(plan.merged_remote(Manifest.from_entries([]))) == [c.after for c in plan.uploads]


@pytest.mark.parametrize(
    ("fresh", "kept", "expected"),
    [
        ("a b", "c", "a b c"),
        ("a/x a/y b", "a", "a b"),
        ("a b", "a/x a/z", "a/x a/z b"),
        ("a-b a/x", "a", "a a-b"),
        ("a b", "a", "a b"),
        ("", "a b", "a b"),
        ("a/b/c a/d", "a/b", "a/b a/d"),
        ("a", "a/b/c", "a/b/c"),
        ("ab", "a", "a ab"),
    ],
)
def test_kept_beside(fresh: str, kept: str, expected: str) -> None:
    new = in_order(file(path, "new") for path in fresh.split())
    old = in_order(file(path, "old") for path in kept.split())
    found = list(kept_beside(new, old))
    assert [e.path for e in found] == [e.path for e in in_order(file(p, "") for p in expected.split())]
    assert [e for e in found if e.path in kept.split()] == old


class Numbered:
    """Many entries, made while they are read."""

    def __init__(self, count: int, seq: int) -> None:
        self.count, self.seq, self.made = count, seq, 0

    def __iter__(self) -> Iterator[Entry]:
        for n in range(self.count):
            self.made += 1
            yield Entry(f"d/{n // 100:05}/{n:07}", 0, b"x" * 32, False, 1, 1, "w", self.seq)


@pytest.mark.slow
def test_memory_goes_with_the_changes_not_with_the_tree() -> None:
    count = 50_000
    local = Numbered(count, 0)
    remote = Manifest.from_entries([*Numbered(count, 2), file("e/new", "x")])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        plan = reconcile(local, Numbered(count, 1), remote, who="w", seq=3)
        reconciled = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.reset_peak()
        assert sum(1 for _ in plan.new_cache(Numbered(count, 1), remote)) == count + 1
        assert sum(1 for _ in plan.new_cache(Numbered(count, 1), remote, {"e/new"})) == count
        streamed = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert plan.unchanged == count
    assert [c.path for c in plan.downloads] == ["e/new"]
    # A list of the entries would take more than 10 MB; a manifest is read in pieces of 256 KiB.
    assert max(reconciled, streamed) < 2_000_000

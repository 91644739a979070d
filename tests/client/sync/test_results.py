"""What commands come to, as lines and as fields; and the patterns of list-files."""

from __future__ import annotations

import pytest

from dsg_client.core.conflict import Conflict, ConflictKind
from dsg_client.sync.history import _matches
from dsg_client.sync.results import Changes, StatusResult, conflict_fields, conflict_text
from protocol.manifest import FILE, Entry
from protocol.records import SnapshotRecord


def entry(path: str, content: bytes, who: str = "", seq: int = 0) -> Entry:
    return Entry(path, FILE, content.ljust(32, b"\0"), False, len(content), 10**18, who, seq)


def record(seq: int, user: str) -> SnapshotRecord:
    return SnapshotRecord(
        repo_id="0" * 32, seq=seq, manifest="sha256:" + "0" * 64, parent="sha256:" + "1" * 64,
        txid=f"{seq:032x}", user=user, host="desk", time=1_700_000_000 + seq, message="",
        entries=0, size=0, added=0, changed=0, deleted=0,
    )  # fmt: skip


def test_lines_are_cut_off_with_a_count_and_escaped() -> None:
    changes = Changes(upload=("a\x1b", "b", "c"), delete_local=("d",), new=frozenset(["b"]))
    assert changes.lines() == [
        "  upload               a\\x1b",
        "  upload               b (new)",
        "  upload               c",
        "  delete here          d",
    ]
    assert changes.lines(limit=1) == [
        "  upload               a\\x1b",
        "  upload               ... and 2 more",
        "  delete here          d",
    ]


@pytest.mark.parametrize("name", ["upload", "download", "delete_local", "delete_remote"])
def test_any_path_is_a_change(name: str) -> None:
    assert not Changes(cache_only=3)
    assert Changes(**{name: ("a",)})


def test_a_conflict_tells_who_and_when_on_each_side() -> None:
    conflict = Conflict(
        "input/a", ConflictKind.BOTH_CHANGED,
        entry("input/a", b"x"), entry("input/a", b"y"), entry("input/a", b"z", "bob", 7), user="ann",
    )  # fmt: skip
    told = conflict_text(conflict, {7: record(7, "bob")})
    for word in ("input/a", "ann", "bob", "s7", "desk", "2001-09-09", "2023-11-14"):
        assert word in told
    fields = conflict_fields(conflict, {7: record(7, "bob")})
    assert (fields["remote"]["seq"], fields["remote"]["synced"]) == (7, 1_700_000_007)
    assert fields["local"]["who"] == "ann"


def test_a_deletion_names_those_who_synced_since() -> None:
    conflict = Conflict(
        "input/a",
        ConflictKind.CHANGED_HERE_DELETED_THERE,
        entry("input/a", b"x"),
        entry("input/a", b"y"),
        None,
    )
    told = conflict_text(conflict, {5: record(5, "bob"), 6: record(6, "carol\x1b")})
    assert "s5 to s6 by bob, carol\\x1b" in told
    assert "by bob" not in conflict_text(conflict), "without records nobody is named"


@pytest.mark.parametrize(
    ("offline", "head", "says"),
    [(True, None, "(server not asked)"), (False, 4, "last synced s4, 2 files"), (False, 9, "server at s9")],
)
def test_the_headline(offline: bool, head: int | None, says: str) -> None:
    result = StatusResult(
        offline=offline, seq=4, head=head, remote="host:/data", entries=2, changes=Changes()
    )
    assert says in result.headline()


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("input/a.csv", True),
        ("./input/a.csv", True),
        ("input", True),
        ("input/", True),
        ("inp", False),
        ("a.csv", True),
        ("*.csv", True),
        ("input/*", True),
        ("output/*", False),
        ("*.CSV", False),
        ("[ab].csv", True),
    ],
)
def test_patterns_of_list_files(pattern: str, matches: bool) -> None:
    assert _matches("input/a.csv", pattern) is matches

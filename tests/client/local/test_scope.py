"""Scope: which paths are synced. The ignore rules are compared with git itself."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from dsg_client.local.never import is_never_synced
from dsg_client.local.scope import Scope, Zone
from protocol.errors import ConfigError
from protocol.manifest import FILE, Entry


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("input/a.csv", True),
        ("study/2024/input/deep/er/a.csv", True),
        ("output/a", True),
        ("frozen/a", True),
        ("code/a.py", False),
        ("a.csv", False),
        ("input", False),  # a file of that name is not a folder
        ("inputs/a", False),
        ("Input/a", False),
        ("input/.hidden/a", True),
        (".venv/lib/input/a", False),
        ("node_modules/x/input/a", False),
        ("lib/site-packages/prompt_toolkit/input/a.py", False),
        ("input/node_modules/a", True),
    ],
)
def test_data_folders_count_anywhere_in_a_path(path: str, expected: bool) -> None:
    assert Scope().in_scope(path) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a", True), ("a/b/c", True), (".a", False), ("a/.b/c", False), ("a/.b", False), (".x/a", True)],
)
def test_a_star_takes_all_but_hidden(path: str, expected: bool) -> None:
    assert Scope(["*", ".x"]).in_scope(path) is expected


@pytest.mark.parametrize(
    "name",
    [
        *(".dsg", ".DSG", ".git", ".Git", ".git.", ".hg", ".svn", ".dsgconfig.yml", ".DSGCONFIG.YML"),
        *(".g\u200cit", "\uff0egit", ".dsg\u200d"),
        *("~$report.xlsx", ".~lock.report.ods#", ".#data.csv", "#data.csv#", "data.csv~", "x.swp", ".x.swo"),
        *("4913", ".nfs0000000012", ".fuse_hidden0001", ".smbdeleteAAA1", ".goutputstream-X1", "~WRL01.tmp"),
        *(".DS_Store", "._data.csv", "Icon\r", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", ".Trash-1000"),
        *("System Volume Information", "lost+found", ".zfs", ".snapshot", "a.csv___jb_tmp___"),
    ],
)
def test_names_that_are_never_synced(name: str) -> None:
    assert is_never_synced(name)
    for scope in (Scope(), Scope(["*"])):
        assert not scope.in_scope(f"input/{name}")
        assert not scope.in_scope(f"input/{name}/inside")
        assert not scope.in_scope(f"{name}/input/inside")


@pytest.mark.parametrize(
    "name",
    [
        *("a.swpx", "4913.csv", "gitignore", ".gitignore", ".gitattributes", "dsg", "x.sqlite-wal", "a#b"),
        *("$a", "data~1.csv", "thumbs.db.csv", "swp", ".nfsx", "results.tmp", ".hidden", "icon", "~a"),
    ],
)
def test_names_that_only_look_like_those(name: str) -> None:
    assert not is_never_synced(name)
    assert Scope().in_scope(f"input/{name}")


def test_a_folder_that_a_mac_decomposed_is_still_found() -> None:
    # So that its name can be refused, instead of its files vanishing in silence.
    assert Scope(["donne\u0301es"]).in_scope("donne\u0301es/a")
    assert Scope(["donn\u00e9es"]).in_scope("donne\u0301es/a")


def test_pruning_agrees_with_the_answer_for_paths() -> None:
    scope = Scope(["input"], ["*.log", "!keep.log", "tmp/"])
    assert scope.zone("") is Zone.SEARCH
    assert scope.zone("code") is Zone.SEARCH
    assert scope.zone("code/input") is Zone.DATA
    assert scope.zone("code/input/x") is Zone.DATA
    assert scope.zone("code/input/tmp") is Zone.CLOSED
    assert scope.zone("code/input/tmp/x") is Zone.CLOSED
    assert scope.zone(".git/input") is Zone.CLOSED


def test_the_digest_is_equal_for_equal_rules_only() -> None:
    assert Scope(["b", "a"]).digest == Scope(["a", "b", "a"]).digest
    assert Scope(["e\u0301"]).digest == Scope(["\u00e9"]).digest
    different = [
        Scope(),
        Scope(["a"]),
        Scope(["a"], ["x"]),
        Scope(["a"], ["x", "y"]),
        Scope(["a"], ["y", "x"]),
    ]
    assert len({scope.digest for scope in different}) == len(different)


def test_entries_are_filtered() -> None:
    entries = [Entry(p, FILE, b"", False, 0, 0) for p in ("a", "input/a", "input/a.swp", "x/input/b", "y")]
    assert [e.path for e in Scope().filter(entries)] == ["input/a", "x/input/b"]


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="ignore pattern"):
        Scope(["input"], ["/"])


def test_an_open_bracket_is_a_name_or_refused_as_pathspec_has_it() -> None:
    if _pathspec_takes("input/["):
        scope = Scope(["input"], ["input/["])
        assert not scope.in_scope("input/[") and scope.in_scope("input/a")
    else:
        with pytest.raises(ConfigError, match="ignore pattern"):
            Scope(["input"], ["input/["])


def _pathspec_takes(pattern: str) -> bool:
    from pathspec import GitIgnoreSpec

    return any(p.include is not None for p in GitIgnoreSpec.from_lines([pattern]).patterns)


PIECES = ["a", "b", "tmp", "*.log", "a*", "*", "?", "[ab]", "**", "x.log"]
NAMES = ["a", "b", "ab", "tmp", "x.log", "y.log", "c"]


def random_pattern(rng: random.Random) -> str:
    pattern = "/".join(rng.choice(PIECES) for _ in range(rng.choice([1, 1, 1, 2, 3])))
    if rng.random() < 0.3:
        pattern = "/" + pattern
    if rng.random() < 0.3:
        pattern += "/"
    return ("!" if rng.random() < 0.3 else "") + pattern


@pytest.mark.needs("git")
def test_ignore_means_what_git_means(tmp_path: Path, rng: random.Random) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    paths = sorted({"/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 4))) for _ in range(300)})
    # Not both a file and a folder.
    paths = [p for p in paths if not any(q.startswith(p + "/") for q in paths)]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    for _ in range(40):
        patterns = [random_pattern(rng) for _ in range(rng.randint(1, 4))]
        (tmp_path / ".gitignore").write_text("\n".join(patterns) + "\n")
        asked = subprocess.run(
            ["git", "-C", str(tmp_path), "check-ignore", "--stdin", "-z", "--no-index"],
            input="\0".join(paths).encode(),
            capture_output=True,
            check=False,
        )
        assert asked.returncode in (0, 1), asked.stderr
        by_git = set(asked.stdout.decode().split("\0")) - {""}
        scope = Scope(["*"], patterns)
        by_us = {p for p in paths if not scope.in_scope(p)}
        assert by_us == by_git, f"{patterns}: {sorted(by_us ^ by_git)[:5]}"

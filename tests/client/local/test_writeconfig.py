"""Writing the configuration and git's ignore file without harm to what stands there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dsg_client.local.config import load_config
from dsg_client.local.writeconfig import add_to_gitignore, set_repository, write_config
from protocol.errors import ConfigError


def loaded(root: Path) -> tuple[str, str]:
    config = load_config(root, environ={}, user_settings=root / "none")
    return config.name, config.repository


@pytest.mark.parametrize(
    "odd", ["plain", "a: b # c", "'quotes\"", "- x", "ünï", "\\back", "{}", "yes", "12:30"]
)
def test_what_is_written_is_read_back(root: Path, odd: str) -> None:
    path = write_config(root, name=odd, repository=f"h:/{odd}", data_dirs=["input", "*"], ignore=[odd, "!x"])
    assert path == root / ".dsgconfig.yml"
    config = load_config(root, environ={}, user_settings=root / "none")
    assert (config.name, config.repository) == (odd, f"h:/{odd}")
    assert config.data_dirs == ("input", "*")
    assert config.ignore == (odd, "!x")


def test_an_existing_configuration_is_not_overwritten(root: Path) -> None:
    (root / ".dsgconfig.yml").write_text("name: mine\n")
    with pytest.raises(ConfigError, match="exists already"):
        write_config(root, name="x", repository="h:/r", data_dirs=["input"])
    assert (root / ".dsgconfig.yml").read_text() == "name: mine\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'repository: "n:/new"\n'),
        ("name: x", 'name: x\nrepository: "n:/new"\n'),
        ("# c\nrepository: o:/old # why\nname: x\n", '# c\nrepository: "n:/new" # why\nname: x\n'),
        ("repository: 'o:/o''ld'\n", 'repository: "n:/new"\n'),
        ("repository:\nname: x\n", 'repository: "n:/new"\nname: x\n'),
        ("repository:\n  o:/old\nname: x\n", 'repository:\n  "n:/new"\nname: x\n'),
        ("{name: x, repository: o, ignore: []}\n", '{name: x, repository: "n:/new", ignore: []}\n'),
        ("name: é\nrepository: o # é\n", 'name: é\nrepository: "n:/new" # é\n'),
        ("name: x\r\nrepository: o\r\n", 'name: x\r\nrepository: "n:/new"\r\n'),
        ("\ufeffrepository: o\n", '\ufeffrepository: "n:/new"\n'),
    ],
)
def test_only_the_value_changes(root: Path, before: str, after: str) -> None:
    path = root / ".dsgconfig.yml"
    path.write_bytes(before.encode())
    path.chmod(0o640)
    set_repository(root, "n:/new")
    assert path.read_bytes().decode() == after
    assert loaded(root)[1] == "n:/new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(root)) == [".dsgconfig.yml", "input"]


def test_a_configuration_that_is_wrong_stays_as_it_is(root: Path) -> None:
    (root / ".dsgconfig.yml").write_text("repository: [\n")
    with pytest.raises(ConfigError):
        set_repository(root, "n:/new")
    assert (root / ".dsgconfig.yml").read_text() == "repository: [\n"


def test_without_git_no_gitignore(root: Path) -> None:
    assert add_to_gitignore(root, ["input"]) == []
    assert not (root / ".gitignore").exists()


@pytest.mark.needs("git")
def test_git_ignores_data_folders_and_nothing_else(root: Path) -> None:
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    tree = root / "project"
    names = ["input", "#odd", "!odd", "with space", "star*", "br[a]ck", "end "]
    for name in [*names, "starx", "bra ck", "code"]:
        (tree / "deep" / name).mkdir(parents=True)
        (tree / "deep" / name / "file").touch()
    (tree / ".dsg").mkdir()
    (tree / ".dsg" / "cache").touch()
    assert add_to_gitignore(tree, names) == [".dsg/", *(f"{escaped}/" for escaped in ESCAPED)]
    assert add_to_gitignore(tree, names) == []
    listed = subprocess.run(
        ["git", "-C", str(tree), "ls-files", "--others", "--exclude-standard", "-z"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    assert set(listed) - {""} == {".gitignore", "deep/starx/file", "deep/bra ck/file", "deep/code/file"}


ESCAPED = ["input", "\\#odd", "\\!odd", "with\\ space", "star\\*", "br\\[a]ck", "end\\ "]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("*.pyc", "*.pyc\n# Data, kept in step by DSG\n.dsg/\ninput/\n"),
        ("a\r\n", "a\r\n# Data, kept in step by DSG\r\n.dsg/\r\ninput/\r\n"),
        ("input\n.dsg\n", "input\n.dsg\n"),
        # Only the folder at the top; below, it would be git's.
        ("/input/\n.dsg\n", "/input/\n.dsg\n# Data, kept in step by DSG\ninput/\n"),
    ],
)
def test_what_stands_in_gitignore_stays(root: Path, before: str, after: str) -> None:
    (root / ".git").mkdir()
    (root / ".gitignore").write_bytes(before.encode())
    add_to_gitignore(root, ["input", "*"])
    assert (root / ".gitignore").read_bytes() == after.encode()

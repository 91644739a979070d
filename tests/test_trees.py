"""The oracle that compares folders sees what it must."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trees import first_difference


def make(folder: Path) -> None:
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "file").write_bytes(b"12")
    (folder / "link").symlink_to("a")
    (folder / "run").write_bytes(b"#!")
    (folder / "run").chmod(0o755)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "a" / "file").write_bytes(b"21"),
        lambda f: (f / "a" / "file").unlink(),
        lambda f: (f / "a" / "more").write_bytes(b""),
        lambda f: (f / "run").chmod(0o644),
        lambda f: ((f / "link").unlink(), (f / "link").symlink_to("run")),
        lambda f: ((f / "link").unlink(), shutil.copytree(f / "a", f / "link")),
    ],
    ids=["content", "missing", "more", "executable bit", "link target", "a folder for a link"],
)
def test_a_difference_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    for name in ("one", "two"):
        make(tmp_path / name)
    assert first_difference(tmp_path / "one", tmp_path / "two") == ""
    change(tmp_path / "two")
    assert first_difference(tmp_path / "one", tmp_path / "two") != ""
    assert first_difference(tmp_path / "two", tmp_path / "one") != ""


def test_dsg_and_empty_folders_do_not_count(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path / name)
    (tmp_path / "one" / ".dsg").mkdir()
    (tmp_path / "one" / ".dsg" / "cache").touch()
    (tmp_path / "one" / "empty").mkdir()
    assert first_difference(tmp_path / "one", tmp_path / "two") == ""

"""Paths against roots, closely."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsg_remote_agent.roots import Roots
from protocol.errors import ConfigError, NotPermittedError


@pytest.mark.parametrize(
    ("root", "path", "allowed"),
    [
        ("srv/a", "srv/a", True),
        ("srv/a", "srv/a/x/y", True),
        ("srv/a", "srv/ab", False),
        ("srv/a", "srv", False),
        ("srv/a", "srv/a/../ab", False),
        ("srv/a", "srv/b/../a/x", True),
        ("srv/a/", "srv/a/x", True),
        ("srv/a", "srv/a/out", False),
        ("srv/a", "srv/a/out/deeper", False),
        ("srv/a", "srv/a/in/x", True),
        ("srv/a", "srv/a//x/./y", True),
    ],
)
def test_inside(tmp_path: Path, root: str, path: str, allowed: bool) -> None:
    for folder in ("srv/a/x/y", "srv/ab", "srv/b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "srv/a/out").symlink_to("../b")
    (tmp_path / "srv/a/in").symlink_to(".")
    roots = Roots((f"{tmp_path}/{root}",))
    if allowed:
        assert roots.resolve(f"{tmp_path}/{path}").startswith(str(tmp_path / "srv" / "a"))
    else:
        with pytest.raises(NotPermittedError):
            roots.resolve(f"{tmp_path}/{path}")


def test_where_relative_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert Roots().resolve("~/data") == str(home / "data")
    assert Roots().resolve("data") == str(home / "data")
    assert Roots((str(tmp_path / "srv"),)).resolve("data") == str(tmp_path / "srv" / "data")
    with pytest.raises(NotPermittedError):
        Roots((str(tmp_path / "srv"),)).resolve("~/data")
    with pytest.raises(NotPermittedError):
        Roots((str(tmp_path / "srv"),)).resolve("../home")
    with pytest.raises(NotPermittedError):
        Roots((str(tmp_path / "one"), str(tmp_path / "two"))).resolve("data")


def test_a_link_put_in_after_the_check(tmp_path: Path) -> None:
    (tmp_path / "srv" / "repo").mkdir(parents=True)
    (tmp_path / "elsewhere" / "repo").mkdir(parents=True)
    roots = Roots((str(tmp_path / "srv"),))
    resolved = roots.resolve(str(tmp_path / "srv" / "repo"))
    os.close(roots.open(resolved))
    (tmp_path / "srv" / "repo").rmdir()
    (tmp_path / "srv" / "repo").symlink_to(tmp_path / "elsewhere" / "repo")
    with pytest.raises(NotPermittedError, match="changed while"):
        roots.open(resolved)
    with pytest.raises(NotPermittedError):
        roots.open(f"{resolved}/new", create=True)
    assert list((tmp_path / "elsewhere" / "repo").iterdir()) == []


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="no folder"):
        Roots().open(str(tmp_path / "nothing"))
    for create in (False, True):
        with pytest.raises(ConfigError, match="no folder"):
            Roots().open(str(tmp_path / "file"), create=create)


def test_folders_are_made_on_the_way(tmp_path: Path) -> None:
    fd = Roots().open(str(tmp_path / "a" / "b" / "c"), create=True)
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "a" / "b" / "c"))
    os.close(fd)

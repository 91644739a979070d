"""Who is syncing: configured, else git's word, else login@host; never a failure."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dsg_client.local.config import load_config
from dsg_client.local.identity import Identity, find_identity
from dsg_client.local.machine import login_name


def identity(root: Path, **environ: str) -> Identity:
    return find_identity(load_config(root, environ=environ, user_settings=root / "none"), root)


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(root), *words], check=True)


def test_without_anything_it_is_login_and_host(root: Path) -> None:
    found = identity(root)
    assert found.user_name == login_name()
    assert found.user_id == f"{login_name()}@{found.host}"
    assert found.who == f"{found.user_name} <{found.user_id}>"


@pytest.mark.needs("git")
def test_git_is_asked_in_the_folder(root: Path) -> None:
    git(root, "init", "-q")
    git(root, "config", "user.name", "Ann Örsted")
    git(root, "config", "user.email", "ann@example.org")
    assert identity(root).who == "Ann Örsted <ann@example.org>"


@pytest.mark.needs("git")
def test_configured_goes_before_git_each_for_itself(root: Path) -> None:
    git(root, "init", "-q")
    git(root, "config", "user.name", "from git")
    git(root, "config", "user.email", "git@example.org")
    assert identity(root, DSG_USER_NAME="Bo").who == "Bo <git@example.org>"
    assert identity(root, DSG_USER_ID="bo").who == "from git <bo>"


def test_git_is_not_started_when_both_are_configured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "bin").mkdir()
    (root / "bin" / "git").write_text(f"#!/bin/sh\ntouch '{root}/asked'\n")
    (root / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    assert identity(root, DSG_USER_NAME="Bo", DSG_USER_ID="bo@x").who == "Bo <bo@x>"
    assert not (root / "asked").exists()
    identity(root, DSG_USER_NAME="Bo")
    assert (root / "asked").exists()


def test_without_git_installed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    assert identity(root).user_name == login_name()


def test_control_characters_and_length(root: Path) -> None:
    # From git's file, which DSG does not check.
    hostile = Identity("x", "y", "h")
    assert hostile.who == "x <y>"
    (root / ".git").mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    git(root, "config", "user.name", "a\x1b[31m\nb\u202e")
    git(root, "config", "user.email", "e" * 500)
    found = identity(root)
    assert found.user_name == "a [31m b"
    assert len(found.who) <= 200

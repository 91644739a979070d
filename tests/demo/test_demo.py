"""The demo runs from nothing, again, and over either server; it leaves no process behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.__main__ import clear
from tests.demo.stage import DemoError
from tests.trees import first_difference

ROOT = Path(__file__).resolve().parents[2]


def run_demo(folder: Path, server: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo", "--folder", folder, "--server", server],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "server", [pytest.param("openssh", marks=pytest.mark.needs("sshd", "ssh-keygen")), "asyncssh"]
)
def test_the_demo_runs_and_runs_again(tmp_path: Path, server: str) -> None:
    folder = tmp_path / "demo"
    for _ in range(2):
        told = run_demo(folder, server)
        announced = re.search(r"SSH server: (\S+) on 127\.0\.0\.1:\d+, process (\d+)", told)
        assert announced is not None
        assert announced[1].lower().startswith(server)
        with pytest.raises(ProcessLookupError):
            os.kill(int(announced[2]), 0)
        assert "(exit status 3)" in told, "a conflict was refused"
        for part in ("input", "output"):
            ada, ben, there = (folder / place / part for place in ("ada/atlas", "ben/atlas", "server/atlas"))
            assert first_difference(ada, there) == ""
            assert first_difference(ben, there) == ""
        assert len(list((folder / "ada" / "atlas" / "input").iterdir())) > 40


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    with pytest.raises(DemoError, match="no demo made"):
        clear(tmp_path)
    assert mine.read_text() == "years of work"


def test_what_an_earlier_demo_left_is_removed(tmp_path: Path) -> None:
    clear(tmp_path / "demo")
    (tmp_path / "demo" / "old").touch()
    clear(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()

"""What every test stands on, itself tested: seeds replay, nothing is skipped silently in CI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SAMPLE = """
import os, random, pytest
from hypothesis import given, strategies as st

@pytest.mark.needs("no-such-program")
def test_needs(): pass

def test_skips(): pytest.skip("for any reason at all")

def test_draws(rng): print("drawn", rng.random())

@given(st.integers())
def test_guesses(number): print("guessed", number)

@pytest.mark.turns(3)
@pytest.mark.parametrize("case", range(6))
def test_turn(case): print("case", case)

def test_home(): print("home", os.environ["HOME"], os.environ.get("DSG_USER_NAME"))
"""


def run(folder: Path, *options: str, **environment: str) -> str:
    (folder / "test_sample.py").write_text(SAMPLE)
    base = {name: value for name, value in os.environ.items() if name not in ("CI", "DSG_SEED", "DSG_FULL")}
    plugins = ("-p", "tests.conftest", "-p", "no:cacheprovider")
    # A folder of its own: in the usual place it would first remove what earlier runs have left there.
    base_folder = ("--basetemp", str(folder / "base"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *base_folder, "-rA", *options],
        cwd=folder,
        env={**base, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


def drawn(told: str) -> list[str]:
    return re.findall(r"^(?:drawn|guessed) .*$", told, re.MULTILINE)


@pytest.mark.slow
def test_a_run_prints_its_seed_and_replays_from_it(tmp_path: Path) -> None:
    first = run(tmp_path)
    printed = re.search(r"seed: (\d+) \(replay with --seed \1\)", first)
    assert printed is not None
    assert drawn(run(tmp_path, "--seed", printed[1])) == drawn(first)
    assert drawn(run(tmp_path, DSG_SEED=printed[1])) == drawn(first)
    assert drawn(run(tmp_path, "--seed", str(int(printed[1]) + 1))) != drawn(first)


@pytest.mark.slow
def test_what_is_missing_is_named_and_fails_in_ci(tmp_path: Path) -> None:
    told = run(tmp_path)
    assert "5 passed, 2 skipped" in told
    assert "sudo apt-get install -y no-such-program" in told
    assert "1 failed, 5 passed, 1 error" in run(tmp_path, CI="true")


@pytest.mark.slow
def test_cases_take_turns_from_seed_to_seed(tmp_path: Path) -> None:
    def cases(*options: str, **environment: str) -> list[str]:
        return sorted(
            re.findall(r"^case (\d)$", run(tmp_path, "--seed", *options, **environment), re.MULTILINE)
        )

    assert [cases(seed) for seed in ("6", "7", "8")] == [["0", "3"], ["2", "5"], ["1", "4"]]
    every_one = ["0", "1", "2", "3", "4", "5"]
    assert cases("7", DSG_FULL="1") == every_one
    assert cases("7", "-k", "turn") == every_one
    assert cases("7", "test_sample.py::test_turn[4]") == ["4"]
    for _ in range(3):
        # The processes that share a run share its seed, drawn or given.
        told = run(tmp_path, "-n", "2")
        seed = re.search(r"seed: (\d+)", told)
        assert seed is not None
        assert sorted(re.findall(r"^case (\d)$", told, re.MULTILINE)) == cases(seed[1]), told
    assert cases("7", "-n", "2") == ["2", "5"]


def test_a_test_has_a_home_of_its_own(tmp_path: Path) -> None:
    told = run(tmp_path, HOME="/home/somebody", DSG_USER_NAME="somebody")
    home = re.search(r"^home (\S+) (\S+)$", told, re.MULTILINE)
    assert home is not None
    assert home[1] != "/home/somebody"
    assert home[2] == "None"


@pytest.mark.parametrize("target", ["check", "test", "demo", "bench", "format", "clean", "venv", "help"])
def test_make_names_its_targets(target: str) -> None:
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert f"make {target} " in done.stdout

"""The benchmark measures what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.measure import CommandFailedError, run_timed, run_watched
from tests.bench.report import Result, Row, ratio, render, slower_rows
from tests.bench.steps import AFTER_REPLY, steps_of
from tests.bench.workloads import large_file, small_files
from tests.trees import first_difference

ROOT = Path(__file__).resolve().parents[2]


def rows(own: list[float], other: list[float]) -> list[Row]:
    return [Row("set", "clone", "dsg", own), Row("set", "clone", "rsync --fsync", other)]


def test_ratio_compares_each_round_with_itself() -> None:
    # The medians are equal; in two of three rounds dsg took twice as long.
    found = rows([2.0, 8.0, 4.0], [1.0, 4.0, 8.0])
    assert ratio(found, found[1]) == 2.0


def test_a_slower_row_is_named() -> None:
    slow, fast = rows([3.0], [2.0]), rows([1.0], [2.0])
    assert slower_rows(Result({}, 0, 1, slow)) == ["set, clone: 1.50 times its time"]
    assert slower_rows(Result({}, 0, 1, fast)) == []
    assert "1.50" in render(Result({}, 0, 1, slow))


def test_memory_is_that_of_the_largest_process_of_a_side(tmp_path: Path) -> None:
    allocate = "import time; kept = bytearray(200_000_000); time.sleep(0.2)"
    memory = run_watched(
        ["/bin/sh", "-c", f"{sys.executable} -c '{allocate}'; true"], tmp_path, os.environ, 0
    )
    assert 200_000_000 < memory.client < 260_000_000
    assert memory.server == 0


def test_a_command_that_fails_stops_the_benchmark_with_its_output(tmp_path: Path) -> None:
    argv = ["/bin/sh", "-c", "echo no such host >&2; exit 6"]
    with pytest.raises(CommandFailedError, match="exited with 6:\nno such host"):
        run_timed(argv, tmp_path, os.environ)
    with pytest.raises(CommandFailedError, match="exited with 6:\nno such host"):
        run_watched(argv, tmp_path, os.environ, 0)


def test_data_is_the_same_every_time_and_a_hundredth_changes(tmp_path: Path) -> None:
    small = small_files(300)
    for name in ("one", "two"):
        small.write(tmp_path / name)
    assert first_difference(tmp_path / "one", tmp_path / "two") == ""
    small.change(tmp_path / "two", 1)
    changed = [
        path
        for path in (tmp_path / "one").rglob("*.bin")
        if path.read_bytes() != (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    ]
    assert len(changed) == 3
    large_file(4).write(tmp_path / "large")
    assert (tmp_path / "large" / "large.bin").stat().st_size == 4 * 1024 * 1024


def test_steps_are_medians_over_the_syncs() -> None:
    def sync(pid: int, gets: int, seconds: float) -> list[str]:
        command = {"event": "zfs", "pid": pid, "method": "tx.commit"}
        request = {"event": "request", "pid": pid, "method": "tx.commit", "until_reply": 0.5, "seconds": 0.75}
        found = [{**command, "command": ["get", "x"], "replied": False, "seconds": 0.25}] * gets
        found += [{**command, "command": ["set", "dsg:head=g1", "x"], "replied": False, "seconds": seconds}]
        found += [{**command, "command": ["promote", "x"], "replied": True, "seconds": 0.125}, request]
        return [json.dumps(line) for line in found]

    steps = steps_of([*sync(1, 1, 0.5), *sync(2, 3, 1.0), *sync(3, 1, 2.0)])
    assert [(step.request, step.command, step.times, step.ms) for step in steps] == [
        ("tx.commit", "", 1, 500),
        ("tx.commit", "get", 1, 250),
        ("tx.commit", "set dsg:head", 1, 1000),
        (AFTER_REPLY, "", 1, 250),
        (AFTER_REPLY, "promote", 1, 125),
    ]


def bench(folder: Path, *options: str) -> dict[str, Any]:
    """Run a benchmark, which leaves nothing; its figures, with what it printed as ``printed``."""
    figures = folder / "bench.json"
    argv = [sys.executable, "-m", "tests.bench", "--pairs", "1", *options]
    done = subprocess.run(
        [*argv, "--folder", folder / "work", "--json", figures],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((folder / "work").iterdir()) == []
    found: dict[str, Any] = json.loads(figures.read_text())
    return {**found, "printed": done.stdout}


@pytest.mark.slow
@pytest.mark.needs("sshd", "rsync")
def test_a_small_benchmark_runs_and_leaves_nothing(tmp_path: Path) -> None:
    found = bench(tmp_path, "--files", "200", "--mib", "4")["rows"]
    assert len(found) == 3 * (4 + 2)
    upload = {
        row["contestant"]: row for row in found if row["step"] == "first upload" and "200" in row["dataset"]
    }
    for row in upload.values():
        assert row["sent"] > 200 * 4096, "the bytes of the files went through the counting proxy"
        assert row["client_memory"] > 1_000_000
        assert row["server_memory"] > 1_000_000


@pytest.mark.slow
@pytest.mark.needs("sshd", "rsync", "zfs-fuse", "root")
def test_a_small_benchmark_on_zfs(tmp_path: Path) -> None:
    sets = ("--sets", "small", "steps", "promote")
    found = bench(
        tmp_path, "--backend", "zfs-fuse", *sets, "--files", "40", "--syncs", "2", "--snapshots", "1", "3"
    )
    assert {row["contestant"] for row in found["rows"]} == {"dsg", "rsync", "rsync --fsync"}
    assert all(row["median"] > 0 for row in found["rows"]) and len(found["rows"]) == 3 * 4
    assert "zfs-fuse" in found["machine"]["its file system"]
    steps = {(step["request"], step["command"]): step for step in found["steps"]}
    for step in (
        ("tx.begin", "clone"),
        ("tx.prepare", "snapshot"),
        ("tx.commit", "set readonly=on"),
        ("tx.commit", "set dsg:head"),
        (AFTER_REPLY, "promote"),
        (AFTER_REPLY, "unmount"),
        (AFTER_REPLY, "destroy"),
    ):
        assert steps[step]["ms"] > 0 and f"zfs {step[1]} " in found["printed"], step
    assert {number: len(seconds) for number, seconds in found["promotions"].items()} == {"1": 7, "3": 7}


@pytest.mark.slow
@pytest.mark.needs("sshd", "rsync")
def test_what_only_zfs_has_is_not_measured_in_folders(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.bench", "--sets", "promote", "--folder", tmp_path]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "zfs-fuse" in done.stderr

"""The benchmark measures what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.measure import CommandFailedError, run_timed, run_watched
from tests.bench.report import Result, Row, ratio, render, slower_rows
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


@pytest.mark.slow
@pytest.mark.needs("sshd", "rsync")
def test_a_small_benchmark_runs_and_leaves_nothing(tmp_path: Path) -> None:
    figures = tmp_path / "bench.json"
    argv = [sys.executable, "-m", "tests.bench", "--pairs", "1", "--files", "200", "--mib", "4"]
    done = subprocess.run(
        [*argv, "--folder", tmp_path / "work", "--json", figures],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())["rows"]
    assert len(found) == 3 * (4 + 2)
    upload = {
        row["contestant"]: row for row in found if row["step"] == "first upload" and "200" in row["dataset"]
    }
    for row in upload.values():
        assert row["sent"] > 200 * 4096, "the bytes of the files went through the counting proxy"
        assert row["client_memory"] > 1_000_000
        assert row["server_memory"] > 1_000_000
    assert list((tmp_path / "work").iterdir()) == []

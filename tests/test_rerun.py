"""Which tests are run again, and that it is told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SAMPLE = """
import os, signal, time, pytest
from tests import rerun

rerun.LOOK_S = rerun.STANDS_S = 2.0

@pytest.fixture
def zfs(zfs_host):
    with zfs_host.entered():
        zfs_host.zpool("list")
        yield zfs_host

def dies(zfs, once):
    first = not os.path.exists(once)
    open(once, "w").close()
    if first:
        os.kill(zfs.pid, signal.SIGSEGV)
        while not zfs.died(): time.sleep(0.01)
    zfs.zpool("list")

def test_it_dies(zfs): dies(zfs, "died")

def test_it_dies_when_all_is_well(zfs):
    with pytest.raises(AssertionError): dies(zfs, "first"); dies(zfs, "second"); assert False

def test_it_dies_twice(zfs): dies(zfs, "once"); dies(zfs, "twice")

def test_it_hangs(zfs):
    folder = zfs.mountpoint / "hangs"
    if not os.path.exists("hung"):
        open("hung", "w").close()
        zfs.zfs("create", "-o", f"mountpoint={folder}", f"{zfs.pool}/hangs")
        while not os.path.ismount(folder): time.sleep(0.01)
        os.kill(zfs.pid, signal.SIGSTOP)
    os.listdir(folder)

def test_it_takes_its_time(zfs): time.sleep(5)

def test_it_runs_on(zfs): assert not print("tried once")

def test_it_fails_by_itself(zfs): assert print("tried once")

def test_it_is_killed(zfs):
    zfs.kill()
    zfs.start()
    assert print("tried once")
"""


@pytest.mark.slow
@pytest.mark.needs("zfs-fuse", "root")
@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "workers"])
def test_only_what_lost_its_zfs_is_run_again(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    plugins = ("-p", "tests.conftest", "-p", "no:cacheprovider")
    base = ("--basetemp", str(tmp_path / "base"))
    told = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *base, "-rA", *options],
        cwd=tmp_path,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    ).stdout
    ended = re.findall(r"^(PASSED|FAILED|ERROR) test_sample\.py::(\w+)", told, re.MULTILINE)
    assert {name: how for how, name in ended} == {
        "test_it_dies": "PASSED",
        "test_it_dies_when_all_is_well": "PASSED",
        "test_it_dies_twice": "FAILED",
        "test_it_hangs": "PASSED",
        "test_it_takes_its_time": "PASSED",
        "test_it_runs_on": "PASSED",
        "test_it_fails_by_itself": "FAILED",
        "test_it_is_killed": "FAILED",
    }, told
    again = [words.partition(", which was run again: ") for words in told.split("\nzfs-fuse died in ")[1:]]
    assert {place.rpartition("::")[2] for place, _, _ in again} == {
        "test_it_dies",
        "test_it_dies_twice",
        "test_it_dies_when_all_is_well",
        "test_it_hangs",
    }, told
    for place, _, words in again:
        hung = place.endswith("hangs")
        assert ("it did not answer any more" if hung else "Segmentation fault") in words, told
    assert re.findall(r"^tried once$", told, re.MULTILINE) == ["tried once"] * 3, told

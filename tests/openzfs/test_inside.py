"""Tests of the agent's parts, run in the machine itself: where the file system is."""

from __future__ import annotations

import pytest

from tests.hosts.openzfs.guest import Guest

FILES = [
    "storage/test_zfs_mapped.py",
    "storage/test_zfs.py",
    "storage/test_repository.py",
    "storage/test_outside.py",
    "test_zfs_commands.py",
    "test_zfs_life.py",
    "test_zfs_faults.py",
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", FILES)
def test_all_of(file: str, guest: Guest) -> None:
    done = guest.run_tests(f"tests/agent/{file}", "-k", "zfs", limit=3600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr

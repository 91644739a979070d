"""Real Unix accounts in one group, made by root for a test and removed after it."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.conftest import find_program, skip_unless_root


@frozen
class Account:
    """An account on the server; ``group`` is its primary group."""

    name: str
    uid: int
    gid: int
    group: str
    home: Path


@contextlib.contextmanager
def unix_accounts(count: int = 2) -> Iterator[list[Account]]:
    """``count`` new accounts that share one new group; skips the test unless root runs it."""
    skip_unless_root("making accounts")
    for program in ("useradd", "userdel", "groupadd"):
        if find_program(program) is None:
            pytest.skip(f"{program} not found; to have it: sudo apt-get install -y passwd")
    tag = secrets.token_hex(3)
    group = f"dsgg{tag}"
    homes = Path(tempfile.mkdtemp(prefix="dsg-homes-", dir="/tmp"))
    homes.chmod(0o755)
    with contextlib.ExitStack() as clean_up:
        clean_up.callback(shutil.rmtree, homes, ignore_errors=True)
        _run("groupadd", group)
        clean_up.callback(_run, "groupdel", group)
        accounts = []
        for n in range(count):
            name = f"dsgu{tag}{n}"
            home = homes / name
            # A password that matches nothing: sshd takes '!' for a locked account.
            _run("useradd", "-M", "-N", "-g", group, "-d", str(home), "-s", "/bin/sh", "-p", "*", name)
            clean_up.callback(_run, "userdel", name)
            home.mkdir(mode=0o700)
            entry = pwd.getpwnam(name)
            os.chown(home, entry.pw_uid, entry.pw_gid)
            accounts.append(
                Account(name, entry.pw_uid, entry.pw_gid, grp.getgrgid(entry.pw_gid).gr_name, home)
            )
        yield accounts


def shared_python() -> str:
    """An interpreter, 3.11 or newer, that every account may execute; skips the test when there is none."""
    import sys

    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if not os.path.exists(candidate):
            continue
        real = os.path.realpath(candidate)
        folders = [*Path(real).parents, *Path(candidate).absolute().parents]
        if not all(os.stat(folder).st_mode & 0o001 for folder in folders):
            continue
        told = subprocess.run(
            [candidate, "-I", "-c", "import sys; print(sys.version_info >= (3, 11))"],
            check=False,
            capture_output=True,
            text=True,
        )
        if told.stdout.strip() == "True":
            return candidate
    pytest.skip("no Python 3.11 that all accounts may execute; to have it: sudo apt-get install -y python3")


def _run(*command: str) -> None:
    program = find_program(command[0])
    assert program
    told = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True)
    # userdel ends with 12 when there is no mail folder to remove; groupdel with 6 when userdel took it along.
    if told.returncode not in ((0, 6, 12) if command[0].endswith("del") else (0,)):
        raise AssertionError(f"{command}: {told.stderr}")

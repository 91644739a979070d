"""A world without a server: the repository is a folder of this machine, the agent a child process.

The same commands, files and oracle as :mod:`tests.e2e.world`, without SSH in
between, which makes it three times as fast: for what does not depend on the
way to the server.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.e2e.world import LAUNCHER, LIMIT, Client, Ended, People, World
from tests.hosts.sshd import REPOSITORY

__all__ = ["NearPeople", "NearWorld", "on_terminal", "ordinary"]

# Takes root's power over files away before the program starts, so that a mode means for it what it
# means for everybody. From <linux/prctl.h> and <linux/capability.h>.
ORDINARY = """\
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid() == 0:
    for power in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if libc.prctl(PR_CAPBSET_DROP, power, 0, 0, 0):
            sys.exit("cannot give up root's powers: " + os.strerror(ctypes.get_errno()))
os.execv(sys.executable, [sys.executable, {program!r}, *sys.argv[1:]])
"""


class Machine:
    """One person's home on this machine."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this person's programs."""
        return os.environ | {"HOME": str(self.home)}


class NearPeople(People):
    """People with accounts on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "dsg.py"
        self.program.write_text(LAUNCHER.format(checkout=str(REPOSITORY)))
        self._known: dict[str, Machine] = {}  # type: ignore[assignment]

    def machine(self, name: str) -> Machine:  # type: ignore[override]
        """The home of ``name``, made at first use."""
        if name not in self._known:
            self._known[name] = Machine(self.folder / f"home-{name}")
        return self._known[name]


class NearWorld(World):
    """One repository in a folder of this machine."""

    @property
    def address(self) -> str:
        """What people type for the repository."""
        return str(self.repository)


def ordinary(client: Client) -> Client:
    """The same working folder, for a person whose rights are those of an ordinary account, also under root.

    Skips the test where the system does not let root give up its powers.
    """
    program = client.program.with_name("ordinary.py")
    program.write_text(ORDINARY.format(program=str(client.program)))
    other = Client(client.name, client.folder, client.machine, program)
    other.variables = dict(client.variables)
    tried = other.dsg("--version")
    if tried.status:
        pytest.skip(f"{tried.err.strip()}; to have it: make test, as an ordinary user")
    return other


def on_terminal(client: Client, *arguments: str, answer: bytes = b"") -> Ended:
    """Run ``dsg ARGUMENTS`` with a terminal for stdin, stdout and stderr; ``err`` stays empty."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, str(client.program), *arguments],
        cwd=client.folder,
        env=client.machine.environment | client.variables | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + LIMIT
    try:
        os.write(ours, answer)
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux's end of a terminal whose other side is closed
                break
            if not piece:
                break
            shown += piece
    finally:
        os.close(ours)
        if time.monotonic() >= deadline:
            process.kill()
    return Ended(process.wait(), shown.decode(), "")

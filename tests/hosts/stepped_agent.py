"""The agent, with each of its steps written down, and dead after one of them: for the server's PATH.

    stepped-agent LOG NUMBER[:WITHOUT] [OPTION...]

A step is a command that was carried out, or one successful call of the
system that changes something: a file, a folder, a lock, what is on the disk.
NUMBER: after this one it is killed; -NUMBER: it stops there; 0: neither. LOG
gets a line for each, with the process and the step's number. WITHOUT: a Python
file that takes something out of the agent first.

The client of an agent that died starts another, which recovers. That one waits
until there is a file LOG.looked: until then nobody has recovered. Where there is
a file LOG.alone it does not start at all.

It stands on its own, as the agent runs isolated; ``CALLS`` is held to what
strace sees by ``tests/crash/test_zfs_steps.py``.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import signal
import stat
import sys
import time
from typing import Any

__all__ = ["CALLS", "program"]

_PATIENCE = 60.0

#: Functions of ``os`` and ``fcntl``, and what strace may call each.
CALLS = {
    "open": ("openat", "open", "creat"),
    "write": ("write",),
    "pwrite": ("pwrite64",),
    "copy_file_range": ("copy_file_range",),
    "rename": ("rename", "renameat", "renameat2"),
    "unlink": ("unlink", "unlinkat"),
    "mkdir": ("mkdir", "mkdirat"),
    "rmdir": ("rmdir",),
    "symlink": ("symlink", "symlinkat"),
    "link": ("link", "linkat"),
    "truncate": ("truncate",),
    "ftruncate": ("ftruncate",),
    "utime": ("utimensat",),
    "chmod": ("chmod", "fchmodat"),
    "fchmod": ("fchmod",),
    "chown": ("chown", "fchownat", "lchown"),
    "fchown": ("fchown",),
    "fsync": ("fsync",),
    "fdatasync": ("fdatasync",),
    "syncfs": ("syncfs",),
    "flock": ("flock",),
}


def program(python: str, folders: list[str], agents: str) -> str:
    """The text of a script that starts it; ``agents``: where the host notes which agents run."""
    words = f"{python} -I -B {os.path.abspath(__file__)} {':'.join(folders)}"
    return f'#!/bin/sh\necho $$ > {agents}/$$\nexec {words} "$@"\n'


class Steps:
    """Counts the steps of this process."""

    def __init__(self, log: str, number: int) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._write = os.write
        self._own = {self._log, 1, 2}
        self._last = number
        self._pid = os.getpid()
        self._count = 0

    def step(self, *words: object) -> None:
        if os.getpid() != self._pid:
            return  # a child that looks at files, and changes nothing
        self._count += 1
        told = " ".join(map(_shown, words))
        self._write(self._log, f"{self._pid} {self._count} {told}\n".encode())
        if self._count == abs(self._last):
            os.kill(self._pid, signal.SIGKILL if self._last > 0 else signal.SIGSTOP)

    def counts(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether this call changes anything that outlives the process."""
        if name == "open":
            return bool(args[1] & (os.O_CREAT | os.O_TRUNC))
        if name in ("write", "pwrite"):
            return args[0] not in self._own and stat.S_ISREG(os.fstat(args[0]).st_mode)
        return True

    def around(self, name: str, call: Any) -> Any:
        def stepping(*args: Any, **more: Any) -> Any:
            counted = self.counts(name, args)
            result = call(*args, **more)
            if counted:
                self.step(name, *args[: 1 if name in ("write", "pwrite") else 2])
            return result

        return stepping


def _shown(word: object) -> str:
    if isinstance(word, int):
        try:
            return ascii(os.path.basename(os.readlink(f"/proc/self/fd/{word}")))
        except OSError:
            return str(word)
    text = os.fsdecode(word) if isinstance(word, bytes) else str(word)
    return text.encode("ascii", "backslashreplace").decode()


def main() -> int:
    folders, log, number = sys.argv[1:4]
    del sys.argv[1:4]
    sys.path[1:1] = folders.split(":")
    sys.argv[0] = "dsg-remote-agent"
    number, _, without = number.partition(":")
    if number != "0" and os.path.exists(log):
        if os.path.exists(f"{log}.alone"):
            return 1
        deadline = time.monotonic() + _PATIENCE
        while not os.path.exists(f"{log}.looked") and time.monotonic() < deadline:
            time.sleep(0.01)
    steps = Steps(log, int(number))
    for name in CALLS:
        for module in (os, fcntl):
            if hasattr(module, name):
                setattr(module, name, steps.around(name, getattr(module, name)))

    from dsg_remote_agent.main import main as agent
    from dsg_remote_agent.storage.zfs import command
    from protocol.tree import syscalls

    found = syscalls.system()
    syscalls._system = found.but(
        **{
            field: steps.around(name, getattr(found, field))
            for field, name in (
                ("syncfs", "syncfs"),
                ("rename_exclusive", "rename"),
                ("rename_swap", "rename"),
            )
            if getattr(found, field) is not None
        }
    )
    execute = command._execute

    def ran(line: list[str], words: tuple[str, ...], *more: Any) -> Any:
        answer = execute(line, words, *more)
        if answer.good:  # one that is refused, as busy for a moment, changes nothing and may be given again
            steps.step("zfs", *words)
        return answer

    command._execute = ran
    if without:
        runpy.run_path(without)
    return agent()


if __name__ == "__main__":
    sys.exit(main())

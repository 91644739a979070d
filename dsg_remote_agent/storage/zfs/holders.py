"""Who uses a mounted file system: as far as this account may look into other processes."""

from __future__ import annotations

import os
from collections.abc import Iterable

from protocol.paths import escape

__all__ = ["holders"]


def holders(mountpoints: Iterable[str]) -> list[str]:
    """``PROGRAM (process PID)`` of each process with a file, folder or root below one of ``mountpoints``."""
    below = tuple(path.rstrip("/") for path in mountpoints if path)
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    own = str(os.getpid())
    return [
        f"{_program(pid)} (process {pid})"
        for pid in pids
        if pid != own and any(_lies_in(path, below) for path in _open_paths(pid))
    ]


def _open_paths(pid: str) -> list[str]:
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
    try:
        links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        pass
    paths = []
    for link in links:
        try:
            paths.append(os.readlink(link))
        except OSError:
            continue  # ended since, or another account's
    return paths


def _lies_in(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _program(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as told:
            return escape(told.read().strip())
    except OSError:
        return "a program"

"""Who uses a generation: as far as this account may look into other processes."""

from __future__ import annotations

import os
from collections.abc import Iterable

from dsg_remote_agent.storage.zfs.survey import Generation
from protocol.paths import escape

__all__ = ["holders", "users"]


def holders(generations: Iterable[Generation]) -> list[str]:
    """``PROGRAM (process PID)`` of each process that uses one of ``generations``.

    By a file, folder or root in it; or by its name: ``zfs send`` opens no file, and says what it sends.
    """
    return users((generation.name, generation.mountpoint) for generation in generations)


def users(datasets: Iterable[tuple[str, str]]) -> list[str]:
    """The same for datasets with their mountpoints, whatever they are."""
    found = list(datasets)
    below = tuple(mountpoint.rstrip("/") for _, mountpoint in found if mountpoint)
    names = frozenset(name for name, _ in found)
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    own = str(os.getpid())
    return [
        f"{_program(pid)} (process {pid})"
        for pid in pids
        if pid != own and (_sends(pid, names) or any(_lies_in(path, below) for path in _open_paths(pid)))
    ]


def _sends(pid: str, names: frozenset[str]) -> bool:
    """Whether it is a ``zfs send`` of a snapshot of one of these datasets."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as told:
            words = os.fsdecode(told.read()).split("\0")
    except OSError:
        return False
    # While it runs it cuts its own argument in two at the @.
    sent = {word.partition("@")[0] for word in words[2:]}
    return os.path.basename(words[0]) == "zfs" and words[1:2] == ["send"] and not names.isdisjoint(sent)


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

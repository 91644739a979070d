"""The working folder's lock: one command at a time changes it.

``flock`` on ``.dsg/lock``; ``.dsg/lock.holder`` says who has it, for messages
only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from types import TracebackType

from dsg_client.local.area import replace_small, storage_error
from dsg_client.local.machine import host_name, login_name
from protocol.errors import LockedError
from protocol.paths import escape
from protocol.tree.actions import AREA
from protocol.tree.files import PosixLock
from protocol.tree.fs import Lock, TreeFS

__all__ = ["LOCK_PATH", "LocalLock", "take_lock"]

LOCK_PATH = f"{AREA}/lock"
_HOLDER_PATH = f"{AREA}/lock.holder"
_FORMAT = 1


def take_lock(tree: TreeFS, machine: str, command: str, since: int, pid: int | None = None) -> LocalLock:
    """Take the lock, without waiting; LockedError says who holds it, since when and from where.

    ``pid``: the process that it is taken for, this one by default.
    """
    lock = _take(tree)
    if lock is None:
        raise _locked(tree, machine)
    holder = {
        "format": _FORMAT,
        "user": login_name(),
        "host": host_name(),
        "machine": machine,
        "pid": pid or os.getpid(),
        "since": since,
        "command": command,
    }
    try:
        replace_small(tree, _HOLDER_PATH, json.dumps(holder).encode(), durable=False)
    except OSError as error:
        lock.release()
        raise storage_error(_HOLDER_PATH, error) from error
    except BaseException:
        lock.release()
        raise
    return LocalLock(tree, lock)


class LocalLock:
    """The held lock of a working folder; a context manager."""

    def __init__(self, tree: TreeFS, lock: Lock) -> None:
        self._tree = tree
        self._lock: Lock | None = lock

    @classmethod
    def received(cls, tree: TreeFS, fd: int) -> LocalLock:
        """The lock that another process took for this one, by its descriptor ``fd``, owned from now on."""
        return cls(tree, PosixLock(fd))

    def hand_over(self, send: Callable[[int], object]) -> None:
        """Give the lock to the process that ``send`` gives a descriptor to; this one keeps no share in it."""
        send(self.fileno())
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def fileno(self) -> int:
        """For handing it to a child process that changes the folder."""
        if self._lock is None:
            raise ValueError("the lock was released")
        return self._lock.fileno()

    def release(self) -> None:
        """Let go; harmless when done twice."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            self._tree.unlink(_HOLDER_PATH)
        except OSError:
            pass  # says who holds the lock, and nobody reads it while the lock is free
        lock.release()

    def __enter__(self) -> LocalLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _take(tree: TreeFS) -> Lock | None:
    try:
        return tree.lock(LOCK_PATH)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise storage_error(LOCK_PATH, error) from error
    try:
        tree.write_bytes(LOCK_PATH, b"")
    except FileExistsError:
        pass
    except OSError as error:
        raise storage_error(LOCK_PATH, error) from error
    return tree.lock(LOCK_PATH)


def _locked(tree: TreeFS, machine: str) -> LockedError:
    holder: dict[str, object] = {}
    # The holder may have the lock for an instant before it says who it is.
    for _ in range(5):
        try:
            found = json.loads(tree.read_bytes(_HOLDER_PATH, 64 * 1024))
            if isinstance(found, dict) and _may_be_alive(found, machine):
                holder = found
                break
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    who = "another DSG command"
    if holder:
        who = (
            f"'{escape(str(holder.get('command', '?')))}' of {escape(str(holder.get('user', '?')))} "
            f"on {escape(str(holder.get('host', '?')))} (process {escape(str(holder.get('pid', '?')))}), "
            f"since {_shown_time(holder.get('since'))}"
        )
    return LockedError(
        f"this folder is in use by {who}",
        hint="Wait until it ends, or try again later: 'dsg sync --retries 5'.",
        facts={"holder": {k: holder[k] for k in ("user", "host", "pid", "since", "command") if k in holder}},
    )


def _shown_time(since: object) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(since))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"


def _may_be_alive(holder: dict[str, object], machine: str) -> bool:
    pid = holder.get("pid")
    if holder.get("machine") != machine or not isinstance(pid, int) or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False  # left by a command that was killed
    except OSError:
        pass
    return True

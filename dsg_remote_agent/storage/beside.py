"""A yes-or-no question answered by a process of its own, on another core.

It is forked off, looks, and ends; nothing but its answer comes back, and
nothing it does can be seen. Where it cannot be forked, is ended by somebody,
or fails at whatever, the answer is no: whoever asked then looks for himself.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Beside"]

_YES: Final = 0
_NO: Final = 1
_TICK_MS = 50
_MAY_FORK = hasattr(os, "fork") and sys.platform != "darwin" and (os.cpu_count() or 1) > 1


class Beside:
    """One question under way. Close it; a context manager."""

    def __init__(self, question: Callable[[Callable[[], None]], bool]) -> None:
        """Have ``question`` answered. It is given something to call now and then: there it may end."""
        self._pid = 0
        if not _MAY_FORK:
            return
        try:
            self._ends, theirs = os.pipe()
        except OSError:
            return
        asker = os.getpid()
        try:
            self._pid = os.fork()
            if not self._pid:
                _answer(question, asker)
        except OSError:
            pass
        finally:
            os.close(theirs)
            if not self._pid:
                os.close(self._ends)

    def yes(self, tick: Callable[[], None], limit_s: float) -> bool:
        """Wait for the answer, so many seconds at most; ``tick`` is called now and then, and may raise."""
        if not self._pid:
            return False
        poll = select.poll()
        poll.register(self._ends, select.POLLIN)
        end = time.monotonic() + limit_s
        while not poll.poll(_TICK_MS):
            tick()
            if time.monotonic() > end:
                self.close()
                return False
        return self._wait() == _YES

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._pid:
            try:
                os.kill(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended, and is forgotten already
            self._wait()

    def _wait(self) -> int:
        pid, self._pid = self._pid, 0
        os.close(self._ends)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            return _NO  # whoever started us has the system forget its children

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(question: Callable[[Callable[[], None]], bool], asker: int) -> None:
    """In the other process, which has this one thread; never returns. ``asker``: the process that waits."""
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

        def tick() -> None:
            if os.getppid() != asker:
                os._exit(_NO)  # nobody waits any more

        status = _YES if question(tick) else _NO
    except BaseException:  # noqa: BLE001  the one who asked meets the same and can tell it
        status = _NO
    os._exit(status)

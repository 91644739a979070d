"""Places where a test stops this process: parsed from ``DSG_FAILPOINTS``, else absent.

``DSG_FAILPOINTS="remote-decided=kill,uploaded=error:ENOSPC"``. The actions:
``kill`` (SIGKILL to itself), ``exit`` (at once, without cleaning up),
``hang`` (for ever), ``hang:SECONDS``, ``stop`` (SIGSTOP to itself: it stands until
somebody sends SIGCONT), ``error:NAME`` (an OSError of that name).
Each says ``failpoint STEP: ACTION`` on stderr first, so that a test knows.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

from protocol.transaction import Failpoints, NoFailpoints, Step
from protocol.value import Value

__all__ = ["parse_failpoints"]


class _Armed(Value):
    actions: dict[Step, str]

    def reach(self, step: Step) -> None:
        found = self.actions.get(step, "")
        if found:
            os.write(2, f"failpoint {step.value}: {found}\n".encode())
        action, _, argument = found.partition(":")
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "exit":
            os._exit(70)
        elif action == "hang":
            time.sleep(float(argument or 1e9))
        elif action == "stop":
            # To this thread: it must not get past the step before the process stands.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        elif action == "error":
            number = getattr(errno, argument)
            raise OSError(number, os.strerror(number), f"failpoint {step.value}")


def parse_failpoints(text: str) -> Failpoints:
    """The failpoints named by ``text``; ValueError for an unknown step or action."""
    if not text:
        return NoFailpoints()
    actions: dict[Step, str] = {}
    for item in text.split(","):
        name, _, action = item.partition("=")
        verb, _, argument = action.partition(":")
        if verb not in ("kill", "exit", "hang", "stop", "error"):
            raise ValueError(f"unknown failpoint action {action!r}")
        if verb == "error" and not hasattr(errno, argument):
            raise ValueError(f"unknown error name {argument!r}")
        actions[Step(name)] = action
    return _Armed(actions)

"""The agent's log: one JSON line an event, to stderr and to ``--log-file``.

structlog is imported when the first line is written, so that an agent with
nothing to say starts without it; where the server does not have it, the lines
are made without it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["LEVELS", "Log", "open_log"]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """Writes events at or above ``level`` to the given descriptors. Never raises for what it cannot write."""

    def __init__(self, descriptors: list[int], level: str, **bound: Any) -> None:
        self._descriptors = descriptors
        self._level = LEVELS[level]
        self._bound = bound
        self._lock = threading.Lock()
        self._render: Callable[[dict[str, Any]], str] | None = None

    def debug(self, event: str, **facts: Any) -> None:
        self._write("debug", event, facts)

    def info(self, event: str, **facts: Any) -> None:
        self._write("info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._write("warning", event, facts)

    def error(self, event: str, *, trace: bool = False, **facts: Any) -> None:
        """``trace``: with the traceback of the exception being handled."""
        if trace:
            import traceback  # a millisecond of every start

            facts["traceback"] = traceback.format_exc()
        self._write("error", event, facts)

    def _write(self, level: str, event: str, facts: dict[str, Any]) -> None:
        if LEVELS[level] < self._level:
            return
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "level": level,
            "event": event,
            **self._bound,
            **facts,
        }
        with self._lock:
            if self._render is None:
                self._render = _renderer()
            line = (self._render(entry) + "\n").encode("utf-8", "backslashreplace")
            for descriptor in self._descriptors:
                try:
                    os.write(descriptor, line)
                except OSError:
                    pass


def _renderer() -> Callable[[dict[str, Any]], str]:
    try:
        import structlog
    except ImportError:
        # ensure_ascii keeps control and bidi characters of names out of a terminal.
        return lambda entry: json.dumps(entry, default=repr)
    render = structlog.processors.JSONRenderer(default=repr)
    return lambda entry: str(render(None, "", entry))


def open_log(path: str | None, level: str) -> Log:
    """The process's log. A log file that cannot be opened is said on stderr, and done without."""
    log = Log([2], level, pid=os.getpid())
    if path is None:
        return log
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o660)
    except OSError as error:
        sys.stderr.write(f"dsg-remote-agent: --log-file {path}: {error.strerror}\n")
        return log
    return Log([2, descriptor], level, pid=os.getpid())

"""The client's log: one JSON line for each command that changed something or failed.

``client.log`` in the platform's state folder (``~/.local/state/dsg`` on
Linux), private to the user, rotated at 1 MiB, three old ones kept. A log that
cannot be written stops nothing.

Imported only to write: most commands do not. structlog, which the agent's log
is made with, would take longer to import than all of DSG, for one line.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import platformdirs

__all__ = ["log_path", "write_log"]

_MAX_BYTES = 1 << 20
_KEPT = 3


def log_path() -> Path:
    """Where the log is."""
    return Path(platformdirs.user_state_dir("dsg", appauthor=False)) / "client.log"


def write_log(event: str, **fields: Any) -> None:
    """Append one event with its fields and the time."""
    path = log_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = os.umask(0o077)
        try:
            handler = RotatingFileHandler(path, maxBytes=_MAX_BYTES, backupCount=_KEPT, encoding="utf-8")
        finally:
            os.umask(before)
    except OSError:
        return
    logger = logging.Logger("dsg")  # not one of the tree of loggers: asyncssh's noise stays out
    logger.addHandler(handler)
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # noqa: ARG005  # a full disk is no reason to print
    when = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    # ensure_ascii keeps control and bidi characters of names out of a terminal.
    logger.error("%s", json.dumps({**fields, "event": event, "timestamp": when}, default=repr))
    handler.close()

"""The client's log: one JSON line for each command that changed something or failed.

``client.log`` in the platform's state folder (``~/.local/state/dsg`` on
Linux), private to the user, rotated at 1 MiB, three old ones kept. A log that
cannot be written stops nothing.
"""

from __future__ import annotations

import importlib
import os
import threading
from pathlib import Path
from typing import Any

__all__ = ["log_path", "prepare_log", "write_log"]

_MAX_BYTES = 1 << 20
_KEPT = 3


def log_path() -> Path:
    """Where the log is."""
    import platformdirs

    return Path(platformdirs.user_state_dir("dsg", appauthor=False)) / "client.log"


def prepare_log() -> None:
    """Import in a thread what :func:`write_log` will need: it takes longer than all of DSG's own modules."""
    threading.Thread(target=importlib.import_module, args=("structlog",), daemon=True).start()


def write_log(event: str, **fields: Any) -> None:
    """Append one event with its fields and the time."""
    # Imported here: most commands write nothing.
    import logging
    from logging.handlers import RotatingFileHandler

    import structlog

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
    structlog.wrap_logger(
        logger,
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ],
    ).error(event, **fields)
    handler.close()

"""Whether a process is there still."""

from __future__ import annotations

import subprocess
import time

__all__ = ["alive", "gone"]


def alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody waited for does not."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True)
    return bool(told.stdout.strip()) and not told.stdout.strip().startswith("Z")


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends within so many seconds."""
    end = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True

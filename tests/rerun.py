"""A test in which zfs-fuse itself ends is run once more, with a new daemon; the summary names each.

zfs-fuse is no longer developed, and ends by itself once in many thousand
commands. That says nothing about DSG, and would fail every later test, too.
More rarely it does not answer any more. Whoever waits for it then hears no
signal, a test's time limit neither, so that the run would never end: such a
daemon is killed.
A test that fails while the daemon runs is not repeated, nor one that has lost
two.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from tests.hosts.zfs_fuse import ZfsFuse

__all__ = ["DAEMON"]

# Where the fixture keeps the daemon that the whole run shares.
DAEMON: pytest.StashKey[ZfsFuse] = pytest.StashKey()
_DIED = "zfs-fuse died"
# Seconds into a test at which it is looked at, and in which a call that waits for the daemon ends, or never.
LOOK_S = 150.0
STANDS_S = 20.0


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = _run(item, nextitem)
    if _replaced(item):
        reports = _run(item, nextitem)
        _replaced(item)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    watch = threading.Timer(LOOK_S, _end_what_hangs, [item])
    watch.daemon = True
    watch.start()
    try:
        return runtestprotocol(item, nextitem=nextitem, log=False)
    finally:
        watch.cancel()


def _end_what_hangs(item: pytest.Item) -> None:
    daemon = item.config.stash.get(DAEMON, None)
    if daemon is None:
        return
    waiting = _waiting_for_fuse()
    time.sleep(STANDS_S)
    if waiting & _waiting_for_fuse():
        daemon.give_up()


def _waiting_for_fuse() -> set[tuple[str, str]]:
    """This process's threads that wait for a FUSE file system, and how often each has slept."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that ended
            if "fuse" in (where := (task / "wchan").read_text()) or where == "request_wait_answer":
                status = (task / "status").read_text().splitlines()
                found.add((task.name, next(line for line in status if line.startswith("voluntary"))))
    return found


def _replaced(item: pytest.Item) -> bool:
    """Whether the daemon died; there is another then."""
    daemon = item.config.stash.get(DAEMON, None)
    words = None if daemon is None else daemon.died()
    if daemon is None or words is None:
        return False
    daemon.restart()
    item.user_properties.append((_DIED, words))
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for name, words in report.user_properties:
                if name == _DIED:
                    terminalreporter.write_line(f"{_DIED} in {report.nodeid}, which was run again: {words}")

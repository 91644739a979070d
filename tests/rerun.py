"""A test in which zfs-fuse itself ends is run once more, with a new daemon; the summary names each.

zfs-fuse is no longer developed, and ends by itself once in many thousand
commands. That says nothing about DSG, and would fail every later test, too.
A test that fails while the daemon runs is not repeated, nor one that has lost
two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from tests.hosts.zfs_fuse import ZfsFuse

__all__ = ["DAEMON"]

# Where the fixture keeps the daemon that the whole run shares.
DAEMON: pytest.StashKey[ZfsFuse] = pytest.StashKey()
_DIED = "zfs-fuse died"


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if _replaced(item):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        _replaced(item)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


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

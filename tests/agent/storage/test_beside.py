"""A question for another process: its answer is yes, or no for whatever reason, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsg_remote_agent.storage import beside
from dsg_remote_agent.storage.beside import Beside
from tests.processes import gone

Tick = Callable[[], None]


def never() -> None:
    pass


def fails(_: Tick) -> bool:
    raise RuntimeError("for some reason")


def ends(_: Tick) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


@pytest.mark.parametrize(
    ("question", "answer"),
    [(lambda _: True, True), (lambda _: False, False), (fails, False), (ends, False)],
)
def test_the_answer(question: Callable[[Tick], bool], answer: bool) -> None:
    with Beside(question) as asked:
        pid = asked._pid
        assert asked.yes(never, 30) == answer
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_where_nothing_can_be_forked_the_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refused)
    with Beside(lambda _: True) as asked:
        assert not asked.yes(never, 30)
    monkeypatch.setattr(beside, "_MAY_FORK", False)
    with Beside(lambda _: True) as asked:
        assert not asked.yes(never, 30)


def test_without_a_pipe_the_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", refused)
    with Beside(lambda _: True) as asked:
        assert not asked.yes(never, 30)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("error", [BlockingIOError, MemoryError])
def test_what_cannot_be_forked_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refused() -> int:
        raise error

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refused)
        try:
            Beside(lambda _: True)
        except MemoryError:
            pass
    assert descriptors() == before


def test_one_that_has_ended_and_is_forgotten_is_given_up_all_the_same() -> None:
    """Where the system forgets children (SIGCHLD is ignored), there is nobody left to be ended."""
    before = descriptors()
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Beside(lambda _: True) as asked:
            assert gone(asked._pid)
    finally:
        signal.signal(signal.SIGCHLD, old)
    assert descriptors() == before


def test_who_waits_is_asked_whether_he_still_does() -> None:
    class GoneError(Exception):
        pass

    def tick() -> None:
        raise GoneError

    begun = time.monotonic()
    with pytest.raises(GoneError), Beside(lambda _: time.sleep(60) is None) as asked:
        pid = asked._pid
        asked.yes(tick, 30)
    assert time.monotonic() - begun < 30
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_hangs_is_not_waited_for() -> None:
    with Beside(lambda _: time.sleep(60) is None) as asked:
        pid = asked._pid
        assert not asked.yes(never, 0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_ends_when_the_one_who_asked_is_no_more(tmp_path: Path) -> None:
    program = """
import sys, time
from dsg_remote_agent.storage.beside import Beside
def question(tick):
    while True:
        tick()
        time.sleep(0.01)
asked = Beside(question)
print(asked._pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(pid, 0)
    process.kill()
    process.wait()
    assert gone(pid)
    process.stdout.close()

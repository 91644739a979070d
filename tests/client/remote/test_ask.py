"""Questions on a real terminal (a pty): not shown while typed, and the terminal is given back as it was."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from tests.hosts.sshd import REPOSITORY

ASKER = """
import asyncio, sys
from dsg_client.remote.ask import terminal_ask

async def main():
    ask = terminal_ask()
    if ask is None:
        print('nobody there', flush=True)
        return
    secret = sys.argv[1] == 'secret'
    try:
        print('got', [await ask('Passphrase: ', secret)], flush=True)
    except EOFError:
        print('ended', flush=True)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print('interrupted', flush=True)
"""


class Terminal:
    """A program with a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(REPOSITORY)
            os.execv(sys.executable, [sys.executable, "-c", ASKER, *args])
        self.out = b""

    def wait_for(self, text: bytes, limit: float = 15.0) -> None:
        deadline = time.monotonic() + limit
        while text not in self.out:
            left = deadline - time.monotonic()
            assert left > 0, self.out
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.out += os.read(self.fd, 4096)
                except OSError:
                    break
        assert text in self.out, self.out

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.fd)[3] & termios.ECHO)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.mark.parametrize("kind", ["secret", "plain"])
def test_an_answer(kind: str) -> None:
    terminal = Terminal(kind)
    terminal.wait_for(b"Passphrase: ")
    assert terminal.echoes is (kind == "plain")
    os.write(terminal.fd, b"open sesame\n")
    terminal.wait_for(b"got ['open sesame']")
    assert terminal.out.count(b"open sesame") == (1 if kind == "secret" else 2)
    assert terminal.echoes
    terminal.end()


def test_the_end_of_input() -> None:
    terminal = Terminal("secret")
    terminal.wait_for(b"Passphrase: ")
    os.write(terminal.fd, b"\x04")
    terminal.wait_for(b"ended")
    assert terminal.echoes
    terminal.end()


def test_ctrl_c_ends_the_question_at_once_and_gives_the_echo_back() -> None:
    terminal = Terminal("secret")
    terminal.wait_for(b"Passphrase: ")
    os.write(terminal.fd, b"\x03")
    terminal.wait_for(b"interrupted", limit=5)
    assert terminal.echoes
    terminal.end()


def test_without_a_terminal_nobody_is_asked() -> None:
    told = subprocess.run(
        [sys.executable, "-c", ASKER, "secret"],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,  # no controlling terminal, as under cron
        stdin=subprocess.DEVNULL,
    )
    assert told.stdout == "nobody there\n"

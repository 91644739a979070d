"""Questions to the user while signing in: passphrases, passwords, second factors; on a terminal only."""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import Awaitable, Callable

__all__ = ["Ask", "terminal_ask"]

# prompt, whether the answer is secret (not shown while typed) -> the answer without its line end.
# EOFError: the user ended the input.
Ask = Callable[[str, bool], Awaitable[str]]

_MOST = 4096


def terminal_ask() -> Ask | None:
    """Asks on the terminal that this program is run from; None when there is none (cron, a batch system)."""
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    # A job in the background would be stopped as soon as it touched the terminal.
    try:
        foreground = os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        foreground = False
    os.close(fd)
    return _ask_terminal if foreground else None


async def _ask_terminal(prompt: str, secret: bool) -> str:
    # On the event loop and not in a thread: a thread that reads a terminal cannot be stopped, and
    # Ctrl-C would leave the terminal without echo.
    fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        before = termios.tcgetattr(fd)
        if secret:
            hidden = [*before]
            hidden[3] &= ~termios.ECHO
            # TCSAFLUSH: what was typed before the question is no answer to it.
            termios.tcsetattr(fd, termios.TCSAFLUSH, hidden)
        try:
            os.write(fd, prompt.encode("utf-8", "replace"))
            line = await _line(fd)
        finally:
            if secret:
                termios.tcsetattr(fd, termios.TCSADRAIN, before)
                os.write(fd, b"\n")
    finally:
        os.close(fd)
    if not line:
        raise EOFError
    return line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


async def _line(fd: int) -> bytes:
    """One line; the terminal gives it whole, when Enter is pressed."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, tell)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
    return os.read(fd, _MOST)

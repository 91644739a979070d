"""What a transport is: a started program with a byte stream each way.

A transport knows nothing of DSG's protocol. It pushes what arrives to its
receiver at once and never holds it back: memory is bounded above it, by the
protocol's credit. What is written is queued, and ``congested`` says when to
stop writing, so that a heartbeat never waits behind more than the queue.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from typing import Protocol

from protocol.codec import Buffer
from protocol.value import Value

__all__ = ["STDERR_KEPT", "ExitStatus", "Mailbox", "Receiver", "Tail", "Transport"]

STDERR_KEPT = 64 * 1024


class ExitStatus(Value):
    """How the program at the other end ended: with a code, or by a signal."""

    code: int | None = None
    signal: str | None = None

    @classmethod
    def of(cls, returncode: int) -> ExitStatus:
        """From subprocess's convention, in which a negative code is a signal."""
        if returncode >= 0:
            return cls(code=returncode)
        try:
            return cls(signal=signal.Signals(-returncode).name)
        except ValueError:
            return cls(signal=f"signal {-returncode}")

    def __str__(self) -> str:
        return f"was killed by {self.signal}" if self.signal else f"ended with exit status {self.code}"


class Tail:
    """The last bytes of a stream; everything before them is dropped."""

    def __init__(self, limit: int = STDERR_KEPT) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.dropped = 0

    def add(self, chunk: bytes) -> None:
        self._kept += chunk
        excess = len(self._kept) - self._limit
        # Twice the limit before anything is moved: each byte is moved once, not once for each chunk.
        if excess > self._limit:
            del self._kept[:excess]
            self.dropped += excess

    def __bytes__(self) -> bytes:
        return bytes(self._kept[-self._limit :])


class Receiver(Protocol):
    """Where a transport puts what happens. Called on the event loop; must not raise."""

    def received(self, chunk: bytes) -> None:
        """Bytes came, in order."""

    def writable(self) -> None:
        """The transport is no longer congested."""

    def ended(self, error: Exception | None) -> None:
        """No more bytes will come; called once. ``error`` None: an orderly end of stream."""


class Transport(Protocol):
    """A running program at the other end of a byte stream."""

    name: str  # for messages: "the host ...", "this machine"
    stderr: Tail

    @property
    def congested(self) -> bool:
        """Whether more bytes are queued than is good; see ``Receiver.writable``."""
        ...

    def attach(self, receiver: Receiver) -> None:
        """From now on everything goes to ``receiver``; what came while there was none goes to it at once."""
        ...

    def write(self, chunks: Sequence[Buffer]) -> None:
        """Queue ``chunks``; they must not change afterwards. Writing to an ended transport is dropped."""
        ...

    async def exit_status(self, limit: float) -> ExitStatus | None:
        """How the program ended, waited for during ``limit`` seconds; None when that is not known."""
        ...

    async def close(self, *, undoing: bool = False) -> None:
        """End the stream to the program and let go of it.

        What is queued is still sent. A program on this machine is given half a
        second to end and then killed; one on a server sees the end of its
        input and is not waited for. ``undoing``: it has something to undo, and
        is waited for during 5 s. Repeatable; never raises.
        """
        ...

    def abort(self) -> None:
        """Let go at once, dropping what is queued. Repeatable; never raises."""
        ...


class Mailbox:
    """Holds what arrives until a receiver is attached, then passes everything on to it."""

    def __init__(self) -> None:
        self._receiver: Receiver | None = None
        self._waiting: list[bytes] = []
        self._ended: tuple[Exception | None] | None = None
        self._told = False

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver
        waiting, self._waiting = self._waiting, []
        for chunk in waiting:
            self.received(chunk)
        if self._ended is not None and not self._told:
            # Later: the receiver may be in the middle of setting itself up.
            asyncio.get_running_loop().call_soon(self._tell_end)

    def received(self, chunk: bytes) -> None:
        if self._receiver is None:
            self._waiting.append(chunk)
        else:
            self._receiver.received(chunk)

    def writable(self) -> None:
        if self._receiver is not None:
            self._receiver.writable()

    def ended(self, error: Exception | None) -> None:
        if self._ended is None:
            self._ended = (error,)
            self._tell_end()

    def _tell_end(self) -> None:
        if self._receiver is not None and self._ended is not None and not self._told:
            self._told = True
            self._receiver.ended(self._ended[0])

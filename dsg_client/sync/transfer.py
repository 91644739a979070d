"""File contents on their way: steps of synchronous work in a thread, the network on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar

from dsg_client.remote.calls import Download, Upload
from dsg_client.sync.events import Emit, Phase, Progress
from dsg_client.sync.threads import all_over, over
from protocol.codec import Buffer
from protocol.compress import Compressor, inflate
from protocol.errors import LocalChangedError
from protocol.framing import Flag
from protocol.paths import escape
from protocol.tree.arrive import Arrivals
from protocol.tree.send import SourceChanged

__all__ = ["Meter", "changed_error", "fetch", "send", "stepped"]

T = TypeVar("T")


class Meter:
    """Counts what has moved in both directions, and tells it."""

    def __init__(self, emit: Emit, files_total: int = 0, bytes_total: int = 0) -> None:
        self.emit = emit
        self.files_total = files_total
        self.bytes_total = bytes_total
        self.files = 0
        self.bytes = 0

    def add(self, *, files: int = 0, size: int = 0) -> None:
        """``files`` complete, ``size`` bytes of content moved."""
        self.files += files
        self.bytes += size
        self.emit(Progress(Phase.TRANSFER, self.files, self.files_total, self.bytes, self.bytes_total))


async def stepped(steps: Iterator[T]) -> AsyncGenerator[T]:
    """Run an iterator in a thread, always one step ahead of its consumer."""
    loop = asyncio.get_running_loop()
    end: list[T] = []

    def step() -> T | list[T]:
        return next(steps, end)

    ahead = loop.run_in_executor(None, step)
    try:
        while (item := await over(ahead)) is not end:
            ahead = loop.run_in_executor(None, step)
            yield item  # type: ignore[misc]  # the sentinel was sorted out above
    finally:
        # The thread must be done with its files before anyone undoes anything.
        if await all_over([ahead]):
            raise asyncio.CancelledError


async def send(upload: Upload, payloads: Iterator[bytes], algorithm: str, meter: Meter) -> None:
    """Send the payloads of a file stream, read and compressed in a thread.

    LocalChangedError when a file is not what was scanned.
    """
    compressor = Compressor(algorithm)

    def compressed() -> Iterator[tuple[Buffer, Flag, int]]:
        for payload in payloads:
            yield *compressor.compress(payload), len(payload)

    try:
        async with aclosing(stepped(compressed())) as steps:
            async for payload, flags, size in steps:
                if not await upload.send(payload, flags):
                    break  # the agent says why in its response
                meter.add(size=size)
    except SourceChanged as error:
        raise changed_error([error.path]) from None


async def fetch(download: Download, arrivals: Arrivals, meter: Meter) -> None:
    """Take the answer of ``files.get`` into staging; inflating, hashing and writing happen in a thread."""
    loop = asyncio.get_running_loop()

    def take(payload: Buffer, flags: Flag) -> tuple[int, int]:
        inflated = inflate(payload, flags)
        before = arrivals.files
        arrivals.feed(inflated)
        return arrivals.files - before, len(inflated)

    working: asyncio.Future[tuple[int, int]] | None = None
    try:
        while (piece := await download.receive()) is not None:
            if working is not None:
                files, size = await over(working)
                meter.add(files=files, size=size)
            working = loop.run_in_executor(None, take, piece.payload, piece.flags)
            working.add_done_callback(_gives_back(download, piece))
        if working is not None:
            files, size = await over(working)
            meter.add(files=files, size=size)
    finally:
        # The thread must be done with its files before anyone undoes anything.
        if working is not None and await all_over([working]):
            raise asyncio.CancelledError
    arrivals.end()


def _gives_back(download: Download, piece: object) -> Callable[[object], None]:
    return lambda _: download.consumed(piece)  # type: ignore[arg-type]  # what ``receive`` gave


def changed_error(paths: list[str]) -> LocalChangedError:
    """The sync stops because these files are not what they were when it was planned."""
    shown = ", ".join(escape(path) for path in paths[:5]) + (
        f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    )
    return LocalChangedError(
        f"changed while the sync ran: {shown}",
        hint="Run 'dsg sync' again when nothing is writing to them.",
        facts={"paths": paths[:1000]},
    )

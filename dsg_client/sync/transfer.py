"""File contents on their way: steps of synchronous work in a thread, the network on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from queue import SimpleQueue
from typing import TypeVar

from dsg_client.remote.bodies import Download, Upload
from dsg_client.sync.events import Emit, Phase, Progress
from dsg_client.sync.threads import all_over, over
from protocol.codec import Buffer
from protocol.compress import Compressor, inflate
from protocol.errors import LocalChangedError
from protocol.framing import Flag
from protocol.paths import escape
from protocol.tree.arrive import Arrivals
from protocol.tree.send import SourceChanged
from protocol.wire_events import DataReceived

__all__ = ["Meter", "changed_error", "fetch", "send", "stepped"]

T = TypeVar("T")

AHEAD = 8  # payloads read before they can be sent: each at most 1 MiB


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


async def stepped(steps: Iterator[T], ahead: int = AHEAD) -> AsyncGenerator[T]:
    """Run an iterator in a thread, up to ``ahead`` items before its consumer.

    One thread goes through all of it, and wakes nobody who has something to
    do: handing over each item by a task of its own cost as much as reading it.
    """
    loop = asyncio.get_running_loop()
    ready: deque[T] = deque()
    moved = threading.Condition()  # guards the three names around it
    stopped = hungry = False
    news = asyncio.Event()

    def run() -> None:
        nonlocal hungry
        for item in steps:
            with moved:
                while len(ready) >= ahead and not stopped:
                    moved.wait()
                if stopped:
                    return
                ready.append(item)
                wanted, hungry = hungry, False
            if wanted:
                loop.call_soon_threadsafe(news.set)

    running = loop.run_in_executor(None, run)
    running.add_done_callback(lambda _: news.set())
    try:
        while True:
            with moved:
                # Looked at before ``done``: what the thread made is there before it is told to have ended.
                found = [ready.popleft()] if ready else []
                hungry = not found
                if len(ready) <= ahead // 4:
                    moved.notify()
            if found:
                yield found[0]
            elif running.done():
                running.result()
                return
            else:
                await news.wait()
                news.clear()
    finally:
        with moved:
            stopped = True
            moved.notify()
        # The thread must be done with its files before anyone undoes anything.
        if await all_over([running]):
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
    """Take the answer of ``files.get`` into staging; inflating, hashing and writing happen in one thread."""
    loop = asyncio.get_running_loop()
    waiting: SimpleQueue[DataReceived | None] = SimpleQueue()  # bounded by the credit of the download
    taken: deque[tuple[DataReceived, int, int]] = deque()
    telling = threading.Event()
    stopped = False

    def take() -> None:
        while (piece := waiting.get()) is not None and not stopped:
            inflated = inflate(piece.payload, piece.flags)
            before = arrivals.files
            arrivals.feed(inflated)
            taken.append((piece, arrivals.files - before, len(inflated)))
            if not telling.is_set():
                telling.set()
                loop.call_soon_threadsafe(give_back)

    def give_back() -> None:
        telling.clear()
        while taken:
            piece, files, size = taken.popleft()
            download.consumed(piece)
            meter.add(files=files, size=size)

    def ended(working: asyncio.Future[None]) -> None:
        error = working.exception()
        if error is not None:
            # Nothing is given back any more, so that the server would wait, and with it ``receive``.
            download.give_up(error)

    working = loop.run_in_executor(None, take)
    working.add_done_callback(ended)
    try:
        while (piece := await download.receive()) is not None:
            waiting.put(piece)
        waiting.put(None)
        await over(working)
    finally:
        stopped = True
        waiting.put(None)
        # The thread must be done with its files before anyone undoes anything.
        if await all_over([working]):
            raise asyncio.CancelledError
    give_back()
    arrivals.end()


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

"""Work in threads that a cancellation waits for: nothing is undone, and no lock let go, while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, TypeVar

__all__ = ["all_over", "over", "to_the_end"]

T = TypeVar("T")


async def to_the_end(work: Callable[..., T], *args: Any) -> T:
    """Run ``work`` in a thread, and return only when it has ended, however often this task is cancelled.

    A cancellation is raised then; what the work returned or raised is lost to it.
    """
    return await over(asyncio.get_running_loop().run_in_executor(None, work, *args))


async def over(running: asyncio.Future[T]) -> T:
    """The same for what runs already: a future of an executor, or a task."""
    if await all_over([running]):
        raise asyncio.CancelledError
    return running.result()


async def all_over(running: Collection[asyncio.Future[Any]]) -> bool:
    """Wait until all have ended, and look at their errors; whether this task was cancelled meanwhile."""
    # Awaited directly, a future of an executor would take over the cancellation and be done at once,
    # with its thread still at work.
    cancelled = False
    while pending := [one for one in running if not one.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError:
            cancelled = True
    for one in running:
        if not one.cancelled():
            one.exception()
    return cancelled

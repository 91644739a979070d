"""What runs in a thread has ended before a cancellation is felt: however often, and wherever it strikes."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from types import SimpleNamespace

import pytest

from dsg_client.sync.run import abreast
from dsg_client.sync.threads import all_over, over, to_the_end
from dsg_client.sync.transfer import Meter, fetch, stepped
from protocol.filestream import Packer
from protocol.framing import Flag


class Work:
    """Something that takes a while in a thread and can tell whether it is still at it."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> str:
        self.began.set()
        time.sleep(0.3)
        self.ended.set()
        return "done"

    async def under_way(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 10)


async def cancel_often(task: asyncio.Task[object], times: int) -> None:
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("times", [1, 3])
async def test_work_ends_before_its_cancellation_is_raised(times: int) -> None:
    work = Work()
    task: asyncio.Task[object] = asyncio.create_task(to_the_end(work))
    await work.under_way()
    await cancel_often(task, times)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended.is_set()


async def test_without_a_cancellation_the_result_or_the_error_comes_out() -> None:
    assert await to_the_end(Work()) == "done"
    with pytest.raises(ZeroDivisionError):
        await to_the_end(lambda: 1 // 0)


async def test_awaited_directly_the_same_work_goes_on_unseen() -> None:
    """The control: why ``over`` is needed."""
    work = Work()

    async def plain() -> None:
        await asyncio.get_running_loop().run_in_executor(None, work)

    task: asyncio.Task[object] = asyncio.create_task(plain())
    await work.under_way()
    await cancel_often(task, 1)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not work.ended.is_set()
    work.ended.wait(5)


async def test_errors_of_several_are_looked_at_and_none_is_raised() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    tasks = [asyncio.create_task(fail()) for _ in range(2)]
    assert not await all_over(tasks)
    with pytest.raises(ZeroDivisionError):
        await over(tasks[0])
    tasks[1].exception()


class Arriving:
    """Arrivals that take their time over each payload."""

    def __init__(self) -> None:
        self.work = Work()
        self.files = 0

    def feed(self, _payload: object) -> None:
        self.work()

    def end(self) -> None:
        raise AssertionError("the stream did not end")


class Stream:
    """A download of which as many pieces are there at once as its credit allows."""

    def __init__(self) -> None:
        self.payload = b"".join(Packer().chunk(0, 0, b"x")) or b"x"
        self.unread = 8
        self.news = asyncio.Event()
        self.error: BaseException | None = None

    async def receive(self) -> object:
        while not self.unread:
            if self.error is not None:
                raise self.error
            await self.news.wait()
            self.news.clear()
        self.unread -= 1
        return SimpleNamespace(payload=self.payload, flags=Flag.NONE)

    def consumed(self, _piece: object) -> None:
        self.unread += 1
        self.news.set()

    def give_up(self, because: BaseException) -> None:
        self.error = because
        self.news.set()


@pytest.mark.parametrize("times", [1, 3])
async def test_a_download_that_is_cancelled_has_no_thread_left_in_staging(times: int) -> None:
    arrivals = Arriving()
    meter = Meter(lambda _: None)
    task: asyncio.Task[object] = asyncio.create_task(fetch(Stream(), arrivals, meter))  # type: ignore[arg-type]
    await arrivals.work.under_way()
    await cancel_often(task, times)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert arrivals.work.ended.is_set()


async def test_a_download_whose_disk_fails_does_not_wait_for_more() -> None:
    """Nothing is given back then, so that nothing more would come, and no end either."""

    class Full:
        files = 0

        def feed(self, _payload: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

    with pytest.raises(OSError, match="no space"):
        await asyncio.wait_for(fetch(Stream(), Full(), Meter(lambda _: None)), 10)  # type: ignore[arg-type]


async def test_a_download_is_given_back_piece_by_piece_as_it_is_written() -> None:
    """Far more than its credit goes through, in order, and what was taken is told."""

    class Many(Stream):
        left = 100

        async def receive(self) -> object:
            if not self.left:
                return None
            self.left -= 1
            piece = await super().receive()
            piece.payload = self.left.to_bytes(1, "big")  # type: ignore[attr-defined]
            return piece

    class Written:
        files = 0

        def __init__(self) -> None:
            self.fed: list[int] = []
            self.ended = False

        def feed(self, payload: bytes) -> None:
            self.fed.append(payload[0])

        def end(self) -> None:
            self.ended = True

    stream, written, meter = Many(), Written(), Meter(lambda _: None)
    await asyncio.wait_for(fetch(stream, written, meter), 10)  # type: ignore[arg-type]
    assert written.fed == list(range(99, -1, -1)) and written.ended
    assert stream.unread == 8 and meter.bytes == 100


async def test_steps_run_ahead_of_their_consumer_but_not_far() -> None:
    made = 0

    def steps() -> Iterator[int]:
        nonlocal made
        while made < 100:
            made += 1
            yield made

    seen = []
    async for item in stepped(steps(), ahead=4):
        seen.append(item)
        await asyncio.sleep(0.001)
        # Those that wait, and one in the hand of the thread.
        assert made <= item + 4 + 1
    assert seen == list(range(1, 101))


async def test_an_error_of_a_step_comes_after_what_was_made_before_it() -> None:
    def steps() -> Iterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError

    seen = []
    with pytest.raises(ZeroDivisionError):
        async for item in stepped(steps()):
            seen.append(item)
            await asyncio.sleep(0.05)
    assert seen == [1, 2]


async def test_a_consumer_that_stops_early_stops_the_steps() -> None:
    made = 0

    def steps() -> Iterator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    async with aclosing(stepped(steps(), ahead=4)) as items:
        async for _ in items:
            break
    assert made <= 6


@pytest.mark.parametrize("times", [1, 3])
async def test_an_upload_that_is_cancelled_has_no_thread_left_in_the_files(times: int) -> None:
    work = Work()

    def steps() -> Iterator[str]:
        yield "first"
        yield work()

    async def read() -> None:
        async for _ in stepped(steps()):
            pass

    task: asyncio.Task[object] = asyncio.create_task(read())
    await work.under_way()
    await cancel_often(task, times)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended.is_set()


@pytest.mark.parametrize("times", [1, 3])
async def test_two_abreast_are_both_over_when_one_fails_and_someone_is_impatient(times: int) -> None:
    work = Work()

    async def fail() -> None:
        await work.under_way()
        raise ZeroDivisionError

    task: asyncio.Task[object] = asyncio.create_task(abreast(fail(), to_the_end(work)))
    await work.under_way()
    await asyncio.sleep(0.05)
    await cancel_often(task, times)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended.is_set()

"""The session over a real child process: calls, bodies, backpressure, cancelling, death and silence."""

from __future__ import annotations

import asyncio
import time
import zlib

import pytest

from protocol.errors import LinkLostError, LockedError, Outcome, RemoteProtocolError
from protocol.framing import Flag
from tests.client.remote.conftest import OpenSession

MIB = 1024 * 1024


async def test_a_call_and_its_answer(open_session: OpenSession) -> None:
    session = await open_session()
    assert await session.call("echo", {"a": 1, "b": [b"\0", "ü", None]}) == {"a": 1, "b": [b"\0", "ü", None]}
    assert session.features == {"zstd"}


async def test_many_calls_at_once_wait_for_the_agents_limit(open_session: OpenSession) -> None:
    session = await open_session()
    answers = await asyncio.gather(*(session.call("echo", {"n": n}) for n in range(1000)))
    assert [answer["n"] for answer in answers] == list(range(1000))


async def test_an_error_arrives_as_what_it_is(open_session: OpenSession) -> None:
    session = await open_session()
    sent = LockedError("held by ann", hint="wait", facts={"who": "ann"}, outcome=Outcome.ABORTED)
    with pytest.raises(LockedError) as caught:
        await session.call("fail", sent.to_wire())
    assert caught.value.to_wire() == sent.to_wire()
    assert await session.call("echo", {}) == {}


async def test_a_body_goes_up_whole(open_session: OpenSession) -> None:
    session = await open_session()
    pieces = [bytes([n % 256]) * (1 + n * 997 % MIB) for n in range(80)]
    crc = 0
    async with await session.request("take", {}, body=True) as exchange:
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
            assert await exchange.send(piece)
        exchange.end()
        assert await exchange.response() == {"bytes": sum(map(len, pieces)), "crc": crc, "changed": False}


async def test_a_body_that_changed_says_so(open_session: OpenSession) -> None:
    session = await open_session()
    async with await session.request("take", {}, body=True) as exchange:
        await exchange.send(b"half")
        exchange.end(changed=True)
        assert (await exchange.response())["changed"] is True


async def test_a_body_comes_down_whole(open_session: OpenSession) -> None:
    session = await open_session()
    size = 40 * MIB + 12345
    crc = expected = 0
    pattern = bytes(range(256)) * 256
    for at in range(0, size, len(pattern)):
        expected = zlib.crc32(pattern[: size - at], expected)
    async with await session.request("give", {"size": size, "piece": 65536}) as exchange:
        async for piece in exchange.body():
            crc = zlib.crc32(piece.payload, crc)
            size -= len(piece.payload)
    assert (size, crc) == (0, expected)


async def test_bodies_both_ways_at_once(open_session: OpenSession) -> None:
    session = await open_session()
    sent, received = 24 * MIB, 0

    async with await session.request("both", {}, body=True) as exchange:

        async def send() -> None:
            for _ in range(sent // 65536):
                await exchange.send(b"\1" * 65536, Flag.NONE)
            exchange.end()

        sending = asyncio.create_task(send())
        async for piece in exchange.body():
            received += len(piece.payload)
        await sending
    assert received == sent


async def test_unread_pieces_are_bounded_by_credit(open_session: OpenSession) -> None:
    session = await open_session()
    async with await session.request("give", {"size": 64 * MIB, "piece": 65536}) as exchange:
        await exchange.response()
        held = 0
        for _ in range(50):
            await asyncio.sleep(0.01)
            held = sum(len(piece.payload) for piece in exchange._inbox)
            # Meanwhile everything else goes on.
            assert await session.call("echo", {"n": 1}) == {"n": 1}
        assert held == session.connection.limits.credit
        await exchange.receive()


async def test_a_sender_waits_for_a_taker_that_does_not_read(open_session: OpenSession) -> None:
    session = await open_session()
    async with await session.request("hang", {}, body=True) as exchange:
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while await exchange.send(b"x" * 65536):
                    sent += 65536
        assert sent == 8 * MIB  # the agent's credit, and not a byte more


async def test_an_error_in_the_middle_of_a_body_is_not_an_end(open_session: OpenSession) -> None:
    session = await open_session()
    error = {"code": "remote_storage", "message": "the disk broke"}
    got = 0
    with pytest.raises(Exception, match="the disk broke"):
        async with await session.request("give", {"size": MIB, "piece": 65536, "error": error}) as exchange:
            async for piece in exchange.body():
                got += len(piece.payload)
    assert got <= MIB


async def test_an_early_answer_stops_the_sender(open_session: OpenSession) -> None:
    session = await open_session()
    async with await session.request("early", {}, body=True) as exchange:
        sent = 0
        while await exchange.send(b"x" * MIB):
            sent += 1
            assert sent < 1000
        assert await exchange.response() == {"early": True}
    assert await session.call("echo", {}) == {}


async def test_a_cancelled_call_is_cancelled_over_there(open_session: OpenSession) -> None:
    session = await open_session()
    for _ in range(40):  # more than may be in flight: a cancelled one frees its place
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.call("hang", {}), 0.01)
    assert await session.call("count", {}) == {"cancelled": 40, "hanging": 0}


async def test_leaving_a_body_half_read_cancels_it(open_session: OpenSession) -> None:
    session = await open_session()
    async with await session.request("give", {"size": 1 << 40, "piece": 65536}) as exchange:
        async for _ in exchange.body():
            break
    assert (await session.call("count", {}))["cancelled"] == 1


async def test_news_of_a_running_request(open_session: OpenSession) -> None:
    session = await open_session()
    heard: list[str] = []
    await session.call("news", {"names": ["a", "b"]}, notice=lambda name, fields: heard.append(name))
    assert heard == ["a", "b"]


@pytest.mark.parametrize(("method", "expected"), [("die", "exit status 3"), ("kill", "killed by SIGKILL")])
async def test_an_agent_that_dies_is_named_with_its_end(
    open_session: OpenSession, method: str, expected: str
) -> None:
    session = await open_session()
    other = asyncio.create_task(session.call("hang", {}))
    with pytest.raises(LinkLostError, match=expected) as caught:
        await session.call(method, {"status": 3})
    if method == "die":
        assert "about to die of an exit" in caught.value.message
    with pytest.raises(LinkLostError, match=expected):
        await other
    with pytest.raises(LinkLostError, match=expected):
        await session.call("echo", {})


async def test_bytes_that_are_no_frame_end_the_session(open_session: OpenSession) -> None:
    session = await open_session()
    with pytest.raises(RemoteProtocolError, match="bad frame"):
        await session.call("garbage", {})


async def test_silence_ends_the_session(open_session: OpenSession) -> None:
    session = await open_session(heartbeat_every=0.1, silence_limit=0.6)
    await asyncio.sleep(1.2)  # only heartbeats: no silence
    started = time.monotonic()
    with pytest.raises(LinkLostError, match="nothing was heard"):
        await session.call("mute", {})
    assert 0.4 < time.monotonic() - started < 3


async def test_a_loop_that_stood_still_is_no_silence(open_session: OpenSession) -> None:
    session = await open_session(heartbeat_every=0.2, silence_limit=1.0)
    await session.call("echo", {})
    time.sleep(3.5)  # noqa: ASYNC251 - what a machine that slept looks like
    await asyncio.sleep(0.3)
    assert await session.call("echo", {"n": 1}) == {"n": 1}


async def test_stderr_is_drained_and_its_end_kept(open_session: OpenSession) -> None:
    session = await open_session()
    await asyncio.wait_for(session.call("shout", {"bytes": 8 * MIB}), 10)
    assert len(bytes(session.transport.stderr)) == 64 * 1024


async def test_closing_is_quick_and_leaves_nothing(open_session: OpenSession) -> None:
    session = await open_session()
    started = time.monotonic()
    await session.close()
    assert time.monotonic() - started < 0.3
    assert session.transport._child.poll() == 0  # type: ignore[attr-defined]
    await session.close()
    with pytest.raises(LinkLostError, match="closed by this side"):
        await session.call("echo", {})

"""The driver of one connection to an agent: it moves the bytes, keeps the time, and wakes who waits.

Everything runs on one event loop, which must not be blocked for long: the
heartbeats come from it. What the rules of the wire are stands in
:mod:`protocol.connection`.

Memory is bounded by credit: at most ``Limits.credit`` bytes of a body lie
here unread, and a sender waits while ``QUEUE_ENOUGH`` bytes wait to be sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from dsg_client.remote.exchange import Bell, Exchange, Notice, fresh
from dsg_client.remote.transport import Transport
from protocol.connection import QUEUE_ENOUGH, Connection
from protocol.errors import DsgError, LinkLostError, LocalProtocolError
from protocol.paths import escape
from protocol.wire_events import (
    BodyEnded,
    CreditReceived,
    DataReceived,
    ErrorReceived,
    Failed,
    GoodbyeReceived,
    NoticeReceived,
    RequestDropped,
    ResponseReceived,
    WireEvent,
)

__all__ = ["AgentSession"]

HEARTBEAT_EVERY = 10.0
SILENCE_LIMIT = 60.0
# A tick this late means that this side's loop stood still: what the other side sent is still unread.
LATE = 2.0


class AgentSession:
    """Requests to one agent over one transport.

    The first failure of the connection ends it: every call, now and later,
    raises that error.
    """

    def __init__(
        self,
        transport: Transport,
        connection: Connection,
        *,
        heartbeat_every: float = HEARTBEAT_EVERY,
        silence_limit: float = SILENCE_LIMIT,
    ) -> None:
        self.transport = transport
        self.connection = connection
        self._loop = asyncio.get_running_loop()
        self._exchanges: dict[int, Exchange] = {}
        self._failure: DsgError | None = None
        self._closed = False
        self._flush_planned = False
        self.room = Bell()  # something left the queue
        self._waiting: deque[asyncio.Future[None]] = deque()  # for a request's place
        self._heartbeat_every = heartbeat_every
        self._silence_limit = silence_limit
        self._last_heard = self._expected_tick = time.monotonic()
        self._ending: asyncio.Task[None] | None = None
        self._ticking = self._loop.call_soon(self._tick)
        transport.attach(self)
        self.plan_flush()

    @property
    def failure(self) -> DsgError | None:
        """Why the session ended, when it has."""
        return self._failure

    @property
    def is_open(self) -> bool:
        """Whether anything may still be sent; False a moment before ``failure`` is known."""
        return self._failure is None and self.connection.failure is None

    @property
    def features(self) -> frozenset[str]:
        """What both sides agreed on."""
        return self.connection.features

    async def call(
        self, method: str, params: Mapping[str, Any], *, notice: Notice | None = None
    ) -> dict[str, Any]:
        """One request without bodies; the answer's fields.

        Raises what the agent answered with, or the connection's failure. A
        cancelled call cancels the request.
        """
        async with await self.request(method, params, notice=notice) as exchange:
            fields = await exchange.response()
            if exchange.has_body:
                raise LocalProtocolError(f"{method} answered with a body, which this call does not take")
            return fields

    async def request(
        self, method: str, params: Mapping[str, Any], *, body: bool = False, notice: Notice | None = None
    ) -> Exchange:
        """Issue a request, waiting while too many are in flight; to be used with ``async with``.

        ``body``: ``send`` and ``end`` follow. ``notice`` is called with the
        agent's news of the running request.
        """
        await self._place()
        stream = self.connection.send_request(method, dict(params), body=body)
        exchange = self._exchanges[stream] = Exchange(self, stream, method, notice)
        self.plan_flush()
        return exchange

    async def _place(self) -> None:
        """Wait, in turn, until one more request may be issued."""
        if self._waiting or not self.connection.can_request:
            while True:
                self._check()
                place: asyncio.Future[None] = self._loop.create_future()
                self._waiting.append(place)
                try:
                    await place
                except asyncio.CancelledError:
                    if place.done() and not place.cancelled():
                        self._free_places()  # it was this one's turn: pass it on
                    raise
                if self.connection.can_request or self._failure is not None:
                    break
        self._check()

    def _free_places(self) -> None:
        count = len(self._waiting) if self._failure is not None else self.connection.can_request
        while count > 0 and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                count -= 1

    async def close(self, *, undoing: bool = False) -> None:
        """Say goodbye and let go. Repeatable, never raises.

        A request in flight is lost. A remote agent ends by itself when it
        sees the end of its input, whether or not anyone waits for it;
        ``undoing`` waits, up to 5 s, for one that may have something to undo.
        """
        if not self._closed:
            self._closed = True
            self._ticking.cancel()
            if self._failure is None:
                self.connection.send_goodbye()
                while not self.transport.congested and (pieces := self.connection.bytes_to_send()):
                    self.transport.write(pieces)
                self._fail(LinkLostError("the connection to the agent was closed by this side"))
        await self.transport.close(undoing=undoing)
        if self._ending is not None:
            self._ending.cancel()

    # What the transport tells.

    def received(self, chunk: bytes) -> None:
        self._last_heard = time.monotonic()
        for event in self.connection.receive(chunk):
            self._take(event)
        self.plan_flush()

    def writable(self) -> None:
        self._flush()

    def ended(self, error: Exception | None) -> None:
        for event in self.connection.receive_eof():
            if not isinstance(event, Failed):
                self._take(event)
        if self._failure is None and self._ending is None:
            self._ending = self._loop.create_task(self._explain_end(error))

    async def _explain_end(self, error: Exception | None) -> None:
        status = await self.transport.exit_status(1.0)
        stderr = bytes(self.transport.stderr)
        self._fail(_lost(self.transport.name, error, str(status) if status else "", stderr))
        self.transport.abort()

    # Inside.

    def _take(self, event: WireEvent) -> None:
        match event:
            case DataReceived() | ResponseReceived() | BodyEnded() | ErrorReceived() | NoticeReceived():
                exchange = self._exchanges.get(event.stream)
                if exchange is not None:
                    exchange.take(event)
            case CreditReceived():
                exchange = self._exchanges.get(event.stream)
                if exchange is not None:
                    exchange.credit.ring()
            case RequestDropped():
                self._free_places()
            case GoodbyeReceived():
                if event.error is not None:
                    self._fail(event.error)
            case Failed():
                self._fail(event.error)
                self._flush()  # tells the other side why
                self.transport.abort()
            case _:  # what only an agent hears
                pass

    def _check(self) -> None:
        if self._failure is not None:
            raise fresh(self._failure)

    def _fail(self, error: DsgError) -> None:
        if self._failure is None:
            self._failure = error
            self._ticking.cancel()
            for exchange in list(self._exchanges.values()):
                exchange.fail(error)
            self._exchanges.clear()
            self.room.ring()
            self._free_places()

    def plan_flush(self) -> None:
        """Send what is queued, soon."""
        # Not at once: what is queued in the same turn of the loop travels together.
        if not self._flush_planned and self.connection.queued:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        transport, connection = self.transport, self.connection
        while not transport.congested:
            pieces = connection.bytes_to_send()
            if not pieces:
                break
            transport.write(pieces)
        if connection.queued < QUEUE_ENOUGH:
            self.room.ring()

    def _tick(self) -> None:
        now = time.monotonic()
        late = now - self._expected_tick
        if now - self._last_heard > self._silence_limit and late < LATE:
            self._fail(
                LinkLostError(
                    f"nothing was heard from {self.transport.name} for {self._silence_limit:.0f} s",
                    hint="check the network; the agent undoes an unfinished transaction by itself",
                    facts={"silence": self._silence_limit},
                )
            )
            self.transport.abort()
            return
        self.connection.send_heartbeat()
        self.plan_flush()
        pause = min(self._heartbeat_every, self._silence_limit / 4)
        self._expected_tick = now + pause
        self._ticking = self._loop.call_later(pause, self._tick)

    def over(self, exchange: Exchange) -> None:
        """An exchange needs nothing more."""
        if self._exchanges.pop(exchange.stream, None) is not None:
            self._free_places()


def _lost(name: str, error: Exception | None, status: str, stderr: bytes) -> LinkLostError:
    words = [escape(line) for line in stderr.decode("utf-8", "surrogateescape").splitlines() if line.strip()]
    facts: dict[str, Any] = {"status": status, "stderr": words[-20:]}
    if status:
        message = f"the agent on {name} died: it {status}"
        hint = "the agent's log tells more (agent option --log-file); then run the command again"
    else:
        why = f" ({escape(str(error))})" if error is not None and str(error) else ""
        message = f"the connection to {name} was lost{why}"
        hint = "check the network, then run the command again"
    if words:
        message += f"; its last words: {words[-1][:300]}"
    return LinkLostError(message, hint=hint, facts=facts)

"""One request to an agent and its answer, with a body each way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from protocol.codec import Buffer
from protocol.connection import QUEUE_ENOUGH, cost
from protocol.errors import DsgError, LocalProtocolError
from protocol.framing import Flag
from protocol.wire_events import BodyEnded, DataReceived, ErrorReceived, NoticeReceived, ResponseReceived

if TYPE_CHECKING:
    from dsg_client.remote.session import AgentSession

__all__ = ["Bell", "Exchange", "Notice", "fresh"]

Notice = Callable[[str, dict[str, Any]], None]


class Exchange:
    """One request and its answer. Leaving the context cancels whatever of it is not over."""

    def __init__(self, session: AgentSession, stream: int, method: str, notice: Notice | None) -> None:
        self.stream = stream
        self.method = method
        self.has_body = False  # the answer's; known after ``response``
        self.changed = False  # the agent found that a file changed while it sent it; known at the body's end
        self._session = session
        self._notice = notice
        self._fields: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._inbox: deque[DataReceived] = deque()
        self.credit = Bell()
        self._news = Bell()

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self, *, changed: bool = False, because: BaseException | None = None) -> None:
        """Give the request up; nothing happens when it is over.

        ``changed``: a file being sent changed. ``because``: what ``response``
        and ``receive`` raise from now on.
        """
        session = self._session
        if session.is_open and not self._is_over():
            session.connection.cancel(self.stream, changed=changed)
            session.plan_flush()
        if self._error is None and not self._is_over():
            self._error = because or LocalProtocolError(f"{self.method} was cancelled by this side")
            self._ended = True
        self._inbox.clear()
        session.over(self)
        self.credit.ring()
        self._news.ring()

    async def send(self, payload: Buffer, flags: Flag = Flag.NONE) -> bool:
        """Send a piece of the body (1 byte to 1 MiB), waiting for credit and room.

        ``payload`` must not change afterwards. False when nobody wants more
        of it: ``response`` tells why.
        """
        session, connection = self._session, self._session.connection
        need = cost(payload)
        while True:
            if session.failure is not None or self._error is not None:
                return False
            room = connection.can_send(self.stream)
            if room is None:
                return False
            if room < need:
                await self.credit.wait()
            elif connection.queued > QUEUE_ENOUGH:
                await session.room.wait()
            else:
                connection.send_data(self.stream, payload, flags)
                session.plan_flush()
                return True

    def end(self, *, changed: bool = False) -> None:
        """The body is over; ``changed``: not as announced, for a file changed while it was sent."""
        if self._session.is_open and self._error is None:
            self._session.connection.send_end(self.stream, changed=changed)
            self._session.plan_flush()

    async def response(self) -> dict[str, Any]:
        """The answer's fields; raises the agent's error or the connection's failure."""
        while self._fields is None:
            if self._error is not None:
                raise fresh(self._error)
            await self._news.wait()
        return self._fields

    def raise_failure(self) -> None:
        """Raise the agent's error, or the connection's failure, when it is known."""
        if self._error is not None:
            raise fresh(self._error)

    async def receive(self) -> DataReceived | None:
        """The next piece of the answer's body, None at its end; give each to ``consumed``.

        Raises the agent's error, or the connection's failure, as soon as it is
        known: a body that breaks off is never taken for whole.
        """
        while True:
            if self._error is not None:
                raise fresh(self._error)
            if self._inbox:
                return self._inbox.popleft()
            if self._ended:
                return None
            await self._news.wait()

    def consumed(self, piece: DataReceived) -> None:
        """Give back the credit of a piece that needs memory no more."""
        if self._session.is_open:
            self._session.connection.consumed(piece)
            self._session.plan_flush()

    async def body(self) -> AsyncIterator[DataReceived]:
        """The pieces of the answer's body; each counts as consumed when the next is asked for."""
        await self.response()
        while (piece := await self.receive()) is not None:
            yield piece
            self.consumed(piece)

    def _is_over(self) -> bool:
        return self._ended

    def take(
        self, event: DataReceived | ResponseReceived | BodyEnded | ErrorReceived | NoticeReceived
    ) -> None:
        match event:
            case DataReceived():
                self._inbox.append(event)
            case NoticeReceived():
                if self._notice is not None:
                    try:
                        self._notice(event.name, event.fields)
                    except Exception as error:  # noqa: BLE001 - the caller's, or a notice that is none
                        self.cancel(because=error)
                return
            case ResponseReceived():
                self._fields = event.fields
                self.has_body = event.has_body
                if not event.has_body:
                    self._finish()
            case BodyEnded():
                self.changed = event.changed
                self._finish()
            case ErrorReceived():
                self._error = event.error
                self._inbox.clear()
                self._finish()
        self._news.ring()

    def _finish(self) -> None:
        self._ended = True
        self.credit.ring()
        self._session.over(self)

    def fail(self, error: DsgError) -> None:
        if not self._ended:
            self._error = error
            self._ended = True
            self._inbox.clear()
        self.credit.ring()
        self._news.ring()


class Bell:
    """Wakes all who wait at the moment; nothing is remembered."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def ring(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)


def fresh(error: BaseException) -> BaseException:
    """The same error, fresh: one exception raised in several tasks would mix their tracebacks."""
    if not isinstance(error, DsgError):
        return error
    return type(error)(error.message, hint=error.hint, facts=error.facts, outcome=error.outcome)

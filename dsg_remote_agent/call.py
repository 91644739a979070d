"""One request as the function that answers it sees it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from protocol.codec import Buffer
from protocol.compress import inflate
from protocol.framing import MAX_PAYLOAD, Flag
from protocol.wire_events import BodyEnded, DataReceived

if TYPE_CHECKING:
    from dsg_remote_agent.session import Session

__all__ = ["Call", "Cancelled", "Gone", "Service"]


class Gone(Exception):
    """The client is gone, or this process must go: nobody waits for what is being done."""


class Cancelled(Exception):
    """The client gave up this request."""

    def __init__(self, changed: bool) -> None:
        super().__init__("the client gave up this request")
        self.changed = changed


class Service(Protocol):
    """What answers the requests of a session; called from its worker thread only."""

    def answer(self, call: Call) -> None:
        """Run one request: respond exactly once, or raise."""
        ...

    def close(self) -> None:
        """Abort what is open and let every lock go."""
        ...


class Call:
    """One request as its method sees it."""

    def __init__(
        self, session: Session, stream: int, method: str, params: dict[str, Any], has_body: bool
    ) -> None:
        self.session = session
        self.stream = stream
        self.method = method
        self.params = params
        self.has_body = has_body
        self.inbox: deque[DataReceived | BodyEnded] = deque()
        self.cancelled: Cancelled | None = None
        self.answered = False
        self.answered_at = 0.0  # by time.monotonic()
        self.changed = False  # the body ended, and its sender found that a file changed
        self._ended = False

    def payloads(self) -> Iterator[Buffer]:
        """The pieces of the request's body, inflated; each is given back when the next is asked for.

        Raises Gone or Cancelled when there will be no more of them.
        """
        while self.has_body and not self._ended:
            event = self.session.take(self)
            if isinstance(event, BodyEnded):
                self._ended = True
                self.changed = event.changed
                return
            yield inflate(event.payload, event.flags, MAX_PAYLOAD)
            self.session.give_back(event)

    def respond(self, fields: dict[str, Any], *, body: bool = False) -> None:
        """Answer; with ``body``, :meth:`send` and :meth:`end` follow."""
        self.answered, self.answered_at = True, time.monotonic()
        self.session.queue(lambda conn: conn.send_response(self.stream, fields, body=body))

    def send(self, payload: Buffer, flags: Flag = Flag.NONE) -> None:
        """Send a piece of the answer's body, waiting for the client's credit. Raises Gone or Cancelled."""
        self.session.send(self, payload, flags)

    def end(self, *, changed: bool = False) -> None:
        """End the answer's body."""
        self.session.queue(lambda conn: conn.send_end(self.stream, changed=changed))

    def notice(self, name: str, fields: dict[str, Any]) -> None:
        """Tell the client news of this request."""
        self.session.queue(lambda conn: conn.send_notice(self.stream, name, fields))

    @property
    def compression(self) -> str:
        """The algorithm for the answer's body."""
        return self.session.compression

    def check(self) -> None:
        """Raise Gone or Cancelled when nobody waits for the answer any more."""
        self.session.check(self)

    def warn(self, event: str, **facts: Any) -> None:
        """Put something into the server's log that an administrator should know."""
        self.session.warn(event, **facts)

    def wait_sent(self) -> None:
        """Wait, for a while, until all that was answered so far has left this process."""
        self.session.wait_sent()

    def proceed(self) -> None:
        """Called just before a decision: raises Gone when nobody waits for it, else it will be finished."""
        self.session.proceed()

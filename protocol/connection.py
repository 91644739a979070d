"""One connection, sans-I/O: bytes in, events out; requests in, bytes out.

The rules, in words:

- Only the client issues requests. Each stands on its own stream: 1, 3, 5, ...
- A request has two halves. The client's is the REQUEST, and with HAS_BODY
  DATA frames until END. The agent's is any number of EVENTs, then one
  RESPONSE, and with HAS_BODY DATA frames until END; or one ERROR, at any time
  before its half is over. A request is over when both halves are.
- The agent may answer before the client's body is whole. Once the agent's
  half is over, nobody reads the rest: the client ends its half by RESET.
- RESET from the client also cancels: the client passes over what still
  comes, and the agent still ends its half, so that both count alike. A RESET
  or CREDIT that crossed the end of its request is passed over.
- A body's sender has credit, at first what the other side's limits say. A
  DATA frame costs its length, at least 1 KiB; CREDIT gives back what was
  consumed. Who sends without credit, or gives more than was spent, fails.
- At most ``in_flight`` requests are not yet over.
- The first frame is the client's HELLO; GOODBYE is a side's last.
- What breaks a rule fails the connection: the last event is Failed, the other
  side is told by a GOODBYE with the error, and nothing more is read.

A driver has one ``Connection``, and calls it from one thread at a time (an
event loop, or under one lock: no call blocks or does I/O)::

    conn = Connection.client(preamble, version, {"zstd"})  # agent: Connection.agent(features, limits)
    stream = conn.send_request("files.get", {...}, body=True)
    if (room := conn.can_send(stream)) is not None and room >= cost(payload):
        conn.send_data(stream, payload)                    # else wait for CreditReceived
    conn.send_end(stream)

    while pieces := conn.bytes_to_send():                  # the writer; heartbeats overtake data here
        transport.writelines(pieces); await transport.drain()

    for event in conn.receive(transport.read()):           # the reader; at the end: conn.receive_eof()
        match event:
            case DataReceived():
                inboxes[event.stream].put(event)           # the consumer calls conn.consumed(event)
            case ...

After any ``send_*``, ``consumed``, ``receive`` or ``receive_eof`` there may be
bytes to send. A producer waits while ``conn.queued`` is above ``QUEUE_ENOUGH``,
so that memory is bounded and a heartbeat never stands behind much data. The
silence clock is the driver's: any received byte resets it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from protocol.codec import Buffer, pack, unpack
from protocol.errors import (
    DsgError,
    LinkLostError,
    LocalProtocolError,
    RemoteProtocolError,
    VersionError,
    error_from_wire,
)
from protocol.framing import LONGEST, MAX_PAYLOAD, Flag, Frame, FrameReader, FrameType
from protocol.outbox import Outbox, error_fields
from protocol.preamble import Hello, Limits, Preamble, hello_fields
from protocol.streams import Endpoint, Half, Stream, cost
from protocol.wire_events import (
    DataReceived,
    Failed,
    GoodbyeReceived,
    HelloReceived,
    RequestReceived,
    WireEvent,
)

__all__ = ["QUEUE_ENOUGH", "Connection", "Endpoint", "cost"]

QUEUE_ENOUGH = 4 * 1024 * 1024
_LAST_STREAM = 0xFFFFFFFF

_BOTH_HEAR = {FrameType.DATA, FrameType.END, FrameType.CREDIT, FrameType.HEARTBEAT, FrameType.GOODBYE}
_HEARD_BY = {
    Endpoint.CLIENT: frozenset(_BOTH_HEAR | {FrameType.RESPONSE, FrameType.ERROR, FrameType.EVENT}),
    Endpoint.AGENT: frozenset(_BOTH_HEAR | {FrameType.HELLO, FrameType.REQUEST, FrameType.RESET}),
}


class Connection:
    """The state of one side. See the module's text for the rules and for how a driver uses it.

    ``receive`` never raises for what the other side does: it ends its events
    with ``Failed``. ``send_*`` raise LocalProtocolError for what the rules do
    not allow now, and the connection's own failure once it has failed;
    neither changes any state.
    """

    def __init__(self, endpoint: Endpoint, limits: Limits, features: Iterable[str] = ()) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self.features = frozenset(features)  # in use by both sides; an agent's: offered, until HELLO
        self.failure: DsgError | None = None
        self._theirs = Limits()
        self._reader = FrameReader()
        self._out = Outbox()
        self._streams: dict[int, Stream] = {}
        self._next_stream = 1
        self._greeted = endpoint is Endpoint.CLIENT
        self._leaving = False  # GOODBYE sent or queued
        self._left = False  # GOODBYE received

    @classmethod
    def client(
        cls, preamble: Preamble, version: str, features: Iterable[str] = (), limits: Limits | None = None
    ) -> Connection:
        """The client's side, its HELLO queued. ``features``: wanted; used are those the agent has too.

        VersionError when the agent speaks other protocols only.
        """
        preamble.check_version()
        made = cls(Endpoint.CLIENT, limits or Limits(), preamble.features & frozenset(features))
        made._theirs = preamble.limits
        made._out.first(FrameType.HELLO, pack(hello_fields(version, made.features, made.limits)))
        return made

    @classmethod
    def agent(cls, features: Iterable[str] = (), limits: Limits | None = None) -> Connection:
        """The agent's side, with the features and limits of its preamble."""
        return cls(Endpoint.AGENT, limits or Limits(), features)

    # What to send, and how much of it.

    @property
    def queued(self) -> int:
        """Bytes waiting to be sent."""
        return self._out.size

    @property
    def open_requests(self) -> int:
        """Requests that are not over."""
        return len(self._streams)

    @property
    def can_request(self) -> int:
        """How many more requests may be issued now."""
        if self.endpoint is not Endpoint.CLIENT or self._leaving or self._left or self.failure:
            return 0
        return max(0, self._theirs.in_flight - len(self._streams))

    def can_send(self, stream: int) -> int | None:
        """The credit of this side's body on ``stream``; None when it takes no more, for whatever reason."""
        found = self._streams.get(stream)
        return None if found is None else found.room

    def bytes_to_send(self, at_most: int = MAX_PAYLOAD) -> list[Buffer]:
        """The next frames for the transport, in order, as pieces; empty when there are none.

        Heartbeats and control first, all of them; then DATA until ``at_most``
        bytes are reached, at least one frame. Payloads are not copied.
        """
        return self._out.take(at_most)

    def send_heartbeat(self) -> None:
        """Show that this side lives. Nothing when one waits already, or after the end."""
        if not self._leaving and self.failure is None:
            self._out.heartbeat()

    def send_goodbye(self, error: DsgError | None = None) -> None:
        """Send what is queued, then nothing more; ``error`` says why when this side gives up."""
        if not self._leaving and self.failure is None:
            self._leaving = True
            self._out.last(error)

    # The client's requests.

    def send_request(self, method: str, params: dict[str, Any], *, body: bool = False) -> int:
        """Issue a request and return its stream. LocalProtocolError when ``can_request`` is 0."""
        self._must_be_open()
        if self.endpoint is not Endpoint.CLIENT:
            raise LocalProtocolError("only the client issues requests")
        if self._left or len(self._streams) >= self._theirs.in_flight:
            raise LocalProtocolError(f"{len(self._streams)} requests are in flight already; no more now")
        stream = self._next_stream
        if stream > _LAST_STREAM:
            raise LocalProtocolError("this connection has no stream numbers left")
        payload = self._pack(FrameType.REQUEST, {"method": method, "params": params})
        self._out.control(FrameType.REQUEST, Flag.HAS_BODY if body else Flag.NONE, stream, payload)
        self._next_stream += 2
        self._streams[stream] = self._open(stream, Half.BODY if body else Half.OVER, Half.WAITING)
        return stream

    def cancel(self, stream: int, *, changed: bool = False) -> None:
        """Give up a request: nothing more of it is sent, nothing that comes is told but RequestDropped.

        Nothing happens when it is over. ``changed``: because a file being sent changed.
        """
        self._must_be_open()
        if self.endpoint is not Endpoint.CLIENT:
            raise LocalProtocolError("only the client cancels; an agent answers with an error")
        found = self._streams.get(stream)
        if found is not None and not found.cancelled:
            found.cancelled = True
            found.reset(changed=changed)

    # The agent's answers.

    def send_response(self, stream: int, fields: dict[str, Any], *, body: bool = False) -> None:
        """Answer a request; with ``body``, ``send_data`` and ``send_end`` follow."""
        found = self._answering(stream)
        if found.sending is not Half.WAITING:
            raise LocalProtocolError(f"request {stream} has a response already")
        payload = self._pack(FrameType.RESPONSE, fields)
        self._out.control(FrameType.RESPONSE, Flag.HAS_BODY if body else Flag.NONE, stream, payload)
        found.sending = Half.BODY if body else Half.OVER
        self._retire(found)

    def send_error(self, stream: int, error: DsgError) -> None:
        """End a request with an error, even amid its response's body (what waits of that is dropped)."""
        found = self._answering(stream)
        self._out.drop(stream)
        self._out.control(
            FrameType.ERROR, Flag.NONE, stream, pack(error_fields(error, LONGEST[FrameType.ERROR]))
        )
        found.sending = Half.OVER
        self._retire(found)

    def send_notice(self, stream: int, name: str, fields: dict[str, Any]) -> None:
        """Tell news of a running request."""
        self._answering(stream)
        payload = self._pack(FrameType.EVENT, {"name": name, "fields": fields})
        self._out.control(FrameType.EVENT, Flag.NONE, stream, payload)

    # Bodies, both ways.

    def send_data(self, stream: int, payload: Buffer, flags: Flag = Flag.NONE) -> None:
        """Send a piece of a body (1 byte to 1 MiB), which must not change until it has been sent.

        LocalProtocolError when ``can_send`` is None or less than its :func:`cost`.
        """
        self._must_be_open()
        room = self.can_send(stream)
        if room is None:
            raise LocalProtocolError(f"request {stream} takes no more data")
        if not 0 < len(payload) <= MAX_PAYLOAD:
            raise LocalProtocolError(f"a DATA frame of {len(payload)} bytes")
        if cost(payload) > room:
            raise LocalProtocolError(f"request {stream} has credit for {room} bytes, not for {cost(payload)}")
        self._streams[stream].credit -= cost(payload)
        self._out.data(FrameType.DATA, flags, stream, payload)

    def send_end(self, stream: int, *, changed: bool = False) -> None:
        """End this side's body. Nothing happens when nobody wants it any more (``can_send`` is None)."""
        self._must_be_open()
        found = self._streams.get(stream)
        if found is None or found.sending is not Half.BODY:
            if stream >= self._next_stream or (found is not None and found.sending is Half.WAITING):
                raise LocalProtocolError(f"request {stream} has no body to end")
            return
        self._out.data(FrameType.END, Flag.CHANGED if changed else Flag.NONE, stream, b"")
        found.sending = Half.OVER
        self._retire(found)

    def consumed(self, event: DataReceived) -> None:
        """Give back the credit of a piece that needs memory no more. Nothing when its request is over."""
        found = self._streams.get(event.stream)
        if found is not None and not self._leaving:
            found.consumed(event.payload)

    # Receiving.

    def receive(self, data: Buffer) -> list[WireEvent]:
        """The events of the next bytes; the same however the stream is cut in pieces."""
        events: list[WireEvent] = []
        if self.failure is not None:
            return events
        hear = self._hear
        try:
            for frame in self._reader.receive(data):
                event = hear(frame)
                if event is not None:
                    events.append(event)
            if self._reader.failure is not None:
                raise self._reader.failure
        except (RemoteProtocolError, VersionError) as error:
            events.append(self._fail(error, tell=True))
        return events

    def receive_eof(self) -> list[WireEvent]:
        """The other side closed, or the transport died.

        No event when it had said GOODBYE, or this side had and no request is
        open; else Failed with LinkLostError.
        """
        through = self._left or (self._leaving and not self._streams)
        if self.failure is not None or (through and self._reader.between_frames):
            return []
        side = "agent" if self.endpoint is Endpoint.CLIENT else "client"
        where = "" if self._reader.between_frames else ", in the middle of a message"
        return [self._fail(LinkLostError(f"the connection to the {side} ended without a goodbye{where}"))]

    def _fail(self, error: RemoteProtocolError | VersionError | LinkLostError, tell: bool = False) -> Failed:
        self.failure = error
        self._out.clear()
        if tell and not self._leaving:
            self._out.last(error)
        self._leaving = True
        self._streams.clear()
        return Failed(error)

    def _hear(self, frame: Frame) -> WireEvent | None:
        kind = frame.type
        if kind not in _HEARD_BY[self.endpoint]:
            raise RemoteProtocolError(f"the {self.endpoint.value} got a {FrameType(kind).name} frame")
        if self._left:
            raise RemoteProtocolError(f"a {FrameType(kind).name} frame came after GOODBYE")
        if not self._greeted:
            return self._hear_hello(frame)
        if kind == FrameType.HEARTBEAT:
            return None
        if kind == FrameType.GOODBYE:
            return self._hear_goodbye(frame)
        if kind == FrameType.REQUEST:
            return self._hear_request(frame)
        if kind == FrameType.HELLO:
            raise RemoteProtocolError("a second HELLO came")
        found = self._streams.get(frame.stream)
        if found is None:
            opened = frame.stream % 2 == 1 and frame.stream < self._next_stream
            if opened and kind in (FrameType.RESET, FrameType.CREDIT):
                return None
            raise RemoteProtocolError(
                f"a {FrameType(kind).name} frame came for stream {frame.stream}, not open"
            )
        if frame.flags & Flag.ZSTD and "zstd" not in self.features:
            raise RemoteProtocolError("a DATA frame is compressed by zstd, which was not agreed on")
        event = found.hear(frame)
        self._retire(found)
        return event

    def _hear_hello(self, frame: Frame) -> WireEvent:
        if frame.type != FrameType.HELLO:
            raise RemoteProtocolError(f"the first frame is {FrameType(frame.type).name}, not HELLO")
        hello = Hello.from_wire(unpack(frame.payload))
        if not hello.features <= self.features:
            raise RemoteProtocolError("the client chose features that were not offered")
        self._greeted = True
        self.features = hello.features
        self._theirs = hello.limits
        return HelloReceived(hello)

    def _hear_goodbye(self, frame: Frame) -> WireEvent:
        error = unpack(frame.payload).get("error")
        if error is not None and not isinstance(error, dict):
            raise RemoteProtocolError("a GOODBYE whose error is not a map came")
        self._left = True
        return GoodbyeReceived(None if error is None else error_from_wire(error))

    def _hear_request(self, frame: Frame) -> WireEvent:
        if frame.stream != self._next_stream:
            raise RemoteProtocolError(
                f"a request came on stream {frame.stream}, expected on {self._next_stream}"
            )
        if len(self._streams) >= self.limits.in_flight:
            raise RemoteProtocolError(f"more than {self.limits.in_flight} requests in flight")
        found = unpack(frame.payload)
        method, params = found.get("method"), found.get("params")
        if not isinstance(method, str) or not isinstance(params, dict) or len(found) != 2:
            raise RemoteProtocolError("a REQUEST does not hold a method and its parameters")
        has_body = bool(frame.flags & Flag.HAS_BODY)
        receiving = Half.BODY if has_body else Half.OVER
        self._streams[frame.stream] = self._open(frame.stream, Half.WAITING, receiving)
        self._next_stream += 2
        return RequestReceived(frame.stream, method, params, has_body)

    def _open(self, stream: int, sending: Half, receiving: Half) -> Stream:
        spendable, grantable = self._theirs.credit, self.limits.credit
        return Stream(stream, self.endpoint, sending, receiving, spendable, grantable, self._out)

    def _retire(self, found: Stream) -> None:
        if found.over:
            del self._streams[found.number]

    def _answering(self, stream: int) -> Stream:
        self._must_be_open()
        if self.endpoint is not Endpoint.AGENT:
            raise LocalProtocolError("only the agent answers")
        found = self._streams.get(stream)
        if found is None or found.sending is Half.OVER:
            raise LocalProtocolError(f"request {stream} is not waiting for an answer")
        return found

    def _must_be_open(self) -> None:
        if self.failure is not None:
            # A new one each time: raised in several threads, one exception would mix their tracebacks.
            raise type(self.failure)(self.failure.message, hint=self.failure.hint, facts=self.failure.facts)
        if self._leaving:
            raise LocalProtocolError("this side has said goodbye")

    def _pack(self, kind: FrameType, fields: dict[str, Any]) -> bytes:
        payload = pack(fields)
        if len(payload) > LONGEST[kind]:
            raise LocalProtocolError(
                f"a {kind.name} frame of {len(payload)} bytes, more than {LONGEST[kind]}"
            )
        return payload

"""Frames made and read without the code under test, and two connections joined by a slow wire."""

from __future__ import annotations

import struct
import zlib
from random import Random
from typing import Any

import msgpack

from protocol.connection import Connection, Endpoint, cost
from protocol.errors import DsgError
from protocol.preamble import Limits, Preamble
from protocol.wire_events import (
    BodyEnded,
    CreditReceived,
    DataReceived,
    ErrorReceived,
    Failed,
    GoodbyeReceived,
    RequestCancelled,
    RequestReceived,
    ResponseReceived,
    WireEvent,
)

HELLO, REQUEST, RESPONSE, ERROR, DATA, END, RESET, CREDIT, HEARTBEAT, GOODBYE, EVENT = range(1, 12)
HAS_BODY, ZLIB, ZSTD, CHANGED = 1, 2, 4, 8


def frame(kind: int, stream: int = 0, payload: bytes | dict[str, Any] = b"", flags: int = 0) -> bytes:
    """One frame, from the document."""
    content = payload if isinstance(payload, bytes) else msgpack.packb(payload)
    start = b"\xd5G" + struct.pack(">BBII", kind, flags, stream, len(content))
    return start + struct.pack(">I", zlib.crc32(start)) + content


def frames(data: bytes) -> list[tuple[int, int, int, Any]]:
    """(type, flags, stream, payload) of each frame; control payloads decoded."""
    found = []
    while data:
        magic, kind, flags, stream, length, check = struct.unpack(">2sBBIII", data[:16])
        assert magic == b"\xd5G"
        assert check == zlib.crc32(data[:12])
        payload: Any = data[16 : 16 + length]
        assert len(payload) == length
        if kind not in (DATA, END, RESET, HEARTBEAT):
            payload = msgpack.unpackb(payload)
        found.append((kind, flags, stream, payload))
        data = data[16 + length :]
    return found


def hello(**fields: Any) -> bytes:
    """A client's HELLO."""
    return frame(HELLO, 0, {"dsg": "0.1", "protocol": 1, "features": [], "limits": {}, **fields})


def request(stream: int, flags: int = 0, **params: Any) -> bytes:
    """A REQUEST."""
    return frame(REQUEST, stream, {"method": "repo.open", "params": params}, flags)


def client(
    features: set[str] | None = None, limits: Limits | None = None, theirs: Limits | None = None
) -> Connection:
    """A client's connection, its HELLO not yet sent."""
    preamble = Preamble(dsg="0.1", features=frozenset(features or ()), limits=theirs or Limits())
    return Connection.client(preamble, "0.1", features or (), limits)


def sent(connection: Connection) -> bytes:
    """All bytes that wait."""
    data = b""
    while pieces := connection.bytes_to_send():
        data += b"".join(pieces)
    return data


def plain(event: WireEvent) -> Any:
    """``event`` in a form in which equal ones are equal: exceptions by their content."""
    if isinstance(event, Failed):
        return "failed", type(event.error).__name__, event.error.message
    if isinstance(event, ErrorReceived):
        return "error", event.stream, event.error.to_wire()
    if isinstance(event, GoodbyeReceived):
        return "goodbye", event.error and event.error.to_wire()
    if isinstance(event, DataReceived):
        return "data", event.stream, bytes(event.payload), event.flags
    return event


class Body:
    """A body on its way, as its sender and its receiver see it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.end_sent: bool | None = None  # the CHANGED flag
        self.end_received: bool | None = None
        self.given_up = False  # the sender was told, or told the other side, that it is not wanted


class Party:
    """One side of a session played at random: what its driver would know."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events: list[WireEvent] = []
        self.inbox: list[DataReceived] = []
        self.wire = bytearray()  # what it sent and the other side has not received
        self.log: list[tuple[str, Any]] = []  # ("receive", bytes) and ("call", (name, args, kwargs))

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the connection, and remember it for a replay."""
        self.log.append(("call", (name, args, kwargs)))
        return getattr(self.connection, name)(*args, **kwargs)

    def flush(self, at_most: int = 1 << 20) -> None:
        """Hand the next frames to the wire."""
        self.log.append(("call", ("bytes_to_send", (at_most,), {})))
        self.wire += b"".join(self.connection.bytes_to_send(at_most))


CONTENT = bytes(range(256)) * 4096


class Session:
    """A client and an agent doing at random whatever the rules allow, over a wire that delivers in pieces."""

    def __init__(self, rng: Random, in_flight: int = 3) -> None:
        limits = Limits(in_flight=in_flight, credit=2 << 20)
        self.rng = rng
        self.client = Party(client(limits=limits, theirs=limits))
        self.agent = Party(Connection.agent(limits=limits))
        self.up: dict[int, Body] = {}
        self.down: dict[int, Body] = {}
        self.answered: dict[int, str] = {}  # stream -> how the agent answered
        self.outcome: dict[int, str] = {}  # stream -> what the client was told
        self.cancelled: set[int] = set()
        self.to_answer: set[int] = set()
        self.told_cancelled: set[int] = set()

    def _send_body(self, party: Party, bodies: dict[int, Body], size: int) -> None:
        choices = [
            s for s in bodies if bodies[s].end_sent is None and party.connection.can_send(s) is not None
        ]
        if not choices:
            return
        stream = self.rng.choice(choices)
        at = self.rng.randrange(256)
        payload = CONTENT[at : at + size]
        room = party.connection.can_send(stream)
        assert room is not None
        if cost(payload) <= room:
            party.call("send_data", stream, payload)
            bodies[stream].sent.append(payload)
        if self.rng.random() < 0.2:
            bodies[stream].end_sent = self.rng.random() < 0.3
            party.call("send_end", stream, changed=bodies[stream].end_sent)
            if party is self.agent:
                self.to_answer.discard(stream)

    def act(self, winding_down: bool = False) -> None:
        """One random step of either side."""
        rng = self.rng
        size = rng.choice([1, 700, 5000, 300_000, (1 << 20) - 256])
        action = rng.randrange(12)
        if action == 0 and not winding_down and self.client.connection.can_request:
            body = rng.random() < 0.6
            stream = self.client.call("send_request", "x.y", {"n": rng.randrange(100)}, body=body)
            if body:
                self.up[stream] = Body()
        elif action == 1:
            self._send_body(self.client, self.up, size)
        elif action == 2:
            self._send_body(self.agent, self.down, size)
        elif action == 3 and rng.random() < 0.2:
            going = [s for s in range(1, self.client.connection._next_stream, 2) if s not in self.outcome]
            if going:
                stream = rng.choice(going)
                self.client.call("cancel", stream, changed=rng.random() < 0.5)
                self.cancelled.add(stream)
        elif action == 4 and self.to_answer:
            self._answer(rng.choice(sorted(self.to_answer)), winding_down)
        elif action == 5:
            party = rng.choice([self.client, self.agent])
            if party.inbox:
                event = party.inbox.pop(rng.randrange(len(party.inbox)))
                party.call("consumed", event)
        elif action == 6:
            rng.choice([self.client, self.agent]).call("send_heartbeat")
        elif action in (7, 8):
            rng.choice([self.client, self.agent]).flush(rng.choice([1, 10_000, 1 << 20]))
        else:
            self.deliver(rng.choice([10, 1000, 100_000, 1 << 22]))

    def _answer(self, stream: int, winding_down: bool) -> None:
        how = self.rng.choice(["response", "body", "error", "notice"])
        if how == "notice":
            self.agent.call("send_notice", stream, "phase", {"count": 1})
            return
        if how == "error" and self.answered.get(stream) == "body":
            self.down[stream].given_up = True
        if how != "error" and self.answered.get(stream) == "body":
            return
        self.answered[stream] = how
        if how == "error":
            self.agent.call("send_error", stream, DsgError(f"error {stream}"))
        else:
            self.agent.call("send_response", stream, {"stream": stream}, body=how == "body")
        if how == "body":
            self.down[stream] = Body()
            if winding_down and self.rng.random() < 0.5:
                self.down[stream].end_sent = False
                self.agent.call("send_end", stream)
                self.to_answer.discard(stream)
        else:
            self.to_answer.discard(stream)

    def deliver(self, size: int) -> None:
        """Let some bytes arrive at a random side."""
        sender, receiver = self.rng.choice([(self.client, self.agent), (self.agent, self.client)])
        data = bytes(sender.wire[:size])
        del sender.wire[:size]
        if not data:
            return
        receiver.log.append(("receive", data))
        for event in receiver.connection.receive(data):
            receiver.events.append(event)
            self._tell(receiver, event)

    def _tell(self, party: Party, event: WireEvent) -> None:
        assert not isinstance(event, Failed), event
        bodies = self.down if party is self.client else self.up
        match event:
            case DataReceived(stream=stream):
                party.inbox.append(event)
                bodies[stream].received.append(bytes(event.payload))
            case BodyEnded(stream=stream, changed=changed):
                bodies[stream].end_received = changed
                if party is self.client:
                    self.outcome[stream] = "body"
            case RequestReceived(stream=stream):
                self.to_answer.add(stream)
            case RequestCancelled(stream=stream):
                self.told_cancelled.add(stream)
                assert self.agent.connection.can_send(stream) is None
            case ResponseReceived(stream=stream, fields=fields, has_body=has_body):
                assert fields == {"stream": stream}
                if not has_body:
                    self.outcome[stream] = "response"
            case ErrorReceived(stream=stream, error=error):
                assert error.message == f"error {stream}"
                self.outcome[stream] = "error"
            case CreditReceived(stream=stream):
                assert party.connection.can_send(stream) != 0  # None: what ended it came with it

    def finish(self) -> None:
        """Let both sides do what is left, until nothing moves."""
        for _ in range(100_000):
            agent, client = self.agent.connection, self.client.connection
            for stream, body in self.down.items():
                if body.end_sent is None and stream in self.to_answer and agent.can_send(stream) is None:
                    body.end_sent = False
                    self.agent.call("send_end", stream)
                if body.end_sent is not None:
                    self.to_answer.discard(stream)
            busy = client.open_requests or agent.open_requests or client.queued or agent.queued
            if not (busy or self.client.wire or self.agent.wire):
                return
            self.act(winding_down=True)
        raise AssertionError("the session does not come to rest")

    @staticmethod
    def fresh(party: Party) -> Connection:
        """A connection such as ``party``'s was at first."""
        limits = party.connection.limits
        if party.connection.endpoint is Endpoint.CLIENT:
            return client(limits=limits, theirs=limits)
        return Connection.agent(limits=limits)

    @staticmethod
    def replay(party: Party, rng: Random) -> list[Any]:
        """The events when the same bytes come in other pieces, between the same calls."""
        again = Session.fresh(party)
        events: list[Any] = []
        for kind, what in party.log:
            if kind == "call":
                name, args, kwargs = what
                getattr(again, name)(*args, **kwargs)
                continue
            while what:
                size = rng.choice([1, 15, 16, 17, 1000, 1 << 20])
                events += map(plain, again.receive(what[:size]))
                what = what[size:]
        return events

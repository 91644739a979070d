"""What a :class:`protocol.connection.Connection` tells its driver."""

from __future__ import annotations

from typing import Any

from protocol.errors import DsgError, LinkLostError, RemoteProtocolError, VersionError
from protocol.framing import Flag
from protocol.preamble import Hello
from protocol.value import Value

__all__ = [
    "BodyEnded",
    "CreditReceived",
    "DataReceived",
    "ErrorReceived",
    "Failed",
    "GoodbyeReceived",
    "HelloReceived",
    "NoticeReceived",
    "RequestCancelled",
    "RequestDropped",
    "RequestReceived",
    "ResponseReceived",
    "WireEvent",
]


class HelloReceived(Value):
    """Agent: the client's choice of protocol and features; always the first event."""

    hello: Hello


class RequestReceived(Value):
    """Agent: a request. It must be answered once, by a response or an error, even when cancelled."""

    stream: int
    method: str
    params: dict[str, Any]
    has_body: bool


class RequestCancelled(Value):
    """Agent: the client wants no answer and sends no more of the body. Stop, then answer with an error.

    ``changed``: the client found that a file it was sending changed.
    """

    stream: int
    changed: bool


class ResponseReceived(Value):
    """Client: the request succeeded. With ``has_body``, data and an end follow; else it is over."""

    stream: int
    fields: dict[str, Any]
    has_body: bool


class ErrorReceived(Value):
    """Client: the request failed, possibly in the middle of a response's body; it is over."""

    stream: int
    error: DsgError


class NoticeReceived(Value):
    """Client: news of a request that is still running. Names that are unknown are to be passed over."""

    stream: int
    name: str
    fields: dict[str, Any]


class RequestDropped(Value):
    """Client: the agent is through with a request that this side had cancelled."""

    stream: int


class DataReceived(Value):
    """A piece of a body, as sent. Give the event to ``consumed`` when it needs memory no more.

    ``payload`` is a read-only view, still compressed when ``flags`` say so
    (:func:`protocol.compress.inflate`).
    """

    stream: int
    payload: memoryview
    flags: Flag


class BodyEnded(Value):
    """A body is whole. With ``changed``, its sender found that a file changed under its hands."""

    stream: int
    changed: bool


class CreditReceived(Value):
    """More of a body may be sent: ask ``can_send``."""

    stream: int


class GoodbyeReceived(Value):
    """The other side sends nothing more. ``error``: why, when it is not simply through."""

    error: DsgError | None


class Failed(Value):
    """The connection is over, in disorder; always the last event. All open requests are lost with it."""

    error: RemoteProtocolError | VersionError | LinkLostError


WireEvent = (
    HelloReceived
    | RequestReceived
    | RequestCancelled
    | ResponseReceived
    | ErrorReceived
    | NoticeReceived
    | RequestDropped
    | DataReceived
    | BodyEnded
    | CreditReceived
    | GoodbyeReceived
    | Failed
)

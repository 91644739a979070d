"""One request on its stream: its two halves, its credit both ways, and what may come for it when.

Part of :mod:`protocol.connection`, whose text has the rules in words.
"""

from __future__ import annotations

from enum import Enum

from protocol.codec import Buffer, pack, unpack
from protocol.errors import RemoteProtocolError, error_from_wire
from protocol.framing import Flag, Frame, FrameType
from protocol.outbox import Outbox
from protocol.wire_events import (
    BodyEnded,
    CreditReceived,
    DataReceived,
    ErrorReceived,
    NoticeReceived,
    RequestCancelled,
    RequestDropped,
    ResponseReceived,
    WireEvent,
)

__all__ = ["Endpoint", "Half", "Stream", "cost"]

LEAST_COST = 1024  # else 8 MiB of credit would allow 8 million frames of one byte


def cost(payload: Buffer) -> int:
    """What a DATA frame takes off its sender's credit."""
    return max(len(payload), LEAST_COST)


class Endpoint(Enum):
    """Which end of the connection a side is."""

    CLIENT = "client"
    AGENT = "agent"


class Half(Enum):
    """Where one direction of a request stands."""

    WAITING = "waiting"  # the agent's half before its RESPONSE
    BODY = "body"
    OVER = "over"


class Stream:
    """A request that is not over, as one side sees it.

    ``hear`` takes the frames that come for it. ``credit`` is what this side
    may still send of its body, never more than ``spendable``; ``window`` what
    the other side may still send, at first ``grantable``.
    """

    __slots__ = (
        "_out",
        "_unreported",
        "_window",
        "cancelled",
        "credit",
        "endpoint",
        "grantable",
        "number",
        "receiving",
        "sending",
        "spendable",
    )

    def __init__(
        self,
        number: int,
        endpoint: Endpoint,
        sending: Half,
        receiving: Half,
        spendable: int,
        grantable: int,
        out: Outbox,
    ) -> None:
        self.number = number
        self.endpoint = endpoint
        self.sending = sending
        self.receiving = receiving
        self.cancelled = False
        self.spendable = self.credit = spendable
        self.grantable = self._window = grantable
        self._unreported = 0  # consumed here, not yet given back
        self._out = out

    @property
    def over(self) -> bool:
        """Whether both halves are."""
        return self.sending is Half.OVER and self.receiving is Half.OVER

    @property
    def room(self) -> int | None:
        """The credit of this side's body; None when there is none or nobody wants more of it."""
        return self.credit if self.sending is Half.BODY and not self.cancelled else None

    def consumed(self, payload: Buffer) -> None:
        """Give back what a received piece cost, now or together with the next."""
        if self.receiving is not Half.BODY or self.cancelled:
            return
        self._unreported += cost(payload)
        # A quarter at a time: few frames, and a sender waiting for a whole frame's credit always gets it.
        if self._unreported * 4 >= self.grantable:
            self._out.control(FrameType.CREDIT, Flag.NONE, self.number, pack({"bytes": self._unreported}))
            self._window += self._unreported
            self._unreported = 0

    def reset(self, *, changed: bool) -> None:
        """Client: end this half, whatever of it was sent."""
        self._out.drop(self.number)
        self._out.control(FrameType.RESET, Flag.CHANGED if changed else Flag.NONE, self.number, b"")
        self.sending = Half.OVER

    def hear(self, frame: Frame) -> WireEvent | None:
        """A frame that came for this request; RemoteProtocolError when it may not come now."""
        kind = frame.type
        if kind == FrameType.DATA:
            return self._hear_data(frame)
        if kind == FrameType.CREDIT:
            return self._hear_credit(frame)
        if kind == FrameType.END:
            if self.receiving is not Half.BODY:
                raise self._unexpected(kind)
            return self._heard_last(BodyEnded(self.number, bool(frame.flags & Flag.CHANGED)))
        if kind == FrameType.RESET:
            return self._hear_reset(frame)
        if kind == FrameType.RESPONSE:
            return self._hear_response(frame)
        fields = unpack(frame.payload)
        if self.receiving is Half.OVER:
            raise self._unexpected(kind)
        if kind == FrameType.ERROR:
            return self._heard_last(ErrorReceived(self.number, error_from_wire(fields)))
        name, news = fields.get("name"), fields.get("fields")
        if not isinstance(name, str) or not isinstance(news, dict):
            raise RemoteProtocolError("an EVENT does not hold a name and its fields")
        return None if self.cancelled else NoticeReceived(self.number, name, news)

    def _unexpected(self, kind: int) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"a {FrameType(kind).name} frame came for stream {self.number}, "
            f"whose half of the {'agent' if self.endpoint is Endpoint.CLIENT else 'client'} "
            f"is {self.receiving.value}"
        )

    def _hear_data(self, frame: Frame) -> WireEvent | None:
        if self.receiving is not Half.BODY:
            raise self._unexpected(frame.type)
        self._window -= cost(frame.payload)
        if self._window < 0:
            raise RemoteProtocolError(f"stream {self.number} was sent more than its credit")
        if self.cancelled or (self.endpoint is Endpoint.AGENT and self.sending is Half.OVER):
            return None
        return DataReceived(self.number, frame.payload, Flag(frame.flags))

    def _hear_credit(self, frame: Frame) -> WireEvent | None:
        given = unpack(frame.payload).get("bytes")
        if type(given) is not int or given <= 0:
            raise RemoteProtocolError("a CREDIT frame gives no positive number of bytes")
        self.credit += given
        if self.credit > self.spendable:
            raise RemoteProtocolError(f"stream {self.number} was given more credit than it spent")
        return None if self.room is None else CreditReceived(self.number)

    def _hear_reset(self, frame: Frame) -> WireEvent | None:
        if self.cancelled:
            raise RemoteProtocolError(f"a second RESET came for stream {self.number}")
        self.cancelled = True
        self.receiving = Half.OVER
        if self.sending is Half.OVER:
            return None  # what waits of the answer includes its END, by which the client counts
        self._out.drop(self.number)
        return RequestCancelled(self.number, bool(frame.flags & Flag.CHANGED))

    def _hear_response(self, frame: Frame) -> WireEvent | None:
        fields = unpack(frame.payload)
        if self.receiving is not Half.WAITING:
            raise self._unexpected(frame.type)
        if not frame.flags & Flag.HAS_BODY:
            return self._heard_last(ResponseReceived(self.number, fields, False))
        self.receiving = Half.BODY
        return None if self.cancelled else ResponseReceived(self.number, fields, True)

    def _heard_last(self, event: WireEvent) -> WireEvent | None:
        """The other side's half is over; the event to tell."""
        self.receiving = Half.OVER
        if self.endpoint is Endpoint.AGENT:
            return None if self.sending is Half.OVER else event
        if self.cancelled:
            return RequestDropped(self.number)
        if self.sending is Half.BODY or self._out.holds(self.number):
            # Also in place of an END that still waits: a later REQUEST would overtake it,
            # and the agent would count one request more than this side.
            self.reset(changed=False)
        return event

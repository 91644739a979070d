"""What waits to be sent on a connection: heartbeats before control before data.

The order within a request survives it: a RESPONSE or REQUEST is queued before
its DATA, END goes with the data, and what overtakes data (ERROR, RESET) ends
the body, whose waiting rest is dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from protocol.codec import Buffer, pack
from protocol.errors import DsgError, LocalProtocolError
from protocol.framing import LONGEST, Flag, FrameType, frame_header
from protocol.paths import escape

__all__ = ["Outbox", "error_fields"]


class Outbox:
    """The queues of one side. ``size`` counts all bytes in them."""

    __slots__ = ("_control", "_data", "_heartbeat", "_last", "_urgent", "_waiting", "size")

    def __init__(self) -> None:
        self.size = 0
        self._urgent: list[bytes] = []
        self._heartbeat = False  # one waits in _urgent
        self._control: list[bytes] = []
        self._data: deque[tuple[int, bytes, Buffer]] = deque()
        self._waiting: dict[int, int] = {}  # stream -> its frames in _data
        self._last = b""

    def first(self, kind: FrameType, payload: bytes) -> None:
        """Queue a frame of the connection itself before everything else."""
        frame = frame_header(kind, Flag.NONE, 0, len(payload)) + payload
        self._urgent.append(frame)
        self.size += len(frame)

    def heartbeat(self) -> None:
        """Queue a heartbeat unless one waits."""
        if not self._heartbeat:
            self._heartbeat = True
            self.first(FrameType.HEARTBEAT, b"")

    def control(self, kind: FrameType, flags: Flag, stream: int, payload: bytes) -> None:
        """Queue a control frame of a request."""
        frame = frame_header(kind, flags, stream, len(payload)) + payload
        self._control.append(frame)
        self.size += len(frame)

    def data(self, kind: FrameType, flags: Flag, stream: int, payload: Buffer) -> None:
        """Queue a DATA or END frame; the payload is kept, not copied."""
        header = frame_header(kind, flags, stream, len(payload))
        self._data.append((stream, header, payload))
        self._waiting[stream] = self._waiting.get(stream, 0) + 1
        self.size += len(header) + len(payload)

    def holds(self, stream: int) -> bool:
        """Whether data or the end of ``stream`` waits."""
        return stream in self._waiting

    def drop(self, stream: int) -> None:
        """Forget the data and the end of ``stream`` that wait."""
        if self._waiting.pop(stream, 0):
            self.size -= sum(len(header) + len(payload) for s, header, payload in self._data if s == stream)
            self._data = deque(entry for entry in self._data if entry[0] != stream)

    def last(self, error: DsgError | None) -> None:
        """Queue the GOODBYE, sent when nothing else waits."""
        payload = pack({} if error is None else {"error": error_fields(error, LONGEST[FrameType.GOODBYE])})
        self._last = frame_header(FrameType.GOODBYE, Flag.NONE, 0, len(payload)) + payload
        self.size += len(self._last)

    def clear(self) -> None:
        """Forget everything."""
        self.size = 0
        self._urgent.clear()
        self._heartbeat = False
        self._control.clear()
        self._data.clear()
        self._waiting.clear()
        self._last = b""

    def take(self, at_most: int) -> list[Buffer]:
        """The next frames as pieces: all that is urgent or control, then data up to ``at_most`` bytes."""
        pieces: list[Buffer] = []
        taken = 0
        if self._urgent or self._control:
            front = b"".join(self._urgent + self._control)
            self._urgent.clear()
            self._control.clear()
            self._heartbeat = False
            pieces.append(front)
            taken = len(front)
        while self._data and (taken < at_most or not pieces):
            stream, header, payload = self._data.popleft()
            self._waiting[stream] -= 1
            if not self._waiting[stream]:
                del self._waiting[stream]
            pieces.append(header)
            if payload:
                pieces.append(payload)
            taken += len(header) + len(payload)
        if self._last and not self._data:
            pieces.append(self._last)
            taken += len(self._last)
            self._last = b""
        self.size -= taken
        return pieces


def error_fields(error: DsgError, longest: int) -> dict[str, Any]:
    """``error`` as a map that fits in ``longest`` bytes: it always arrives, if need be without facts."""
    fields = error.to_wire()
    try:
        if len(pack(fields)) + 16 <= longest:
            return fields
    except LocalProtocolError:
        pass
    fields["message"] = escape(error.message[:2000])
    fields["hint"] = escape(error.hint[:2000])
    fields["facts"] = {}
    room = longest - 64 * 1024
    for name, fact in error.facts.items():
        try:
            room -= len(pack({name: fact}))
        except LocalProtocolError:
            continue
        if room < 0:
            break
        fields["facts"][name] = fact
    return fields

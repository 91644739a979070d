"""One client's connection, driven by three threads.

The main thread reads: bytes become events, bodies go into the inbox of their
request. The worker runs the requests one after another, in the order in which
they came. The writer sends, and a heartbeat every 10 s, whatever the worker is
doing: hashing, flushing and waiting never look like death.

The session ends at end of input, after 60 s of silence, by a signal, or when
the client says goodbye. Whatever transaction is open is then aborted, except
between its decision and its reply: that stretch is finished, within 60 s.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType as PythonFrame
from typing import Any, Protocol

from dsg_remote_agent.call import Call, Cancelled, Gone, Service
from protocol.codec import Buffer
from protocol.connection import QUEUE_ENOUGH, Connection, cost
from protocol.errors import DsgError, InternalError, LinkLostError, RemoteProtocolError
from protocol.framing import Flag
from protocol.wire_events import (
    BodyEnded,
    CreditReceived,
    DataReceived,
    Failed,
    GoodbyeReceived,
    RequestCancelled,
    RequestReceived,
    WireEvent,
)

__all__ = ["Session"]

HEARTBEAT_S = 10.0
SILENCE_S = 60.0
FINISH_S = 60.0  # for what was decided
ABORT_S = 10.0  # for undoing; what it does not manage, the next agent does
LAST_WORDS_S = 5.0
READ_BYTES = 256 * 1024
# Bodies that wait for their request's turn. A client with so much ahead of the worker is not one of ours.
MOST_WAITING = 96 * 1024 * 1024


class Log(Protocol):
    """Where events of note go."""

    def info(self, event: str, **facts: Any) -> None: ...

    def warning(self, event: str, **facts: Any) -> None: ...

    def error(self, event: str, **facts: Any) -> None: ...


class Session:
    """The connection on two descriptors. :meth:`run` returns the exit status of the process."""

    def __init__(
        self,
        source: int,
        sink: int,
        connection: Connection,
        log: Log,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._source = source
        self._sink = sink
        self._conn = connection
        self._log = log
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._to_send = threading.Condition(self._lock)  # for the writer
        self._moved = threading.Condition(self._lock)  # for the worker: jobs, bodies, credit, the end
        self._jobs: deque[Call] = deque()
        self._calls: dict[int, Call] = {}
        self._waiting = 0
        self._closing = ""  # why the session ends; set once
        self._draining = False  # the client said goodbye
        self._deciding = False
        self._sink_broken = False
        self._writing = False
        self._worker_done = False
        self._signal = ""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    # The main thread.

    def run(self, service: Service) -> int:
        """Serve until the end. Must be called in the main thread, once."""
        self._catch_signals()
        writer = threading.Thread(target=self._write, name="writer", daemon=True)
        worker = threading.Thread(target=self._work, args=(service,), name="worker", daemon=True)
        writer.start()
        worker.start()
        status = self._read()
        worker.join(ABORT_S)
        deadline = time.monotonic() + FINISH_S
        while worker.is_alive() and self._deciding and time.monotonic() < deadline:
            worker.join(0.2)
        finished = not worker.is_alive()
        if not finished:
            self._log.error("the worker did not end in time", reason=self._closing, deciding=self._deciding)
        with self._lock:
            self._conn.send_goodbye()
            self._to_send.notify_all()
        writer.join(LAST_WORDS_S if finished else 0.1)
        return status if finished else 75

    def _catch_signals(self) -> None:
        def stop(number: int, _frame: PythonFrame | None) -> None:
            # Only sets a flag and wakes the reader: this may interrupt the main thread anywhere.
            self._signal = signal.Signals(number).name
            os.write(self._wake_write, b"s")

        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)

    def _read(self) -> int:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        heard = time.monotonic()
        while True:
            left = heard + self._silence_s - time.monotonic()
            ready = {descriptor for descriptor, _ in poll.poll(max(0, int(left * 1000) + 1))}
            if self._signal:
                return self._close(f"signal {self._signal}", 0)
            if self._worker_done:
                return 0
            if self._sink_broken:
                return self._close("the client closed its end", 0)
            if self._wake_read in ready:
                os.read(self._wake_read, 64)
            if self._source in ready:
                try:
                    received = os.read(self._source, READ_BYTES)
                except OSError as error:
                    return self._close(f"input failed: {error.strerror}", 0)
                heard = time.monotonic()
                if not received:
                    return self._close("end of input", 0)
                status = self._receive(received)
                if status is not None:
                    return status
            elif time.monotonic() - heard >= self._silence_s:
                return self._close(f"nothing heard for {self._silence_s:.0f} s", 0)

    def _receive(self, received: bytes) -> int | None:
        with self._lock:
            events = self._conn.receive(received)
            for event in events:
                self._sort(event)
            if self._waiting > MOST_WAITING:
                error = RemoteProtocolError("more was sent ahead than this agent keeps")
                self._conn.send_goodbye(error)
                self._closing = self._closing or error.message
            # A thread that wakes to find nothing costs as much as one that finds something, and most of what
            # is read is the middle of a large payload.
            if self._conn.queued:
                self._to_send.notify_all()
            if events or self._closing:
                self._moved.notify_all()
            failed = events[-1].error if events and isinstance(events[-1], Failed) else None
        if failed is not None:
            return self._close(failed.message, failed.exit_status)
        return 7 if self._closing else None

    def _sort(self, event: WireEvent) -> None:
        match event:
            case DataReceived() | BodyEnded():
                call = self._calls.get(event.stream)
                if call is not None:
                    call.inbox.append(event)
                    if isinstance(event, DataReceived):
                        self._waiting += cost(event.payload)
            case RequestReceived():
                call = Call(self, event.stream, event.method, event.params, event.has_body)
                self._calls[event.stream] = call
                self._jobs.append(call)
            case RequestCancelled():
                call = self._calls.get(event.stream)
                if call is not None:
                    call.cancelled = Cancelled(event.changed)
            case GoodbyeReceived():
                self._draining = True
            case CreditReceived() | Failed() | _:
                pass  # the waiting producer looks for itself; Failed is handled by the caller

    def _close(self, reason: str, status: int) -> int:
        with self._lock:
            self._closing = self._closing or reason
            self._moved.notify_all()
        self._log.info("session ends", reason=self._closing)
        return status

    # The writer thread.

    def _write(self) -> None:
        beat = time.monotonic() + self._heartbeat_s
        try:
            while True:
                with self._lock:
                    while not (pieces := self._conn.bytes_to_send()):
                        if self._conn_over():
                            return
                        left = beat - time.monotonic()
                        if left <= 0:
                            self._conn.send_heartbeat()
                            beat = time.monotonic() + self._heartbeat_s
                        else:
                            self._to_send.wait(left)
                    self._writing = True
                    # Who waits for room is to find room for several payloads.
                    if self._conn.queued <= QUEUE_ENOUGH // 2:
                        self._moved.notify_all()
                self._write_all(pieces)
                with self._lock:
                    self._writing = False
                    if not self._conn.queued:
                        self._moved.notify_all()
        except OSError:
            with self._lock:
                self._sink_broken = True
                self._moved.notify_all()
            os.write(self._wake_write, b"w")

    def _conn_over(self) -> bool:
        return bool(self._conn.failure) or self._worker_done

    def _write_all(self, pieces: list[Buffer]) -> None:
        views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        while views:
            sent = os.writev(self._sink, views[:512])
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    # The worker thread, and what its calls use.

    def _work(self, service: Service) -> None:
        try:
            while (call := self._next()) is not None:
                self._answer(service, call)
        except Gone:
            pass
        finally:
            try:
                service.close()
            except Exception as error:  # noqa: BLE001  the process ends; the next agent cleans up
                self._log.error("could not close cleanly", error=repr(error))
            with self._lock:
                self._conn.send_goodbye()
                self._worker_done = True
                self._to_send.notify_all()
            os.write(self._wake_write, b"d")

    def _next(self) -> Call | None:
        with self._lock:
            while not self._jobs:
                if self._closing or self._sink_broken:
                    raise Gone
                if self._draining:
                    return None
                self._moved.wait()
            if self._closing or self._sink_broken:
                raise Gone
            return self._jobs.popleft()

    def _answer(self, service: Service, call: Call) -> None:
        began = time.monotonic()
        outcome = "answered"
        try:
            if call.cancelled:
                raise call.cancelled
            service.answer(call)
        except Gone:
            outcome = "gone"
            raise
        except Cancelled as error:
            outcome = "cancelled"
            self._fail(call, LinkLostError(str(error)))
        except DsgError as error:
            outcome = error.code
            self._log.info(
                "a request was refused", method=call.method, code=error.code, message=error.message
            )
            self._fail(call, error)
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            outcome = "failed"
            self._log.error(
                "a request failed unexpectedly", method=call.method, error=repr(error), trace=True
            )
            self._fail(
                call,
                InternalError(
                    f"the agent failed in {call.method}: {type(error).__name__}",
                    hint="this is a bug in DSG: please report it with the agent's log",
                ),
            )
        finally:
            ended = time.monotonic()
            self._log.info(
                "request",
                method=call.method,
                seconds=round(ended - began, 4),
                until_reply=round((call.answered_at if call.answered else ended) - began, 4),
                outcome=outcome,
            )
            self._deciding = False
            with self._lock:
                self._calls.pop(call.stream, None)
                self._waiting -= sum(cost(e.payload) for e in call.inbox if isinstance(e, DataReceived))
                call.inbox.clear()

    def _fail(self, call: Call, error: DsgError) -> None:
        self.queue(lambda conn: conn.send_error(call.stream, error))

    def take(self, call: Call) -> DataReceived | BodyEnded:
        """The next piece of a request's body; waits for it."""
        with self._lock:
            while not call.inbox:
                self.check(call)
                self._moved.wait()
            self.check(call)
            return call.inbox.popleft()

    def give_back(self, event: DataReceived) -> None:
        """A piece needs memory no more."""
        with self._lock:
            self._waiting -= cost(event.payload)
            self._conn.consumed(event)
            if self._conn.queued:
                self._to_send.notify_all()

    def check(self, call: Call) -> None:
        """Raise Gone or Cancelled when nobody waits for the call's answer any more."""
        if self._closing or self._sink_broken:
            raise Gone
        if call.cancelled:
            raise call.cancelled

    def queue(self, send: Callable[[Connection], object]) -> None:
        """Have the connection send something; nothing when it is over."""
        with self._lock:
            if self._conn.failure is None and not self._sink_broken:
                send(self._conn)
                self._to_send.notify_all()

    def send(self, call: Call, payload: Buffer, flags: Flag) -> None:
        """Send a piece of a body when there is credit and the queue is not full."""
        with self._lock:
            while True:
                self.check(call)
                room = self._conn.can_send(call.stream)
                if room is None:
                    raise Gone
                if room >= cost(payload) and self._conn.queued <= QUEUE_ENOUGH:
                    break
                self._moved.wait()
            self._conn.send_data(call.stream, payload, flags)
            self._to_send.notify_all()

    @property
    def compression(self) -> str:
        """The best algorithm that both sides have."""
        return "zstd" if "zstd" in self._conn.features else "zlib"

    def warn(self, event: str, **facts: Any) -> None:
        """Put something into the log that an administrator should know."""
        self._log.warning(event, **facts)

    def wait_sent(self) -> None:
        """Wait until the queue is empty and written out, at most a few seconds."""
        deadline = time.monotonic() + LAST_WORDS_S
        with self._lock:
            while (self._conn.queued or self._writing) and not self._sink_broken:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._moved.wait(left)

    def proceed(self) -> None:
        """From here to the end of the running request the session does not end. Gone when it is ending."""
        with self._lock:
            if self._closing or self._sink_broken:
                raise Gone
            self._deciding = True

"""A small agent for the tests of the link: it speaks DSG/1 and does what it is told, also wrong things.

Run as ``python agent_program.py MODE``; in the mode ``serve`` it answers:

    echo {...}           -> the same fields
    take {} + body       -> {bytes, crc}
    give {size, piece}   -> {} + body of ``size`` bytes in pieces
    both {} + body       -> {} + the same body back
    fail {code, ...}     -> that error; with ``after`` in the middle of a body
    news {names}         -> notices, then {}
    hang {}              -> no answer until cancelled, which is counted; a body is not consumed
    count {}             -> {cancelled}
    die {status}         -> no answer, the process ends
    kill {}              -> no answer, SIGKILL
    garbage {}           -> bytes that are no frame
    mute {}              -> no answer and no heartbeat any more
    shout {bytes}        -> that much on stderr, then {}
    early {}             -> answers before the body is whole
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import zlib
from collections import deque
from typing import Any

sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
)

from protocol.connection import QUEUE_ENOUGH, Connection, cost
from protocol.errors import error_from_wire
from protocol.preamble import Limits, Preamble, preamble_bytes
from protocol.wire_events import (
    BodyEnded,
    CreditReceived,
    DataReceived,
    Failed,
    GoodbyeReceived,
    RequestCancelled,
    RequestReceived,
)


class Server:
    def __init__(self, limits: Limits) -> None:
        self.connection = Connection.agent({"zstd"}, limits)
        self.taking: dict[int, list[int]] = {}
        self.both: dict[int, deque[bytes]] = {}
        self.both_over: set[int] = set()
        self.giving: dict[int, list[Any]] = {}
        self.hanging: set[int] = set()
        self.cancelled = 0
        self.beating = True

    def run(self) -> None:
        beat = time.monotonic()
        while True:
            ready = select.select([0], [], [], 0.1)[0]
            if self.beating and time.monotonic() > beat + 0.1:
                beat = time.monotonic()
                self.connection.send_heartbeat()
                self.flush()
            if not ready:
                continue
            chunk = os.read(0, 512 * 1024)
            events = self.connection.receive(chunk) if chunk else self.connection.receive_eof()
            for event in events:
                self.take(event)
            self.pump()
            if not chunk:
                return

    def flush(self) -> None:
        while pieces := self.connection.bytes_to_send():
            views = deque(memoryview(p) for p in pieces)
            while views:
                count = os.writev(1, list(views)[:64])
                while views and count >= len(views[0]):
                    count -= len(views.popleft())
                if count:
                    views[0] = views[0][count:]

    def pump(self) -> None:
        self.flush()
        moved = True
        while moved:
            moved = False
            for stream, task in list(self.giving.items()):
                while task[0] > 0 and self.connection.queued < QUEUE_ENOUGH:
                    room = self.connection.can_send(stream)
                    piece = task[1][: task[0]]
                    if room is None:
                        self.giving.pop(stream, None)
                        break
                    if room < cost(piece):
                        break
                    self.connection.send_data(stream, piece)
                    task[0] -= len(piece)
                    moved = True
                if task[0] == 0 and stream in self.giving:
                    del self.giving[stream]
                    if task[2] is not None:
                        self.connection.send_error(stream, error_from_wire(task[2]))
                    else:
                        self.connection.send_end(stream)
                    moved = True
            for stream, pieces in list(self.both.items()):
                while pieces:
                    room = self.connection.can_send(stream)
                    if room is None or room < cost(pieces[0]):
                        break
                    self.connection.send_data(stream, pieces.popleft())
                    moved = True
                if not pieces and stream in self.both_over:
                    self.both_over.discard(stream)
                    del self.both[stream]
                    self.connection.send_end(stream)
                    moved = True
            self.flush()

    def take(self, event: Any) -> None:
        match event:
            case RequestReceived():
                self.request(event)
            case DataReceived():
                if event.stream in self.taking:
                    found = self.taking[event.stream]
                    found[0] += len(event.payload)
                    found[1] = zlib.crc32(event.payload, found[1])
                elif event.stream in self.both:
                    self.both[event.stream].append(bytes(event.payload))
                if event.stream not in self.hanging:
                    self.connection.consumed(event)
            case BodyEnded():
                if event.stream in self.taking:
                    size, crc = self.taking.pop(event.stream)
                    self.connection.send_response(
                        event.stream, {"bytes": size, "crc": crc, "changed": event.changed}
                    )
                elif event.stream in self.both:
                    self.both_over.add(event.stream)
            case RequestCancelled():
                self.cancelled += 1
                for where in (self.taking, self.both, self.giving):
                    where.pop(event.stream, None)
                self.hanging.discard(event.stream)
                self.connection.send_error(event.stream, error_from_wire({"message": "cancelled"}))
            case GoodbyeReceived() | Failed():
                self.flush()
                sys.exit(0)
            case CreditReceived():
                pass

    def request(self, event: RequestReceived) -> None:
        stream, params, connection = event.stream, event.params, self.connection
        match event.method:
            case "echo":
                connection.send_response(stream, params)
            case "take":
                self.taking[stream] = [0, 0]
            case "give":
                connection.send_response(stream, {"size": params["size"]}, body=True)
                self.giving[stream] = [
                    params["size"],
                    bytes(range(256)) * (params["piece"] // 256),
                    params.get("error"),
                ]
            case "both":
                connection.send_response(stream, {}, body=True)
                self.both[stream] = deque()
            case "fail":
                connection.send_error(stream, error_from_wire(params))
            case "news":
                for name in params["names"]:
                    connection.send_notice(stream, name, {"of": stream})
                connection.send_response(stream, {})
            case "hang":
                self.hanging.add(stream)
            case "count":
                connection.send_response(stream, {"cancelled": self.cancelled, "hanging": len(self.hanging)})
            case "die":
                print("about to die of an exit", file=sys.stderr, flush=True)
                os._exit(params["status"])
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "garbage":
                self.flush()
                os.write(1, b"Segmentation fault (core dumped)\n")
            case "mute":
                self.beating = False
            case "shout":
                for _ in range(params["bytes"] // 65536):
                    os.write(2, b"x" * 65535 + b"\n")
                connection.send_response(stream, {})
            case "early":
                connection.send_response(stream, {"early": True})


def main(mode: str) -> None:
    if mode == "serve":
        limits = Limits(in_flight=32)
        os.write(1, preamble_bytes(Preamble(dsg="9.9.9", features=frozenset({"zstd"}), limits=limits)))
        Server(limits).run()
    elif mode == "noisy":
        os.write(1, b"Welcome to the cluster!\n" * 20)
        main("serve")
    elif mode == "old":
        os.write(1, preamble_bytes(Preamble(dsg="0.0.1", protocol=(77,))))
        time.sleep(5)
    elif mode == "flood":
        os.write(1, b"\x1b[31mdisk quota exceeded\x1b[0m\n" * 4000)
        time.sleep(5)
    elif mode == "dies":
        sys.stderr.write("Traceback (most recent call last):\nModuleNotFoundError: No module named 'attrs'\n")
        sys.exit(1)
    elif mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "quiet":
        pass
    elif mode == "says":
        print("This account is currently not available.")
        sys.exit(1)
    elif mode == "silent":
        os.write(1, b"Password: ")
        time.sleep(60)
    elif mode == "altered":
        os.write(1, preamble_bytes(Preamble(dsg="1")).replace(b"\r\n", b"\r\r\n"))
        time.sleep(5)


if __name__ == "__main__":
    main(sys.argv[1])

"""A TCP proxy on loopback that counts, delays, freezes and cuts what passes through it."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from types import TracebackType

CHUNK = 128 * 1024


class Proxy:
    """Forwards connections to a port on loopback.

    ``up`` and ``down`` count the bytes from and to the client. ``delay`` is
    added to every byte in each direction (half a round trip).

    ``cut()`` ends all connections with a reset and refuses new ones until
    ``mend()``; ``cut_after(up=, down=)`` does so when that many bytes more have
    passed in that direction, none beyond them. ``freeze()`` lets connections
    stand and moves nothing.
    """

    def __init__(self, target: int, *, delay: float = 0.0, host: str = "127.0.0.1") -> None:
        self.target = target
        self.delay = delay
        self.up = 0
        self.down = 0
        self.connections = 0
        self._limits: dict[str, int | None] = {"up": None, "down": None}
        self._cut = False
        self._moving = threading.Event()
        self._moving.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def total(self) -> int:
        """Bytes in both directions."""
        return self.up + self.down

    @property
    def is_cut(self) -> bool:
        """Whether it is cut, and not mended yet."""
        return self._cut

    def cut(self) -> None:
        """End every connection with a reset; new ones are reset at once."""
        with self._lock:
            self._cut = True
            found, self._open = self._open, set()
        for end in found:
            _reset(end)
        self._moving.set()

    def cut_after(self, *, up: int | None = None, down: int | None = None) -> None:
        """Cut once that many more bytes have passed."""
        with self._lock:
            self._limits["up"] = None if up is None else self.up + up
            self._limits["down"] = None if down is None else self.down + down

    def mend(self) -> None:
        """Let new connections through again, without limits."""
        with self._lock:
            self._cut = False
            self._limits = {"up": None, "down": None}
        self._moving.set()

    def freeze(self) -> None:
        """Nothing moves any more, and nothing is closed."""
        self._moving.clear()

    def thaw(self) -> None:
        """What was frozen moves on."""
        self._moving.set()

    def close(self) -> None:
        """End everything."""
        self.cut()
        # Closing alone does not wake a thread that sits in accept().
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._cut:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
            except OSError:
                _reset(client)
                continue
            for end in (client, server):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                line: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=4096)
                threading.Thread(target=self._take, args=(source, line), daemon=True).start()
                threading.Thread(target=self._give, args=(sink, line, way), daemon=True).start()

    def _take(self, source: socket.socket, line: queue.Queue[tuple[float, bytes]]) -> None:
        chunk = b"."
        while chunk:
            try:
                chunk = source.recv(CHUNK)
            except OSError:
                chunk = b""
            line.put((time.monotonic() + self.delay, chunk))

    def _give(self, sink: socket.socket, line: queue.Queue[tuple[float, bytes]], way: str) -> None:
        while True:
            due, chunk = line.get()
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            self._moving.wait()
            try:
                if not chunk:
                    sink.shutdown(socket.SHUT_WR)
                    return
                chunk = self._allowed(chunk, way)
                sink.sendall(chunk)
            except OSError:
                return
            if self._spent(way):
                time.sleep(0.05)  # let the last bytes arrive: a reset may overtake them
                if self._spent(way):  # nobody has mended it meanwhile
                    self.cut()
                    return

    def _allowed(self, chunk: bytes, way: str) -> bytes:
        with self._lock:
            limit = self._limits[way]
            passed = getattr(self, way)
            if limit is not None:
                chunk = chunk[: max(0, limit - passed)]
            setattr(self, way, passed + len(chunk))
            return chunk

    def _spent(self, way: str) -> bool:
        limit = self._limits[way]
        return limit is not None and getattr(self, way) >= limit


def _reset(end: socket.socket) -> None:
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()

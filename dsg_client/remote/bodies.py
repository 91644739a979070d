"""Bodies of requests and answers: contents that come, contents that go, a manifest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from dsg_client.remote.exchange import Exchange
from protocol import messages as m
from protocol.compress import inflate
from protocol.errors import IntegrityError, RemoteProtocolError
from protocol.wire_events import DataReceived

__all__ = ["Download", "Upload", "gather"]

# Ten million entries of 200 bytes. A server cannot fill the client's memory with a manifest.
MAX_MANIFEST_BYTES = 2 << 30


class Download:
    """The answer of ``get_files``: payloads of :mod:`protocol.filestream`, still compressed.

    Two ways to read it: ``async for``, each piece given back when the next is
    asked for; or ``receive`` and ``consumed`` for pieces that are worked on
    elsewhere (call ``consumed`` on the event loop).
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.consumed = exchange.consumed

    async def receive(self) -> DataReceived | None:
        """The next piece, None at the end. ``changed`` is known then."""
        piece = await self._exchange.receive()
        if piece is None:
            m.parse_result(m.GetFiles, await self._exchange.response())
        return piece

    async def __aiter__(self) -> AsyncIterator[DataReceived]:
        while (piece := await self.receive()) is not None:
            yield piece
            self.consumed(piece)

    def give_up(self, because: BaseException) -> None:
        """Want no more of it; ``receive`` raises ``because`` from now on."""
        self._exchange.cancel(because=because)

    @property
    def changed(self) -> bool:
        """Whether the agent found that a file changed while it sent it."""
        return self._exchange.changed


class Upload:
    """The body of an upload: payloads of :mod:`protocol.filestream`."""

    def __init__(self, exchange: Exchange) -> None:
        self.send = exchange.send
        self._exchange = exchange

    async def finish(self, *, changed: bool = False) -> m.Uploaded:
        """End the body; what arrived. ``changed``: a file changed while it was sent."""
        self._exchange.end(changed=changed)
        uploaded: m.Uploaded = m.parse_result(m.Upload, await self._exchange.response())
        return uploaded


async def gather(exchange: Exchange) -> bytes:
    """A manifest, whole and unpacked. IntegrityError when it is damaged."""
    parts: list[bytes] = []
    size = 0
    async for piece in exchange.body():
        try:
            part = bytes(inflate(piece.payload, piece.flags))
        except RemoteProtocolError as error:
            # It is sent as it lies on the server's disk.
            raise IntegrityError(
                f"the manifest that the server sent is damaged: {error.message}",
                hint="Restore the repository's .dsg/manifests from a backup; nothing was changed.",
            ) from None
        size += len(part)
        if size > MAX_MANIFEST_BYTES:
            raise RemoteProtocolError(f"the agent sent a manifest of more than {MAX_MANIFEST_BYTES} bytes")
        parts.append(part)
        await asyncio.sleep(0)
    return b"".join(parts)

"""SSH's packets of file content, made and taken apart many at a time.

asyncssh takes two dozen steps, and a dozen copies, for each packet: half of
the time of a large transfer. Here the packets that carry a channel's data
(RFC 4254, section 5.2) under AES-GCM (RFC 5647; OpenSSH's PROTOCOL, 1.6) are
made of what waits to be sent, and opened as they come, in as few steps as
Python allows. Everything else is left to asyncssh, packet by packet: key
exchanges, windows, requests, other ciphers, and every packet that is not as
it should be.

This knows asyncssh from inside, so it is done only with versions that were
looked at (``_KNOWN_VERSIONS``); with any other asyncssh does it all.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import asyncssh
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST, MSG_IGNORE
from asyncssh.encryption import GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.codec import Buffer

__all__ = ["FastChannel", "receive_in_pieces", "send_no_padding"]

_KNOWN_VERSIONS = ("2.24.1",)
PIECE = 32 * 1024  # of what was received: two of OpenSSH's packets
_BATCH = 256 * 1024  # of data made into packets before they are written

# Before a packet's data: how long the rest is but for the tag, how long its padding, type, channel, how long
# the data.
_HEAD = struct.Struct(">IBBII")
_LENGTH_BYTES = 4  # the first field: authenticated, not encrypted
_BODY = struct.Struct(">BBII")  # the others
_BODY_HEAD = _BODY.size
_TAG_BYTES = 16
_BLOCK = 16
_LEAST_PADDING = 4
_AEAD_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")


def send_no_padding(connection: asyncssh.SSHClientConnection) -> None:
    """Leave out the empty MSG_IGNORE that asyncssh sends before every packet: half of all packets.

    It hides the state of a CBC cipher from who can inject plaintext (RFC 4251,
    section 9.3.1). The ciphers that authenticate what they encrypt have no
    such state.
    """
    if connection.get_extra_info("send_cipher") not in _AEAD_CIPHERS:
        return
    send_packet = connection.send_packet

    def send(pkttype: int, *args: bytes, **options: Any) -> None:
        if pkttype != MSG_IGNORE:
            send_packet(pkttype, *args, **options)

    connection.send_packet = send  # type: ignore[method-assign]


def receive_in_pieces(connection: asyncssh.SSHClientConnection) -> None:
    """Hand what was received on in parts of a few packets.

    With each packet asyncssh copies all that it was given and has not yet
    looked at, twice; and asyncio gives it 256 KiB at a time.
    """
    data_received = connection.data_received

    def receive(data: bytes, datatype: int | None = None) -> None:
        for at in range(0, len(data), PIECE):
            data_received(data[at : at + PIECE], datatype)

    connection.data_received = receive  # type: ignore[method-assign]


class FastChannel:
    """The short way for the data of one open channel; asyncssh's own wherever that is not possible.

    The counters that asyncssh keeps (nonces, sequence numbers, windows, bytes
    until the next key exchange) stay the only ones: either way goes on where
    the other stopped, and no nonce is used twice.
    """

    def __init__(self, connection: Any, channel: Any) -> None:
        self._connection = connection
        self._channel = channel
        self._flush_slowly = channel._flush_send_buf
        self._receive_slowly = connection.data_received
        # asyncssh's encryption each way, and the cipher with its key.
        self._sealing: tuple[Any, Any] = None, None
        self._opening: tuple[Any, Any] = None, None
        self._begun = b""  # a packet of which a part has come

    @classmethod
    def install(cls, connection: Any, channel: Any) -> FastChannel | None:
        """Use it for ``channel``; None when this asyncssh is not known."""
        if asyncssh.__version__ not in _KNOWN_VERSIONS:
            return None
        fast = cls(connection, channel)
        channel._flush_send_buf = fast.flush
        connection.data_received = fast.receive
        return fast

    # Sending.

    def write(self, chunks: Iterable[Buffer]) -> None:
        """As the channel's ``write``, which would copy them twice; ``chunks`` must not change any more.

        BrokenPipeError when the channel is not open for sending.
        """
        channel = self._channel
        if channel._send_state != "open":
            raise BrokenPipeError("the channel is not open for sending")
        for chunk in chunks:
            channel._send_buf.append((memoryview(chunk), None))
            channel._send_buf_len += len(chunk)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other side's window allows."""
        channel = self._channel
        try:
            self._flush_quickly()
        except Exception:  # noqa: BLE001 - a nonce may be spent and its packet lost: nothing can follow it
            self._connection.internal_error()
            return
        if channel._send_buf and channel._send_window:
            # What is left is asyncssh's to send, which takes it out of bytearrays.
            channel._send_buf[:] = [
                (data if isinstance(data, bytearray) else bytearray(data), datatype)
                for data, datatype in channel._send_buf
            ]
        self._flush_slowly()

    def _flush_quickly(self) -> None:
        channel = self._channel
        while channel._send_buf and channel._send_window and self._may_seal():
            taken = self._take(min(channel._send_window, _BATCH))
            if not taken:
                break
            channel._send_window -= sum(map(len, taken))
            # Of a view asyncio does not copy what is left when not all can be sent at once.
            self._connection._send(memoryview(self._sealed(taken)))

    def _take(self, most: int) -> list[memoryview]:
        """Up to ``most`` bytes out of what waits; none of what is not plain data."""
        channel = self._channel
        taken: list[memoryview] = []
        while most and channel._send_buf and channel._send_buf[0][1] is None:
            waiting = memoryview(channel._send_buf[0][0])
            piece = waiting[:most]
            if len(piece) == len(waiting):
                del channel._send_buf[0]
            else:
                channel._send_buf[0] = waiting[most:], None
            channel._send_buf_len -= len(piece)
            most -= len(piece)
            taken.append(piece)
        return taken

    def _may_seal(self) -> bool:
        connection = self._connection
        return (
            isinstance(connection._send_encryption, GCMEncryption)
            and connection._kex_complete
            and connection._compressor is None
            and connection._rekey_bytes_sent < connection._rekey_bytes
            and not (connection._rekey_seconds and time.monotonic() >= connection._rekey_time)
        )

    def _sealed(self, data: Sequence[memoryview]) -> bytes:
        """The packets that carry ``data``, as they go onto the wire."""
        connection, channel = self._connection, self._channel
        encryption = connection._send_encryption
        if encryption is not self._sealing[0]:
            self._sealing = encryption, AESGCM(encryption._cipher._key)
        encrypt = self._sealing[1].encrypt
        cipher = encryption._cipher
        nonces = _nonces(cipher._iv)
        nonce = next(nonces)
        parts: list[bytes] = []
        for size, pieces in _cut(data, channel._send_pktsize):
            padding = -(_BODY_HEAD + size) % _BLOCK
            if padding < _LEAST_PADDING:
                padding += _BLOCK
            length = _BODY_HEAD + size + padding
            head = _HEAD.pack(length, padding, MSG_CHANNEL_DATA, channel._send_chan, size)
            plain = b"".join((head[_LENGTH_BYTES:], *pieces, os.urandom(padding)))
            # Counted before it is used: whatever fails, it is not used again.
            used, nonce = nonce, next(nonces)
            cipher._iv = nonce
            parts += head[:_LENGTH_BYTES], encrypt(used, plain, head[:_LENGTH_BYTES])
            connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF
            connection._rekey_bytes_sent += length
        return b"".join(parts)

    # Receiving.

    def receive(self, data: bytes, datatype: int | None = None) -> None:
        """Take what the connection received."""
        connection = self._connection
        connection._reset_keepalive_timer()
        if self._begun:
            # Completed by itself: its bytes are copied, and not all that came with its end.
            begun, self._begun = self._begun, b""
            end = _end_of_packet(begun + data[:_LENGTH_BYTES], 0, connection._max_recv_pktlen) - len(begun)
            self._receive(begun + data[:end], datatype)
            data = data[end:] if self._begun == b"" else b""
        self._receive(data, datatype)

    def _receive(self, data: bytes, datatype: int | None) -> None:
        connection = self._connection
        at = 0
        while at < len(data) and connection._transport is not None:
            if self._may_open():
                opened = self._open(data, at)
                if opened > at:
                    at = opened
                    continue
                end = _end_of_packet(data, at, connection._max_recv_pktlen)
                if end > len(data):
                    self._begun = data[at:]
                    return
            else:
                end = at + (self._lacking() or len(data))
            self._receive_slowly(data[at:end], datatype)
            at = end

    def _may_open(self) -> bool:
        """Whether asyncssh is between two packets, with no other keys on their way."""
        connection = self._connection
        return (
            not connection._inpbuf
            and connection._recv_handler == connection._recv_pkthdr
            and isinstance(connection._recv_encryption, GCMEncryption)
            and connection._kex_complete
            and connection._next_recv_encryption is None
            and connection._decompressor is None
        )

    def _lacking(self) -> int:
        """The bytes that asyncssh waits for in the packet that it is in the middle of; 0 when in none."""
        connection = self._connection
        whole: int = 0
        if connection._recv_handler == connection._recv_packet:
            head: int = connection._recv_blocksize
            whole = _LENGTH_BYTES + connection._pktlen + connection._recv_macsize - head
        elif connection._recv_handler == connection._recv_pkthdr and connection._inpbuf:
            whole = connection._recv_blocksize
        return max(0, whole - len(connection._inpbuf))

    def _open(self, data: bytes, at: int) -> int:
        """Open the packets from ``at`` on and deliver their data; where that is over.

        At the end, at a packet that has not wholly come, or at one that is
        asyncssh's to look at: of that nothing is done.
        """
        connection, channel = self._connection, self._channel
        encryption = connection._recv_encryption
        if encryption is not self._opening[0]:
            self._opening = encryption, AESGCM(encryption._cipher._key)
        decrypt = self._opening[1].decrypt
        nonces = _nonces(encryption._cipher._iv)
        nonce = next(nonces)
        number, room, longest = channel._recv_chan, channel._recv_window, connection._max_recv_pktlen
        view = memoryview(data)
        parts: list[memoryview] = []
        opened = more_window = 0
        while at < len(data) and channel._recv_state == "open":
            end = _end_of_packet(data, at, longest)
            if end > len(data):
                break
            body = at + _LENGTH_BYTES
            try:
                plain = decrypt(nonce, view[body:end], view[at:body])
            except InvalidTag:
                break
            if len(plain) < _BODY_HEAD:
                break
            padding, kind, channel_number, count = _BODY.unpack_from(plain)
            if channel_number != number:
                break
            if kind == MSG_CHANNEL_DATA and _BODY_HEAD + count + padding == len(plain) and count <= room:
                parts.append(memoryview(plain)[_BODY_HEAD : _BODY_HEAD + count])
                room -= count
            elif kind == MSG_CHANNEL_WINDOW_ADJUST and _BODY_HEAD + padding == len(plain):
                more_window += count  # the field stands where the other's length does
            else:
                break
            at = end
            opened += 1
            nonce = next(nonces)
        encryption._cipher._iv = nonce
        connection._recv_seq = (connection._recv_seq + opened) & 0xFFFFFFFF
        try:
            if parts:
                channel._accept_data(b"".join(parts))
            if more_window:
                channel._send_window += more_window
                self.flush()
        except Exception:  # noqa: BLE001 - as asyncssh does with a session that fails
            connection.internal_error()
        return at


def _nonces(first: bytes) -> Iterator[bytes]:
    """``first`` and those after it (RFC 5647, section 7.1): four fixed bytes and a count of eight."""
    fixed, count = first[:4], int.from_bytes(first[4:], "big")
    while True:
        yield fixed + (count & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")
        count += 1


def _cut(data: Iterable[memoryview], most: int) -> Iterator[tuple[int, list[memoryview]]]:
    """``data`` in packets of ``most`` bytes, the last one shorter: each packet's size and pieces."""
    pieces: list[memoryview] = []
    room = most
    for view in data:
        at = 0
        while at < len(view):
            piece = view[at : at + room]
            pieces.append(piece)
            at += len(piece)
            room -= len(piece)
            if not room:
                yield most, pieces
                pieces, room = [], most
    if pieces:
        yield most - room, pieces


def _end_of_packet(data: bytes, at: int, longest: int) -> int:
    """Where the packet ends that begins ``at``; beyond ``data`` when it has not wholly come.

    One that is too long is asyncssh's to refuse: it is taken to end with the data.
    """
    length = int.from_bytes(data[at : at + _LENGTH_BYTES], "big")
    if len(data) - at < _LENGTH_BYTES:
        return len(data) + 1
    return len(data) if length > longest else at + _LENGTH_BYTES + length + _TAG_BYTES

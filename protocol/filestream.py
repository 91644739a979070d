"""The content of files as a body: small files packed many to a frame, large ones over many frames.

One DATA payload is a whole number of operations. Each begins with 21 bytes,
``kind u8 | file u32 | offset u64 | length u64`` (big-endian), where ``file``
is the file's number in the list that the request named:

- BYTES: ``length`` bytes at ``offset`` follow.
- HOLE: ``length`` zero bytes at ``offset``; nothing follows.
- DONE: the file is complete; ``length`` is its size, ``offset`` 0.
- CHANGED: the sender found that the file changed; it ends unfinished. Both numbers are 0.

The operations of one file come in order, without gap or overlap; those of
several files may take turns. A receiver checks the digest besides.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from protocol.codec import MAX_PAYLOAD, Buffer
from protocol.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["OP_BYTES", "PAYLOAD_TARGET", "Op", "OpKind", "Order", "Packer", "unpack"]

_OP = struct.Struct(">BIQQ")
OP_BYTES = _OP.size
PAYLOAD_TARGET = 512 * 1024
MAX_FILE_SIZE = 1 << 60
_EMPTY = memoryview(b"")


class OpKind(IntEnum):
    """What an operation does."""

    BYTES = 1
    HOLE = 2
    DONE = 3
    CHANGED = 4


class Op(NamedTuple):
    """One operation; ``content`` is a view into the payload, empty unless the kind is BYTES."""

    kind: OpKind
    file: int
    offset: int
    length: int
    content: memoryview


class Packer:
    """Gathers operations into payloads of about ``target`` bytes, never more than 1 MiB.

    Each method returns the payloads that became full, to be sent in order;
    ``flush`` the last one. Content is copied once, into its payload.
    """

    def __init__(self, target: int = PAYLOAD_TARGET) -> None:
        if not 1 <= target <= MAX_PAYLOAD - OP_BYTES:
            raise ValueError(f"a target of {target} bytes")
        self._target = target
        self._parts: list[Buffer] = []
        self._size = 0

    def chunk(self, file: int, offset: int, content: Buffer) -> list[bytes]:
        """Bytes of a file; must not change until the payload that holds them was returned."""
        size = len(content)
        if size <= self._target:
            return self._add(OpKind.BYTES, file, offset, size, content) if size else []
        full: list[bytes] = []
        view = memoryview(content)
        for at in range(0, size, self._target):
            piece = view[at : at + self._target]
            full += self._add(OpKind.BYTES, file, offset + at, len(piece), piece)
        return full

    def hole(self, file: int, offset: int, length: int) -> list[bytes]:
        """A run of zero bytes."""
        return self._add(OpKind.HOLE, file, offset, length, b"") if length else []

    def done(self, file: int, size: int) -> list[bytes]:
        """The file is complete."""
        return self._add(OpKind.DONE, file, 0, size, b"")

    def changed(self, file: int) -> list[bytes]:
        """The file changed while it was read."""
        return self._add(OpKind.CHANGED, file, 0, 0, b"")

    def flush(self) -> list[bytes]:
        """The payload in the making, if there is one."""
        if not self._parts:
            return []
        payload = b"".join(self._parts)
        self._parts = []
        self._size = 0
        return [payload]

    def _add(self, kind: OpKind, file: int, offset: int, length: int, content: Buffer) -> list[bytes]:
        try:
            header = _OP.pack(kind, file, offset, length)
        except struct.error as error:
            raise LocalProtocolError(f"a file operation out of range: {error}") from None
        full: list[bytes] = []
        if self._size + OP_BYTES + len(content) > MAX_PAYLOAD:
            full = self.flush()
        self._parts.append(header)
        if content:
            self._parts.append(content)
        self._size += OP_BYTES + len(content)
        return full + self.flush() if self._size >= self._target else full


def unpack(payload: Buffer) -> Iterator[Op]:
    """The operations of one inflated payload; RemoteProtocolError at the first that is bad in itself."""
    view = memoryview(payload).toreadonly()
    at, end = 0, len(view)
    if end == 0:
        raise RemoteProtocolError("a payload without file operations")
    while at < end:
        if end - at < OP_BYTES:
            raise RemoteProtocolError("a payload ends within the head of a file operation")
        kind, file, offset, length = _OP.unpack_from(view, at)
        at += OP_BYTES
        if offset > MAX_FILE_SIZE or length > MAX_FILE_SIZE or offset + length > MAX_FILE_SIZE:
            raise RemoteProtocolError(f"a file operation at {offset} of {length} bytes")
        if kind == 1:
            if not 0 < length <= end - at:
                raise RemoteProtocolError(
                    f"a file operation of {length} bytes, {end - at} left in its payload"
                )
            yield Op(OpKind.BYTES, file, offset, length, view[at : at + length])
            at += length
        elif kind == 2 and length:
            yield Op(OpKind.HOLE, file, offset, length, _EMPTY)
        elif kind == 3 and not offset:
            yield Op(OpKind.DONE, file, 0, length, _EMPTY)
        elif kind == 4 and not offset and not length:
            yield Op(OpKind.CHANGED, file, 0, 0, _EMPTY)
        else:
            raise RemoteProtocolError(f"an unknown file operation ({kind}, {offset}, {length})")


class Order:
    """Checks the operations of a body against the list of files that was asked for.

    ``sizes``: of each file, by its number; -1 for one that is not to come.
    Nothing is taken beyond a file's size, so that a hostile sender cannot
    fill the disk; no file comes twice.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._started: dict[int, int] = {}  # number of a file under way -> bytes so far
        self._over = bytearray(size < 0 for size in sizes)
        self._missing = self._over.count(0)

    @property
    def missing(self) -> int:
        """Files that have not ended, by DONE or CHANGED."""
        return self._missing

    def check(self, op: Op) -> None:
        """RemoteProtocolError unless ``op`` may come now."""
        kind, file, offset, length, _ = op
        if file >= len(self._over) or self._over[file]:
            raise RemoteProtocolError(f"file {file} came, which was not asked for or has ended")
        size = self._sizes[file]
        so_far = self._started.get(file, 0)
        if kind is OpKind.BYTES or kind is OpKind.HOLE:
            if offset != so_far:
                raise RemoteProtocolError(f"bytes of file {file} came at {offset}, expected at {so_far}")
            if offset + length > size:
                raise RemoteProtocolError(f"file {file} came with more than its {size} bytes")
            self._started[file] = offset + length
            return
        if kind is OpKind.DONE and not length == so_far == size:
            raise RemoteProtocolError(f"file {file} ended at {length} after {so_far} of its {size} bytes")
        self._started.pop(file, None)
        self._over[file] = 1
        self._missing -= 1

    def end(self) -> None:
        """The body ended; RemoteProtocolError when a file is missing."""
        if self._missing:
            raise RemoteProtocolError(f"the files ended with {self._missing} missing")

"""Control payloads and rows: msgpack, with every number bounded before it costs anything.

A control payload is one msgpack map with text keys. Each is read by a fresh
unpacker: one that met an error is in an undefined state (msgpack
GHSA-6v7p-g79w-8964). What a map may hold: None, booleans, integers, finite
floats, text, bytes, lists and maps of these, nested at most ``MAX_NESTING``
deep, with at most ``MAX_CONTAINERS`` lists and maps of at most ``MAX_ITEMS``
each. Extension types, times,
keys given twice and bytes after the map are refused.

Rows travel in bodies: one DATA payload is a whole number of rows, each a
flat array of at most ``MAX_ROW_FIELDS`` scalars.

Works alike with the compiled and with the pure-Python msgpack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any

import msgpack

from protocol.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["MAX_PAYLOAD", "Buffer", "Row", "Scalar", "pack", "pack_rows", "unpack", "unpack_rows"]

Buffer = bytes | bytearray | memoryview
Scalar = None | bool | int | str | bytes
Row = tuple[Scalar, ...]

MAX_NESTING = 12
MAX_CONTAINERS = 4096  # an empty list is one byte on the wire and 56 in memory
MAX_ITEMS = 4096  # of one list or map; some unpackers take its memory when they read its head
MAX_ROW_FIELDS = 16
MAX_PAYLOAD = 1 << 20

_TOO_MANY = f"it holds more than {MAX_CONTAINERS} lists and maps"
_SCALARS = frozenset([type(None), bool, int, str, bytes])


def pack(fields: dict[str, Any]) -> bytes:
    """``fields`` as one control payload; LocalProtocolError for what :func:`unpack` would refuse."""
    try:
        _check(fields, MAX_NESTING, [MAX_CONTAINERS])
        packed: bytes = msgpack.packb(fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise LocalProtocolError(f"a message cannot be encoded: {error}") from None
    return packed


def unpack(payload: Buffer) -> dict[str, Any]:
    """The map in one control payload; RemoteProtocolError for anything else."""
    room = MAX_CONTAINERS

    def take_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        nonlocal room
        room -= 1
        if room < 0:
            raise ValueError(_TOO_MANY)
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key stands in it twice")
        return made

    def take_list(items: list[Any]) -> list[Any]:
        nonlocal room
        room -= 1
        if room < 0:
            raise ValueError(_TOO_MANY)
        return items

    try:
        found = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            object_pairs_hook=take_map,
            list_hook=take_list,
            ext_hook=_refuse_extension,
        )
        if type(found) is not dict:
            raise ValueError("it is not a map")
        _check(found, MAX_NESTING, [MAX_CONTAINERS])
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"a message cannot be read: {_reason(error)}") from None
    return found


def _reason(error: Exception) -> str:
    # The text of msgpack's own errors may quote the payload (ExtraData does): only their kind is told.
    return str(error)[:200] if type(error) is ValueError else type(error).__name__


def _refuse_extension(_code: int, _content: bytes) -> Any:
    raise ValueError("it holds an extension type")


def _check(value: Any, nesting: int, room: list[int]) -> None:
    """ValueError unless ``value`` is made of what a map may hold; ``room`` counts down lists and maps."""
    kind = type(value)
    if kind is dict or kind is list or kind is tuple:
        room[0] -= 1
        if room[0] < 0:
            raise ValueError(_TOO_MANY)
        if nesting == 0:
            raise ValueError(f"it is nested more than {MAX_NESTING} deep")
        if len(value) > MAX_ITEMS:
            raise ValueError(f"it holds a list or map of more than {MAX_ITEMS} items")
        if kind is dict:
            for key in value:
                if type(key) is not str:
                    raise ValueError("a key is not text")
            value = value.values()
        for item in value:
            if type(item) not in _SCALARS:
                _check(item, nesting - 1, room)
    elif kind is float:
        if not isfinite(value):
            raise ValueError("it holds a number that is not finite")
    elif kind not in _SCALARS:
        raise ValueError(f"it holds a {kind.__name__}")


def pack_rows(rows: Iterable[Iterable[Scalar]], target: int = 256 * 1024) -> Iterator[bytes]:
    """``rows`` as payloads of about ``target`` bytes, each a whole number of rows.

    LocalProtocolError when a row cannot be encoded or is larger than a
    payload may be; payloads already given stay valid.
    """
    packer = msgpack.Packer()
    parts: list[bytes] = []
    size = 0
    try:
        for row in rows:
            packed = packer.pack(tuple(row))
            if len(packed) > MAX_PAYLOAD:
                raise ValueError("it is too long")
            if size + len(packed) > MAX_PAYLOAD:
                yield b"".join(parts)
                parts, size = [], 0
            parts.append(packed)
            size += len(packed)
            if size >= target:
                yield b"".join(parts)
                parts, size = [], 0
    except (ValueError, TypeError, OverflowError) as error:
        raise LocalProtocolError(f"a row cannot be encoded: {error}") from None
    if parts:
        yield b"".join(parts)


def unpack_rows(payload: Buffer) -> Iterator[Row]:
    """The rows of one payload; RemoteProtocolError at the first that is not a flat array of scalars."""
    size = len(payload)
    unpacker = msgpack.Unpacker(
        use_list=False,
        raw=False,
        max_buffer_size=MAX_PAYLOAD,
        max_array_len=MAX_ROW_FIELDS,
        max_map_len=0,
        ext_hook=_refuse_extension,
    )
    try:
        if not 0 < size <= MAX_PAYLOAD:
            raise ValueError(f"it has {size} bytes")
        unpacker.feed(payload)
        # Not "for row in unpacker", which ends in silence within a row.
        while unpacker.tell() < size:
            row = unpacker.unpack()
            if type(row) is not tuple or not row or not _SCALARS.issuperset(map(type, row)):
                raise ValueError("a row is not a flat array")
            yield row
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"rows cannot be read: {_reason(error)}") from None

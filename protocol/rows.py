"""The rows of bodies: what each kind of row must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from protocol.codec import Buffer, unpack_rows
from protocol.digest import DIGEST_BYTES
from protocol.errors import RemoteProtocolError
from protocol.manifest import Entry, check_entry
from protocol.paths import RelPath, escape, parse_path, sort_key

__all__ = ["ContentRow", "RowReader", "change_row", "content_row", "path_row"]

MAX_SIZE = 1 << 60
MAX_ROWS = 10_000_000  # ten times the largest tree that DSG is built for

_T = TypeVar("_T")


class ContentRow(NamedTuple):
    """A file wanted by ``files.get``: its path, raw content digest and size."""

    path: RelPath
    content: bytes
    size: int


def content_row(row: Any) -> ContentRow:
    """``[path, digest, size]``; ValueError when it is not that."""
    if len(row) != 3:
        raise ValueError("a row does not have 3 fields")
    path, content, size = row
    if type(content) is not bytes or len(content) != DIGEST_BYTES:
        raise ValueError("a digest does not have 32 bytes")
    if type(size) is not int or not 0 <= size <= MAX_SIZE:
        raise ValueError("a size is out of range")
    return ContentRow(path_row((path,)), content, size)


def path_row(row: Any) -> RelPath:
    """``[path]``; ValueError when it is not that."""
    if len(row) != 1 or type(row[0]) is not str:
        raise ValueError("a row is not a path")
    return parse_path(row[0])


def change_row(row: Any) -> Entry | RelPath:
    """An entry to put (8 fields), or the ``[path]`` of one to delete; ValueError when it is neither."""
    return path_row(row) if len(row) == 1 else check_entry(row)


class RowReader(Generic[_T]):
    """Reads the rows of one body with one of the functions above, payload by payload.

    RemoteProtocolError for a row that is not one, that does not follow the one
    before it in canonical order (so that no path comes twice), or that is
    more than ``most``.
    """

    def __init__(self, parse: Callable[[Any], _T], most: int = MAX_ROWS) -> None:
        self._parse = parse
        self._room = most
        self._previous = ""

    def read(self, payload: Buffer) -> Iterator[_T]:
        """The rows of the body's next payload."""
        for row in unpack_rows(payload):
            try:
                parsed = self._parse(row)
            except ValueError as error:
                raise RemoteProtocolError(f"a row cannot be read: {escape(str(error))}") from None
            path = str(row[0])  # every kind of row begins with its path
            key = sort_key(path)
            if key <= self._previous:
                raise RemoteProtocolError(f"rows are out of order at {escape(path)}")
            self._previous = key
            self._room -= 1
            if self._room < 0:
                raise RemoteProtocolError("a body holds too many rows")
            yield parsed

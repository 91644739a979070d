"""File contents as they are sent: read once, packed, checked that they stood still meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from protocol.filestream import PAYLOAD_TARGET, Packer
from protocol.tree.fs import ReadFile, Stat

__all__ = ["Source", "SourceChanged", "payloads"]

WHOLE = 256 * 1024  # a file up to this size is read by one call
LEAST_HOLE = 64 * 1024  # a shorter hole costs less as zeros


class SourceChanged(Exception):
    """The file at ``path`` is not, or no longer, what was to be sent."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Source(NamedTuple):
    """A file to send: its number in the body, where it is, its size in bytes."""

    number: int
    path: str
    size: int


def payloads(
    open_read: Callable[[str], ReadFile],
    sources: Iterable[Source],
    expected: Callable[[Source, Stat], bool],
) -> Iterator[bytes]:
    """The payloads of a file stream with the contents of ``sources``, in order.

    ``expected`` says whether a file's stat is the one that was planned with;
    it is asked before the first byte is read, and after the last one the stat
    must still be the same. Raises SourceChanged when it is not or the file is
    gone, and OSError as the system does; payloads already given are then
    worthless.
    """
    packer = Packer()
    for source in sources:
        try:
            opened = open_read(source.path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise SourceChanged(source.path) from None
        try:
            before = opened.stat()
            if before.size != source.size or not expected(source, before):
                raise SourceChanged(source.path)
            if source.size <= WHOLE:
                content = opened.read(source.size + 1)
                if len(content) != source.size:
                    raise SourceChanged(source.path)
                if content:
                    yield from packer.chunk(source.number, 0, content)
            else:
                yield from _large(packer, source, opened)
            if opened.stat() != before:
                raise SourceChanged(source.path)
        finally:
            opened.close()
        yield from packer.done(source.number, source.size)
    yield from packer.flush()


def _large(packer: Packer, source: Source, opened: ReadFile) -> Iterator[bytes]:
    at = 0
    for hole_at, hole_length in (*_holes(opened, source.size), (source.size, 0)):
        opened.seek(at)
        while at < hole_at:
            chunk = opened.read(min(PAYLOAD_TARGET, hole_at - at))
            if not chunk:
                raise SourceChanged(source.path)
            yield from packer.chunk(source.number, at, chunk)
            at += len(chunk)
        if hole_length:
            yield from packer.hole(source.number, at, hole_length)
            at += hole_length


def _holes(opened: ReadFile, size: int) -> Iterator[tuple[int, int]]:
    for at, length in opened.holes():
        inside = min(length, size - at)
        if inside >= LEAST_HOLE:
            yield at, inside

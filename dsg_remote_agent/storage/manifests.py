"""Manifests on disk: the canonical bytes in compressed blocks.

A file is ``DSGZ1\\n``, then for each block its length (u32, big-endian) and
that many bytes of zlib data, which inflate to at most 512 KiB. A block is what
one DATA frame carries, so that a stored manifest goes out as it lies there.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from queue import SimpleQueue

from dsg_remote_agent.storage.layout import manifest_path
from protocol.codec import Buffer
from protocol.errors import IntegrityError
from protocol.manifest import Manifest
from protocol.tree.fs import TreeFS

__all__ = ["BLOCK_BYTES", "BlockPacker", "inflate_blocks", "read_blocks"]

BLOCK_BYTES = 512 * 1024
MAX_STORED_BYTES = 1024 * 1024 - 64
_MAGIC = b"DSGZ1\n"
_LENGTH = struct.Struct(">I")
_LEVEL = 1  # a third of the size at 100 MB/s; higher levels gain little, as digests do not shrink
_MEMORY = 9  # zlib's most, 400 KB: a sixth faster than its usual 8


class BlockPacker:
    """A manifest on its way to the disk, compressed by a thread while it is made.

    zlib works outside the interpreter's lock. A context manager: leaving it ends the thread.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._blocks: SimpleQueue[tuple[int, bytearray] | None] = SimpleQueue()
        self._packed: list[bytes] = []  # by number; what is not done yet is empty
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._pack_all)
        self._thread.start()

    def __enter__(self) -> BlockPacker:
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.put(None)
        self._thread.join()

    def add(self, part: Buffer) -> None:
        """The next of the canonical bytes; parts may have any size."""
        view = memoryview(part)
        while len(self._waiting) + len(view) >= BLOCK_BYTES:
            room = BLOCK_BYTES - len(self._waiting)
            self._waiting += view[:room]
            view = view[room:]
            self._next_block()
        self._waiting += view

    def _next_block(self) -> None:
        self._packed.append(b"")
        self._blocks.put((len(self._packed) - 1, self._waiting))
        self._waiting = bytearray()

    def _pack_all(self) -> None:
        while (item := self._blocks.get()) is not None:
            number, block = item
            try:
                self._packed[number] = _pack(block)
            except BaseException as error:  # noqa: BLE001  for whoever writes the manifest
                self._failure = error

    def write(self, tree: TreeFS, path: str, head: bytes = b"") -> None:
        """Make the file ``path`` of ``head`` and, behind it, all that was added."""
        if self._waiting:
            self._next_block()
        self._blocks.put(None)
        self._blocks.put(None)
        self._pack_all()  # there are two now
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        out = tree.create(path)
        try:
            out.write(_MAGIC)
            for packed in (*([_pack(head)] if head else ()), *self._packed):
                out.write(_LENGTH.pack(len(packed)) + packed)
            out.finish(executable=False, mtime_ns=None)
        finally:
            out.close()


def _pack(block: Buffer) -> bytes:
    packer = zlib.compressobj(_LEVEL, memLevel=_MEMORY)
    return packer.compress(block) + packer.flush()


def read_blocks(tree: TreeFS, path: str, shown: str) -> Iterator[bytes]:
    """The compressed blocks of the file ``path``; IntegrityError when it is not such a file."""
    stored = tree.open_read(path)
    try:
        if stored.read(len(_MAGIC)) != _MAGIC:
            raise damaged(shown, path, "it does not begin as a stored manifest")
        while header := stored.read(_LENGTH.size):
            length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else 0
            if not 0 < length <= MAX_STORED_BYTES:
                raise damaged(shown, path, "a block has an impossible length")
            block = stored.read(length)
            if len(block) != length:
                raise damaged(shown, path, "it ends in the middle of a block")
            yield block
    finally:
        stored.close()


def inflate_blocks(blocks: Iterable[bytes], digest: str, seq: int, shown: str) -> Manifest:
    """The manifest of snapshot ``seq`` from its blocks; IntegrityError unless its digest is ``digest``."""
    pieces = []
    for block in blocks:
        inflater = zlib.decompressobj()
        try:
            pieces.append(inflater.decompress(block, BLOCK_BYTES))
        except zlib.error as error:
            raise damaged(shown, manifest_path(seq), str(error)) from None
        if inflater.unconsumed_tail or not inflater.eof:
            raise damaged(shown, manifest_path(seq), "a block does not end where it should")
    try:
        return Manifest.from_bytes(b"".join(pieces), digest)
    except IntegrityError as error:
        raise damaged(shown, manifest_path(seq), error.message) from None


def damaged(shown: str, path: str, why: str) -> IntegrityError:
    """The error for a stored manifest that cannot be used."""
    return IntegrityError(
        f"{shown}/{path} is damaged: {why}",
        hint="restore it from a backup of the repository's .dsg folder; nothing was changed",
        facts={"path": path},
    )

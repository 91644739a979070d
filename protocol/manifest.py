"""Manifests: the sorted entries of one tree, their canonical encoding and digest.

Encoding (``docs/formats.md``): ``DSGM1\\n``, then a msgpack array
``[algorithm, count]``, then ``count`` msgpack arrays
``[path, kind, content, executable, size, mtime_ns, who, seq]`` in canonical
order (:func:`protocol.paths.sort_key`), with no padding. The digest is over
all of these bytes with the manifest's own algorithm.

A manifest is kept as its encoded bytes and decoded while iterating: a million
entries are about 120 MB of bytes, not a million live objects.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import msgpack

from protocol.codec import Buffer
from protocol.digest import DEFAULT, DIGEST_BYTES, hasher
from protocol.errors import IntegrityError
from protocol.paths import check_link_target, path_problem, sort_key
from protocol.value import Value

__all__ = ["FILE", "LINK", "Entry", "Manifest", "Row", "same"]

FILE = 0
LINK = 1

_MAGIC = b"DSGM1\n"
_MAX_FIELD = 4096  # bytes of a path or a link's target, and a little


class Entry(NamedTuple):
    """One file or link of a tree. A tuple, not an attrs class: there may be millions.

    ``content``: the raw digest of a file, the UTF-8 target of a link.
    Equality of versions is ``kind``, ``content`` and ``executable`` (see
    :func:`same`); the rest travels with it: ``size`` in bytes, ``mtime_ns``
    since the epoch (0 for links), ``who`` last changed it, and ``seq``, the
    snapshot that brought this version (0 in a local scan).
    """

    path: str
    kind: int
    content: bytes
    executable: bool
    size: int
    mtime_ns: int
    who: str = ""
    seq: int = 0

    @property
    def version(self) -> tuple[int, bytes, bool]:
        """What equality compares."""
        return self[1:4]


Row = tuple[str, int, bytes, bool, int, int, str, int]

_entry_of: Callable[[Any], Entry] = partial(tuple.__new__, Entry)


def same(a: Entry | None, b: Entry | None) -> bool:
    """Whether both are absent, or both hold the same version (content, kind, executable bit)."""
    if a is None or b is None:
        return a is b
    return a[1:4] == b[1:4]


class Manifest(Value):
    """An immutable, sorted set of entries. Iterating decodes them in canonical order."""

    algorithm: str
    count: int
    digest: str  # tagged, of the whole encoding
    _encoded: bytes
    _body_at: int

    def __repr__(self) -> str:
        return f"Manifest({self.count} entries, {self.digest[:20]})"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Entry]:
        return map(_entry_of, self.rows())

    def rows(self, first: int = 0) -> Iterator[Row]:
        """The entries from ``first`` on as plain tuples: for a loop over all of them, half the cost.

        Those before ``first`` are passed over, 60 ns each.
        """
        rows = self._rows()
        for _ in range(min(first, self.count)):
            rows.skip()
        return islice(rows, self.count - first if first < self.count else 0)

    def row(self, number: int) -> Row:
        """One entry, counted from 0."""
        return next(self.rows(number))

    def unpacker(self, at: int | None = None) -> tuple[Any, int]:
        """A msgpack.Unpacker of the entries, and where in the encoding it begins: at the first, or at ``at``.

        Its limits keep a hostile manifest from claiming memory.
        """
        begin = self._body_at if at is None else at
        stream = io.BytesIO(self._encoded)
        stream.seek(begin)
        return msgpack.Unpacker(
            stream,
            use_list=False,
            read_size=1 << 14,
            max_buffer_size=1 << 20,
            max_array_len=8,
            max_map_len=0,
            max_str_len=_MAX_FIELD,
            max_bin_len=_MAX_FIELD,
            max_ext_len=0,
        ), begin

    def _rows(self) -> Any:
        return self.unpacker()[0]

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        return self._encoded

    @classmethod
    def from_entries(cls, entries: Iterable[Entry], algorithm: str = DEFAULT) -> Manifest:
        """The manifest of ``entries``, which must be in canonical order (not checked here)."""
        pack = msgpack.Packer(autoreset=False)
        count = 0
        for entry in entries:
            pack.pack(entry)
            count += 1
        return cls.from_parts(algorithm, count, [pack.getbuffer()])

    @classmethod
    def from_parts(cls, algorithm: str, count: int, parts: Iterable[Buffer]) -> Manifest:
        """The manifest of ``count`` entries whose encodings, one after the other, are ``parts``."""
        head = _head(algorithm, count)
        encoded = b"".join([head, *parts])
        return cls(algorithm, count, _digest(algorithm, encoded), encoded, len(head))

    @classmethod
    def from_bytes(
        cls, encoded: bytes, expected_digest: str | None = None, *, trusted: bool = False
    ) -> Manifest:
        """Take an encoding as it came from disk or wire.

        Checks the frame and, when given, the digest; :meth:`validate` checks
        the entries. IntegrityError when either does not hold. ``trusted``:
        that these bytes have this digest is known from elsewhere.
        """
        try:
            if not encoded.startswith(_MAGIC):
                raise ValueError("it does not begin with the manifest's magic")
            unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=256)
            unpacker.feed(encoded[len(_MAGIC) : len(_MAGIC) + 64])
            algorithm, count = unpacker.unpack()
            if type(algorithm) is not str or type(count) is not int or not 0 <= count <= len(encoded):
                raise ValueError("its header is damaged")
            hasher(algorithm)  # nobody goes on with what cannot be compared here
            digest = expected_digest if trusted and expected_digest else _digest(algorithm, encoded)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise IntegrityError(f"a manifest cannot be read: {error}") from None
        if expected_digest is not None and digest != expected_digest:
            raise IntegrityError(f"a manifest is damaged: its digest is {digest}, expected {expected_digest}")
        return cls(algorithm, count, digest, encoded, len(_MAGIC) + unpacker.tell())

    def validate(self) -> Manifest:
        """Check every entry (hostile input); returns self. IntegrityError names the first bad one.

        Checks types and ranges, paths, link targets, strict order, and that
        no file stands where another's folder is.
        """
        previous = ""
        previous_key = ""
        try:
            rows = self._rows()
            for _ in range(self.count):
                path = check_entry(rows.unpack()).path
                key = sort_key(path)
                if key <= previous_key:
                    raise ValueError(f"{path!r} stands after {previous!r}")
                if previous and key.startswith(previous_key + "\0"):
                    raise ValueError(f"{previous!r} is both a file and a folder")
                previous, previous_key = path, key
            if rows.tell() != len(self._encoded) - self._body_at:
                raise ValueError("it holds more than the entries that it says")
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            reason = "it is cut short" if isinstance(error, msgpack.OutOfData) else error
            raise IntegrityError(f"a manifest cannot be used: {reason}") from None
        return self


def check_entry(row: Any) -> Entry:
    """``row`` as a valid Entry; ValueError when any field is not what it must be."""
    if not isinstance(row, tuple) or len(row) != 8:
        raise ValueError("an entry does not have 8 fields")
    entry = _entry_of(row)
    path, kind, content, executable, size, mtime_ns, who, seq = row
    if not isinstance(path, str):
        raise ValueError("a path is not text")
    problem = path_problem(path)
    if problem:
        raise ValueError(f"{path!r}: {problem}")
    if not isinstance(content, bytes) or not isinstance(executable, bool):
        raise ValueError(f"{path!r}: a field has the wrong type")
    for number, low, high in ((size, 0, 1 << 60), (mtime_ns, -(1 << 62), 1 << 62), (seq, 0, 1 << 40)):
        if type(number) is not int or not low <= number <= high:
            raise ValueError(f"{path!r}: a number is out of range")
    if not isinstance(who, str) or len(who) > 200:
        raise ValueError(f"{path!r}: the name of who changed it is not text of at most 200 characters")
    if kind == FILE and type(kind) is int:
        if len(content) != DIGEST_BYTES:
            raise ValueError(f"{path!r}: the digest has {len(content)} bytes")
    elif kind == LINK and type(kind) is int:
        problem = check_link_target(path, content.decode("utf-8"))
        if problem or executable:
            raise ValueError(f"{path!r}: {problem or 'a link cannot be executable'}")
    else:
        raise ValueError(f"{path!r}: unknown kind of entry")
    return entry


def _head(algorithm: str, count: int) -> bytes:
    packed: bytes = msgpack.packb((algorithm, count))
    return _MAGIC + packed


def _digest(algorithm: str, encoded: bytes) -> str:
    h = hasher(algorithm)
    h.update(encoded)
    return f"{algorithm}:{h.digest().hex()}"

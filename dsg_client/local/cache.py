"""C, the cache: the manifest that local and remote last agreed on, and of which snapshot it is.

C decides what a sync takes for a deletion, so it is never guessed: missing or
damaged, it is an error with a way out, and never empty. It is replaced by
rename in a transaction's apply; :func:`encode_cache` gives the bytes for
staging.

The file (``docs/formats.md``): ``DSGC``, the format number (2 bytes), the
header's length (4 bytes), the header (a msgpack map), the manifest's
canonical encoding, and the SHA-256 of all before it.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Iterator
from typing import Any

import msgpack

from protocol.digest import parse_tagged
from protocol.errors import IntegrityError, LocalStorageError, VersionError
from protocol.manifest import Entry, Manifest
from protocol.tree.fs import TreeFS
from protocol.value import Value

__all__ = ["CACHE_PATH", "Cache", "decode_cache", "encode_cache", "load_cache"]

CACHE_PATH = ".dsg/cache"
FORMAT = 1

_MAGIC = b"DSGC"
_FIXED = struct.Struct(">4sHI")
_DIGEST_BYTES = 32
_LIMIT = 1 << 33
_WAY_OUT = (
    "'dsg recover --rebuild-cache' makes it again from the server and the files here; it changes neither. "
    "Until then nothing is synced."
)


class Cache(Value):
    """What L and R agreed on at the last sync.

    ``record`` is the tagged digest of the snapshot record whose chain C stands
    on, ``seq`` its number, ``rules`` the digest of the scope rules then in
    force.
    """

    repo_id: str
    record: str
    seq: int
    rules: str
    manifest: Manifest

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.manifest)

    def __len__(self) -> int:
        return len(self.manifest)


def encode_cache(cache: Cache) -> bytes:
    """The file's bytes."""
    header: bytes = msgpack.packb(
        {
            "manifest": cache.manifest.digest,
            "record": cache.record,
            "repo_id": cache.repo_id,
            "rules": cache.rules,
            "seq": cache.seq,
        }
    )
    parts = [_FIXED.pack(_MAGIC, FORMAT, len(header)), header, cache.manifest.to_bytes()]
    h = hashlib.sha256(usedforsecurity=False)
    for part in parts:
        h.update(part)
    return b"".join([*parts, h.digest()])


def load_cache(tree: TreeFS) -> Cache:
    """C of the working folder.

    IntegrityError when it is missing or damaged, VersionError when a newer
    DSG wrote it, LocalStorageError when it cannot be read. Changes nothing.
    """
    try:
        data = tree.read_bytes(CACHE_PATH, _LIMIT)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise IntegrityError(
                f"{CACHE_PATH} is missing: what this folder last had in common "
                "with the repository is not known",
                hint=_WAY_OUT,
                facts={"path": CACHE_PATH},
            ) from None
        if error.errno in (errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.EFBIG):
            raise _damaged(f"it is not a file that DSG wrote ({error.strerror})") from None
        raise LocalStorageError(
            f"{CACHE_PATH} cannot be read: {error.strerror}",
            hint="Check the rights of the .dsg folder and the disk.",
            facts={"path": CACHE_PATH},
        ) from error
    return decode_cache(data)


def decode_cache(data: bytes) -> Cache:
    """The Cache in a file's bytes; raises as :func:`load_cache` does."""
    if len(data) < _FIXED.size + _DIGEST_BYTES:
        raise _damaged(f"it has only {len(data)} bytes")
    magic, number, length = _FIXED.unpack_from(data)
    if magic != _MAGIC:
        raise _damaged("it does not begin like a cache")
    if number > FORMAT:
        raise VersionError(
            f"{CACHE_PATH} has format {number}, and this version of DSG reads formats up to {FORMAT}",
            hint="Upgrade DSG on this machine: pip install --upgrade dsg-sync.",
            facts={"path": CACHE_PATH, "format": number},
        )
    view = memoryview(data)
    body, trailer = view[:-_DIGEST_BYTES], view[-_DIGEST_BYTES:]
    if hashlib.sha256(body, usedforsecurity=False).digest() != trailer:
        raise _damaged("its checksum does not fit its content")
    try:
        if number < 1 or length > len(body) - _FIXED.size:
            raise ValueError("its header is cut off")
        header: Any = msgpack.unpackb(body[_FIXED.size : _FIXED.size + length])
        texts = {name: header[name] for name in ("manifest", "record", "repo_id", "rules")}
        seq = header["seq"]
        if not all(type(v) is str for v in texts.values()) or type(seq) is not int or seq < 0:
            raise ValueError("a field of its header has the wrong type")
        parse_tagged(texts["record"])
        # The checksum covers the manifest and its digest: to work that out again would take as long.
        manifest = Manifest.from_bytes(
            bytes(body[_FIXED.size + length :]), texts.pop("manifest"), trusted=True
        )
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
        raise _damaged(str(error)) from None
    except IntegrityError as error:
        raise _damaged(error.message) from None
    return Cache(seq=seq, manifest=manifest, **texts)


def _damaged(reason: str) -> IntegrityError:
    return IntegrityError(
        f"{CACHE_PATH} is damaged: {reason}", hint=_WAY_OUT, facts={"path": CACHE_PATH, "reason": reason}
    )

"""Digest algorithms, by the tag that stands in manifests and records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

__all__ = ["ALGORITHMS", "DEFAULT", "Hasher", "hasher", "parse_tagged", "tagged"]

DEFAULT = "sha256"


class Hasher(Protocol):
    """The part of hashlib's interface that DSG uses."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


def _blake3() -> Hasher:
    try:
        import blake3
    except ImportError:
        raise ValueError(
            "this repository uses blake3 digests, and the Python package 'blake3' is not installed here"
        ) from None
    made: Hasher = blake3.blake3()
    return made


ALGORITHMS: dict[str, Callable[[], Hasher]] = {
    "sha256": lambda: hashlib.sha256(usedforsecurity=False),
    "blake3": _blake3,
}
DIGEST_BYTES = 32  # of every algorithm above
_HEX_DIGITS = frozenset("0123456789abcdef")


def hasher(algorithm: str) -> Hasher:
    """A fresh hasher; ValueError for an algorithm that is unknown or not installed."""
    try:
        make = ALGORITHMS[algorithm]
    except KeyError:
        raise ValueError(f"unknown digest algorithm {algorithm!r}") from None
    return make()


def tagged(algorithm: str, data: bytes) -> str:
    """Digest of ``data`` as text, ``sha256:<hex>``."""
    h = hasher(algorithm)
    h.update(data)
    return f"{algorithm}:{h.digest().hex()}"


def parse_tagged(text: str) -> tuple[str, bytes]:
    """``sha256:<hex>`` as (algorithm, raw digest); ValueError when it is not one."""
    algorithm, colon, digits = text.partition(":")
    if (
        not colon
        or algorithm not in ALGORITHMS
        or len(digits) != 2 * DIGEST_BYTES
        or not _HEX_DIGITS.issuperset(digits)  # bytes.fromhex would pass over spaces
    ):
        raise ValueError(f"not a tagged digest: {text[:80]!r}")
    return algorithm, bytes.fromhex(digits)

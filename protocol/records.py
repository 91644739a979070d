"""Snapshot records and their chain.

A record is a canonical msgpack map (keys sorted); its digest is over these
bytes. Each record holds the digest of its parent, so that the head's digest
vouches for all of history; records stay when their snapshot is pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgpack

from protocol.digest import parse_tagged, tagged
from protocol.errors import IntegrityError
from protocol.value import Value

__all__ = ["SnapshotRecord", "check_chain"]

MAX_RECORD_BYTES = 64 * 1024
_MOST = 1 << 62
_NUMBERS = frozenset(["seq", "time", "entries", "size", "added", "changed", "deleted", "format"])


class SnapshotRecord(Value):
    """One committed snapshot.

    ``parent`` is the parent record's tagged digest ('' for seq 0), ``time``
    seconds since the epoch on the server, ``entries`` and ``size`` the count
    and bytes of the whole tree; ``added``, ``changed``, ``deleted`` count
    entries against the parent.
    """

    repo_id: str
    seq: int
    manifest: str
    parent: str
    txid: str
    user: str
    host: str
    time: int
    message: str
    entries: int
    size: int
    added: int
    changed: int
    deleted: int
    format: int = 1

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        packed: bytes = msgpack.packb(dict(sorted(self.to_map().items())))
        return packed

    @property
    def digest(self) -> str:
        """Tagged digest of the encoding, by the manifest's algorithm."""
        return tagged(parse_tagged(self.manifest)[0], self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, expected_digest: str | None = None) -> SnapshotRecord:
        """Decode and check; IntegrityError when it is not a record, or not the expected one."""
        try:
            if len(data) > MAX_RECORD_BYTES:
                raise ValueError("it is too long")
            found: Any = msgpack.unpackb(data, max_array_len=0, max_map_len=32)
            if not isinstance(found, dict):
                raise ValueError("it is not a map")
            if found.get("format") != 1:
                raise ValueError(f"its format is {found.get('format')!r}; this version of DSG reads format 1")
            if set(found) != set(cls._names):
                raise ValueError("it has other fields than a record")
            for name in cls._names:
                kind = int if name in _NUMBERS else str
                if type(found[name]) is not kind:
                    raise ValueError(f"its field {name!r} has the wrong type")
                if kind is int and not 0 <= found[name] < _MOST:
                    raise ValueError(f"its field {name!r} is out of range")
            parse_tagged(found["manifest"])
            if found["seq"]:
                parse_tagged(found["parent"])
            elif found["parent"]:
                raise ValueError("it is the first and names a parent")
            record = cls(**found)
            if record.to_bytes() != data:
                raise ValueError("it is not in canonical form")
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise IntegrityError(f"a snapshot record cannot be read: {error}") from None
        if expected_digest is not None and record.digest != expected_digest:
            raise IntegrityError(
                f"the record of snapshot s{record.seq} is damaged: "
                f"its digest is {record.digest}, expected {expected_digest}"
            )
        return record


def check_chain(records: Sequence[SnapshotRecord]) -> None:
    """Check that ``records``, oldest first, follow one another; IntegrityError names the first break."""
    for older, newer in pairwise(records):
        if newer.seq != older.seq + 1 or newer.parent != older.digest or newer.repo_id != older.repo_id:
            raise IntegrityError(f"the chain of snapshots is broken between s{older.seq} and s{newer.seq}")

"""Names of datasets and snapshots, and the value of ``dsg:head``, as types that cannot hold a bad one."""

from __future__ import annotations

import re
from typing import NamedTuple

from protocol.digest import parse_tagged
from protocol.errors import IntegrityError, UsageError
from protocol.paths import escape

__all__ = [
    "GENERATIONS",
    "PREFIX",
    "HeadValue",
    "base_snapshot",
    "generation_number",
    "parse_dataset",
    "parse_source",
    "reader_name",
    "snapshot",
    "snapshot_number",
]

PREFIX = "zfs:"  # of an address
GENERATIONS = ".gen"  # the folder below a root in which everything is mounted

# What ZFS allows, less what begins with a sign that a program or a shell may take for something else.
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GENERATION = re.compile(r"g(0|[1-9][0-9]{0,17})")
_SNAPSHOT = re.compile(r"s(0|[1-9][0-9]{0,17})")
_MAX_DATASET = 200  # ZFS ends at 255, with the generation and the snapshot


def parse_dataset(name: str) -> str:
    """The dataset of a repository; UsageError unless it is ``pool/…/name``, and the name will do as a folder.

    A pool itself is never a repository.
    """
    parts = name.split("/")
    why = ""
    if len(parts) < 2:
        why = "it is a pool; a repository lies below one"
    elif len(name) > _MAX_DATASET:
        why = f"it is longer than {_MAX_DATASET} characters"
    elif not all(map(_COMPONENT.fullmatch, parts)):
        why = "ZFS names consist of letters, digits, '-', '_', '.' and ':'"
    elif not _REPOSITORY.fullmatch(parts[-1]):
        why = "its last part becomes a folder's name: at most 64 letters, digits, '-', '_' and '.'"
    if why:
        raise UsageError(
            f"{escape(name[:300])!r} is no dataset for a repository: {why}",
            hint="write zfs:POOL/…/NAME, as in zfs:tank/dsg/survey",
        )
    return name


def parse_source(name: str) -> str:
    """The dataset that is to be taken over; UsageError unless it is ``pool/…/name``."""
    parts = name.split("/")
    why = ""
    if len(parts) < 2:
        why = "it is a pool, of which no repository can be made"
    elif len(name) > _MAX_DATASET:
        why = f"it is longer than {_MAX_DATASET} characters: zfs rename it first"
    elif not all(map(_COMPONENT.fullmatch, parts)):
        why = "a dataset's name consists of letters, digits, '-', '_', '.' and ':'; zfs rename it first"
    if why:
        raise UsageError(
            f"{escape(name[:300])!r} cannot be taken over: {why}",
            hint="write POOL/…/NAME, as zfs list shows it",
        )
    return name


def generation_number(name: str) -> int | None:
    """N of the last part ``gN`` of a dataset's name; None when it is something else."""
    found = _GENERATION.fullmatch(name.rpartition("/")[2])
    return int(found[1]) if found else None


def snapshot(seq: int) -> str:
    """The name of the snapshot that holds version ``seq``."""
    return f"s{seq}"


def snapshot_number(name: str, dataset: str) -> int | None:
    """N of the snapshot ``DATASET@sN``; None when it is another's, or of another name."""
    found = _SNAPSHOT.fullmatch(name.removeprefix(f"{dataset}@"))
    return int(found[1]) if found else None


def base_snapshot(txid: str) -> str:
    """The name of the snapshot that transaction ``txid`` takes of a head that was written to outside DSG."""
    return f"base-{txid}"


def reader_name(pid: int, token: str) -> str:
    """The name of a clone that a process makes to read an older snapshot."""
    return f"r{pid}-{token}"


class HeadValue(NamedTuple):
    """What ``dsg:head`` says: the head's generation, snapshot, transaction and record digest."""

    generation: int
    seq: int
    txid: str
    record: str

    def __str__(self) -> str:
        return f"g{self.generation}@{snapshot(self.seq)}:{self.txid}:{self.record}"

    @classmethod
    def parse(cls, text: str, shown: str) -> HeadValue:
        """The value read from the repository ``shown``; IntegrityError when it is none."""
        found = re.fullmatch(
            r"g(0|[1-9][0-9]{0,17})@s(0|[1-9][0-9]{0,17}):([A-Za-z0-9_-]{0,64}):([^:]+:.+)", text
        )
        try:
            if found is None:
                raise ValueError
            parse_tagged(found[4])
        except ValueError:
            raise IntegrityError(
                f"the property dsg:head of {shown} is damaged: {escape(text[:200])!r}",
                hint="it must be gN@sN:TXID:RECORD of the newest whole generation; nothing was changed",
            ) from None
        return cls(int(found[1]), int(found[2]), found[3], found[4])

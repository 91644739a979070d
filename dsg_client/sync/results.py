"""What a sync, a status or a clone came to: values for rendering and for scripts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dsg_client.core.conflict import Conflict, What
from dsg_client.core.guard import MassDeletion
from dsg_client.core.plan import Plan
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.value import Value

__all__ = ["Changes", "StatusResult", "SyncResult", "conflict_fields", "conflict_text", "shown_time"]


_NO_RECORDS: Mapping[int, SnapshotRecord] = {}


class Changes(Value):
    """The paths a plan touches, by what happens to them."""

    upload: tuple[str, ...] = ()
    download: tuple[str, ...] = ()
    delete_local: tuple[str, ...] = ()
    delete_remote: tuple[str, ...] = ()
    upload_bytes: int = 0
    download_bytes: int = 0
    cache_only: int = 0  # paths already the same on both sides, news only for the cache
    new: frozenset[str] = frozenset()  # of upload and download: paths the other side did not have

    @classmethod
    def of(cls, plan: Plan) -> Changes:
        """Those of ``plan``."""
        moves = (*plan.uploads, *plan.downloads)
        return cls(
            upload=tuple(c.path for c in plan.uploads),
            download=tuple(c.path for c in plan.downloads),
            delete_local=tuple(e.path for e in plan.delete_local),
            delete_remote=tuple(e.path for e in plan.delete_remote),
            upload_bytes=plan.upload_bytes,
            download_bytes=plan.download_bytes,
            cache_only=len(plan.cache_updates) + len(plan.cache_drops),
            new=frozenset(c.path for c in moves if c.before is None),
        )

    def __bool__(self) -> bool:
        return bool(self.upload or self.download or self.delete_local or self.delete_remote)

    def lines(self, limit: int | None = None) -> list[str]:
        """A line for each path, at most ``limit`` of each kind and then a count."""
        lines = []
        for label, paths in (
            ("upload", self.upload),
            ("download", self.download),
            ("delete on the server", self.delete_remote),
            ("delete here", self.delete_local),
        ):
            for path in paths[:limit]:
                mark = " (new)" if path in self.new else ""
                lines.append(f"  {label:<20} {escape(path)}{mark}")
            if limit is not None and len(paths) > limit:
                lines.append(f"  {label:<20} ... and {len(paths) - limit:,} more")
        return lines

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "upload": list(self.upload),
            "download": list(self.download),
            "delete_local": list(self.delete_local),
            "delete_remote": list(self.delete_remote),
            "upload_bytes": self.upload_bytes,
            "download_bytes": self.download_bytes,
        }


class SyncResult(Value):
    """What a sync came to. ``state``: ``done``, ``nothing`` or ``dry-run``."""

    state: str
    seq: int
    entries: int
    changes: Changes
    made_snapshot: bool = False
    record: str = ""
    held: tuple[tuple[str, str], ...] = ()
    rescued: tuple[tuple[str, str], ...] = ()
    plan_digest: str = ""

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "state": self.state,
            "seq": self.seq,
            "entries": self.entries,
            "made_snapshot": self.made_snapshot,
            "record": self.record,
            "plan": self.plan_digest,
            "changes": self.changes.fields(),
            "held": [{"path": path, "reason": reason} for path, reason in self.held],
            "rescued": [{"path": path, "where": where} for path, where in self.rescued],
        }


class StatusResult(Value):
    """What a sync would do now."""

    offline: bool
    seq: int  # last synced here
    head: int | None  # of the server; None offline
    remote: str
    entries: int
    changes: Changes
    conflicts: tuple[Conflict, ...] = ()
    pending: str | None = None
    since: Mapping[int, SnapshotRecord] = _NO_RECORDS  # records after C's, where there are conflicts
    rotten: tuple[str, ...] = ()
    guard: tuple[MassDeletion, ...] = ()  # why a sync would stop unless mass deletion is allowed

    def headline(self) -> str:
        """The first line."""
        if self.offline:
            return f"{self.remote}: last synced s{self.seq}, {self.entries:,} files here (server not asked)"
        behind = "" if self.head == self.seq else f", server at s{self.head}"
        return f"{self.remote}: last synced s{self.seq}{behind}, {self.entries:,} files here"

    def conflict_lines(self) -> list[str]:
        """A line for each conflict."""
        return [f"  {conflict_text(c, self.since)}" for c in self.conflicts]

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "offline": self.offline,
            "remote": self.remote,
            "seq": self.seq,
            "head": self.head,
            "entries": self.entries,
            "changes": self.changes.fields(),
            "conflicts": [conflict_fields(c, self.since) for c in self.conflicts],
            "pending": self.pending,
            "rotten": list(self.rotten),
            "mass_deletions": [deletion.fields() for deletion in self.guard],
        }


def conflict_text(conflict: Conflict, since: Mapping[int, SnapshotRecord] = _NO_RECORDS) -> str:
    """One conflict in one line: who changed what and when, on each side.

    ``since``: the records after C's, by number; without them, what they would
    tell is left out.
    """
    here, there = conflict.here, conflict.there
    parts = []
    if here.mtime_ns:
        parts.append(f"here modified {shown_time(here.mtime_ns / 1e9)}")
    record = since.get(there.seq) if there.seq is not None else None
    if record is not None:
        parts.append(f"there synced {shown_time(record.time)} from {escape(record.host)}")
    elif there.what is What.DELETED and since:
        people = ", ".join(dict.fromkeys(escape(r.user) for r in since.values()))
        first, last = min(since), max(since)
        where = f"s{first}" if first == last else f"s{first} to s{last}"
        parts.append(f"deleted there in {where} by {people}, {shown_time(since[last].time)}")
    return "; ".join([conflict.explain(), *parts])


def shown_time(seconds: float) -> str:
    """A moment, in seconds since 1970, as people here write it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def conflict_fields(conflict: Conflict, since: Mapping[int, SnapshotRecord] = _NO_RECORDS) -> dict[str, Any]:
    """One conflict for ``--json``."""
    record = since.get(conflict.there.seq) if conflict.there.seq is not None else None

    def side(change: Any) -> dict[str, Any]:
        return {
            "what": change.what.value,
            "parts": list(change.parts),
            "who": change.who,
            "seq": change.seq,
            "mtime_ns": change.mtime_ns,
        }

    return {
        "path": conflict.path,
        "kind": conflict.kind.value,
        "local": side(conflict.here),
        "remote": {**side(conflict.there), "synced": record.time if record is not None else None},
        "other": conflict.other.path if conflict.other is not None else None,
    }

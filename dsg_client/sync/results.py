"""What a sync, a status or a clone came to: values for rendering and for scripts."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from dsg_client.core.conflict import Conflict
from dsg_client.core.plan import Plan
from protocol.paths import escape

__all__ = ["Changes", "StatusResult", "SyncResult", "conflict_fields", "conflict_text"]


@frozen
class Changes:
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


@frozen(kw_only=True)
class SyncResult:
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


@frozen(kw_only=True)
class StatusResult:
    """What a sync would do now."""

    offline: bool
    seq: int  # last synced here
    head: int | None  # of the server; None offline
    remote: str
    entries: int
    changes: Changes
    conflicts: tuple[Conflict, ...] = ()
    pending: str | None = None
    rotten: tuple[str, ...] = ()
    outside: int = 0

    def headline(self) -> str:
        """The first line."""
        if self.offline:
            return f"{self.remote}: last synced s{self.seq}, {self.entries:,} files here (server not asked)"
        behind = "" if self.head == self.seq else f", server at s{self.head}"
        return f"{self.remote}: last synced s{self.seq}{behind}, {self.entries:,} files here"

    def conflict_lines(self) -> list[str]:
        """A line for each conflict."""
        return [f"  {conflict_text(c)}" for c in self.conflicts]

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "offline": self.offline,
            "remote": self.remote,
            "seq": self.seq,
            "head": self.head,
            "entries": self.entries,
            "changes": self.changes.fields(),
            "conflicts": [conflict_fields(c) for c in self.conflicts],
            "pending": self.pending,
            "rotten": list(self.rotten),
            "outside": self.outside,
        }


def conflict_text(conflict: Conflict) -> str:
    """One conflict in one line: who changed what and when, on each side."""
    import time

    def when(ns: int | None) -> str:
        return f" ({time.strftime('%Y-%m-%d %H:%M', time.localtime(ns // 10**9))})" if ns else ""

    here, there = conflict.here, conflict.there
    text = conflict.explain()
    times = [
        f"here{when(here.mtime_ns)}" if here.mtime_ns else "",
        f"there{when(there.mtime_ns)}" if there.mtime_ns else "",
    ]
    times = [t for t in times if t]
    return f"{text}; modified {', '.join(times)}" if times else text


def conflict_fields(conflict: Conflict) -> dict[str, Any]:
    """One conflict for ``--json``."""

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
        "remote": side(conflict.there),
        "other": conflict.other.path if conflict.other is not None else None,
    }

"""Conflicts that explain themselves: what each side did to a path, and why both cannot stand."""

from __future__ import annotations

from enum import Enum

from dsg_client.core.choices import Choice
from dsg_client.core.states import State, Take
from protocol.manifest import Entry, same
from protocol.paths import escape
from protocol.value import Value

__all__ = ["Conflict", "ConflictKind", "Resolution", "SideChange", "What"]


class ConflictKind(Enum):
    """Why a path is a conflict."""

    BOTH_CHANGED = "both changed"
    BOTH_ADDED = "both added"
    DELETED_HERE_CHANGED_THERE = "deleted here, changed there"
    CHANGED_HERE_DELETED_THERE = "changed here, deleted there"
    FILE_AND_FOLDER = "file and folder"  # the merged tree would have a file where a folder is
    NAMES_COLLIDE = "names collide"  # the merged tree would have names that differ only in case or form


KIND_OF_STATE = {
    State.ALL_DIFFER: ConflictKind.BOTH_CHANGED,
    State.BOTH_ADDED: ConflictKind.BOTH_ADDED,
    State.LOCAL_DELETED_REMOTE_CHANGED: ConflictKind.DELETED_HERE_CHANGED_THERE,
    State.REMOTE_DELETED_LOCAL_CHANGED: ConflictKind.CHANGED_HERE_DELETED_THERE,
}


class What(Enum):
    """What one side did to a path since the last sync."""

    ABSENT = "absent"  # it was not there and is not there
    UNCHANGED = "unchanged"
    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"


class SideChange(Value):
    """What one side did to a path, who did it, and when.

    ``parts`` says of a CHANGED entry what differs from the last sync:
    ``type``, ``content``, ``executable``. ``seq`` is the snapshot that brought
    the remote version (None on the local side, and of a deletion: the entry
    that would say so is gone; the records since the last sync tell it).
    ``mtime_ns`` is the file's own time, None for links and what is absent.
    ``who`` is '' where it is not known.
    """

    what: What
    parts: tuple[str, ...] = ()
    who: str = ""
    seq: int | None = None
    mtime_ns: int | None = None


class Conflict(Value):
    """One path whose two sides cannot both stand, with the versions seen.

    ``other`` is, where the merged tree would be an impossible one, the entry
    that this path cannot stand beside (perhaps one of many); ``user`` is who
    is syncing.
    """

    path: str
    kind: ConflictKind
    local: Entry | None
    cache: Entry | None
    remote: Entry | None
    other: Entry | None = None
    user: str = ""

    @property
    def here(self) -> SideChange:
        """What was done in the working folder."""
        change = _change(self.cache, self.local)
        mtime_ns = self.local.mtime_ns if self.local is not None and self.local.mtime_ns else None
        who = self.user if change.what not in (What.ABSENT, What.UNCHANGED) else ""
        return SideChange(change.what, change.parts, who, None, mtime_ns)

    @property
    def there(self) -> SideChange:
        """What was done in the repository."""
        change = _change(self.cache, self.remote)
        if self.remote is None:
            return change
        r = self.remote
        return SideChange(change.what, change.parts, r.who, r.seq, r.mtime_ns or None)

    def choose(self, take: Take) -> Choice:
        """The choice of ``take`` for this conflict, bound to the versions in it."""
        return Choice.of(take, self.local, self.cache, self.remote)

    def explain(self) -> str:
        """One sentence, safe to show on a terminal."""
        if self.other is not None:
            side = "here" if self.remote is None else _by("there", self.there)
            why = (
                "one is a folder of the other's path"
                if self.kind is ConflictKind.FILE_AND_FOLDER
                else f"{_apart(self.path, self.other.path)} differ only in case or Unicode form"
            )
            return f"{escape(self.path)} ({side}) cannot stand beside {escape(self.other.path)}: {why}"
        return f"{escape(self.path)}: {_by('here', self.here)}; {_by('there', self.there)}"


class Resolution(Value):
    """A conflict that a choice (``chosen``) or else the preference settled."""

    conflict: Conflict
    take: Take
    chosen: bool


def _change(before: Entry | None, after: Entry | None) -> SideChange:
    if before is None:
        return SideChange(What.ABSENT if after is None else What.ADDED)
    if after is None:
        return SideChange(What.DELETED)
    if same(before, after):
        return SideChange(What.UNCHANGED)
    parts = []
    if before.kind != after.kind:
        parts.append("type")
    elif before.content != after.content:
        parts.append("content")
    if before.executable != after.executable:
        parts.append("executable")
    return SideChange(What.CHANGED, tuple(parts))


def _apart(path: str, other: str) -> str:
    """The first components in which two paths differ, quoted."""
    pairs = zip(path.split("/"), other.split("/"), strict=False)
    mine, theirs = next(((a, b) for a, b in pairs if a != b), (path, other))
    return f"'{escape(mine)}' and '{escape(theirs)}'"


def _by(where: str, change: SideChange) -> str:
    text = f"{change.what.value} {where}"
    if change.parts and change.parts != ("content",):
        text += f" ({', '.join(change.parts)})"
    if change.who:
        text += f" by {escape(change.who)}"
    if change.seq is not None:
        text += f" in s{change.seq}"
    return text

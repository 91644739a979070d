"""The plan: all that one sync will do, computed once and never recomputed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from dsg_client.core.conflict import Conflict, Resolution
from dsg_client.core.merge import Edit, kept_beside
from protocol.digest import DEFAULT, hasher
from protocol.errors import InternalError
from protocol.manifest import Entry, Manifest
from protocol.paths import sort_key
from protocol.splice import splice
from protocol.value import Value

__all__ = ["Change", "Plan"]


class Change(NamedTuple):
    """An upload or download: ``after`` takes the place of ``before`` on the receiving side.

    ``before`` is what that side has now, or None. Of an upload, ``after`` is
    the entry that the new snapshot will hold, with its ``who`` and ``seq``.
    """

    after: Entry
    before: Entry | None

    @property
    def path(self) -> str:
        """The path of both entries."""
        return self.after.path

    @property
    def moves_content(self) -> bool:
        """Whether content must travel, or only a link target or the executable bit differs.

        False too where the receiver holds the same content at this path.
        """
        if self.after.kind != 0:
            return False
        return self.before is None or self.before[1:3] != self.after[1:3]


class Plan(Value):
    """What a sync will do, path by path; every sequence is in canonical order.

    No path is in two of ``uploads``, ``downloads``, ``delete_local``,
    ``delete_remote``, ``cache_updates``, ``cache_drops`` and ``conflicts``. A
    plan with conflicts can be shown but not carried out.

    ``delete_local`` holds L's entries, ``delete_remote`` R's, ``cache_updates``
    R's (L is the same version already), ``cache_drops`` C's (gone on both
    sides, or out of scope since a change of the rules). ``kept`` are L's
    entries that a choice or preference replaces or deletes and whose content
    is neither in C nor in R: no snapshot holds it, so it is moved to
    ``.dsg/replaced``. ``lapsed`` are the paths of choices that did not apply.

    ``who`` and ``seq`` are what uploaded entries carry. Counts:
    ``local_entries`` and ``remote_entries`` in scope before the sync,
    ``outside_scope`` the remote entries out of scope, ``unchanged`` the paths
    that are the same in L, C and R.
    """

    who: str
    seq: int
    uploads: tuple[Change, ...] = ()
    downloads: tuple[Change, ...] = ()
    delete_local: tuple[Entry, ...] = ()
    delete_remote: tuple[Entry, ...] = ()
    cache_updates: tuple[Entry, ...] = ()
    cache_drops: tuple[Entry, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    kept: tuple[Entry, ...] = ()
    resolutions: tuple[Resolution, ...] = ()
    lapsed: tuple[str, ...] = ()
    local_entries: int = 0
    remote_entries: int = 0
    outside_scope: int = 0
    unchanged: int = 0

    @property
    def changes_remote(self) -> bool:
        """Whether a new snapshot is needed."""
        return bool(self.uploads or self.delete_remote)

    @property
    def changes_local(self) -> bool:
        """Whether anything in the working folder changes."""
        return bool(self.downloads or self.delete_local)

    @property
    def changes_cache(self) -> bool:
        """Whether C changes; it does whenever a side does."""
        return bool(self.changes_remote or self.changes_local or self.cache_updates or self.cache_drops)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do and nothing to decide."""
        return not (self.changes_cache or self.conflicts)

    @property
    def upload_bytes(self) -> int:
        """Size of the file content that goes to the repository."""
        return sum(change.after.size for change in self.uploads if change.moves_content)

    @property
    def download_bytes(self) -> int:
        """Size of the file content that comes from the repository."""
        return sum(change.after.size for change in self.downloads if change.moves_content)

    def remote_edits(self) -> Iterator[Edit]:
        """The changes of R in canonical order: uploads, and deletes with ``after`` None."""
        return _in_order(self.uploads, self.delete_remote)

    def local_edits(self) -> Iterator[Edit]:
        """The changes of L in canonical order: downloads, and deletes with ``after`` None."""
        return _in_order(self.downloads, self.delete_local)

    def merged_remote(self, remote: Manifest) -> Manifest:
        """The manifest of the new snapshot.

        ``remote`` is all of R, out of scope too, as it was given to
        ``reconcile``. Uploads carry the plan's ``who`` and ``seq``; all else
        is R's entry as it was. InternalError when the plan has conflicts, or
        when an entry that it changes is not in ``remote`` as it was.
        """
        self._carry_out()
        return splice(remote, self.remote_edits())

    def new_cache(
        self, cache: Iterable[Entry], merged: Iterable[Entry], held: Collection[str] = ()
    ) -> Iterator[Entry]:
        """The entries of C after this plan was carried out, streaming.

        ``cache`` is the C given to ``reconcile``, iterable more than once; ``merged`` is the manifest of
        the snapshot that L now agrees with (R itself when R did not change).
        What is in scope takes its entry from ``merged``. ``held`` are paths of
        L that could not be brought to the plan's state: they keep their old C
        entry, or none, and what cannot stand beside such an entry in one tree
        has none. InternalError when the plan has conflicts, TypeError when
        ``cache`` is an iterator.
        """
        self._carry_out()
        if iter(cache) is cache:
            raise TypeError("cache must be iterable more than once, not an iterator")
        # Out of scope is what R has, C does not, and the plan brings nowhere.
        arrived = {change.path for change in self.uploads}
        arrived.update(change.path for change in self.downloads)
        arrived.update(entry.path for entry in self.cache_updates)
        dropped = {entry.path for entry in self.cache_drops}
        unmoved = frozenset(held)
        fresh = _refreshed(cache, merged, arrived, dropped, unmoved)
        if not unmoved:
            return fresh
        return kept_beside(fresh, [entry for entry in cache if entry.path in unmoved])

    def caches_all(self, cache: Manifest, remote: Manifest) -> bool:
        """Whether the new C is the new snapshot, entry by entry, so that it need not be worked out.

        So it is when C was R, and all of it is still in scope.
        """
        return cache.digest == remote.digest and not self.cache_drops

    def digest(self, algorithm: str = DEFAULT) -> str:
        """Tagged digest over every action, version, attribution and conflict of the plan.

        The same L, C, R, choices, who and seq give the same digest in every
        process; so a dry run can be bound to the sync that follows it.
        """
        h = hasher(algorithm)
        for line in self._lines():
            h.update(f"{line}\n".encode("ascii"))
        return f"{algorithm}:{h.digest().hex()}"

    def _lines(self) -> Iterator[str]:
        # ascii() escapes every separator used here, and does so alike in every version of Python.
        yield f"DSG plan 1 {self.who!a} {self.seq}"
        for name, edits in (("remote", self.remote_edits()), ("local", self.local_edits())):
            for edit in edits:
                yield f"{name} {_text(edit.before)} {_text(edit.after)}"
        for name, entries in (
            ("update", self.cache_updates),
            ("drop", self.cache_drops),
            ("keep", self.kept),
        ):
            for entry in entries:
                yield f"{name} {_text(entry)}"
        for c in self.conflicts:
            versions = " ".join(map(_text, (c.local, c.cache, c.remote, c.other)))
            yield f"conflict {c.path!a} {c.kind.value} {versions}"

    def _carry_out(self) -> None:
        if self.conflicts:
            raise InternalError(
                f"a plan with {len(self.conflicts)} conflicts was about to be carried out",
                facts={"paths": [c.path for c in self.conflicts[:20]]},
            )


def _in_order(changes: Iterable[Change], deletes: Iterable[Entry]) -> Iterator[Edit]:
    edits = [Edit(after.path, before, after) for after, before in changes]
    edits += [Edit(entry.path, entry, None) for entry in deletes]
    edits.sort(key=_edit_key)
    return iter(edits)


def _edit_key(edit: Edit) -> str:
    return sort_key(edit.path)


def _text(entry: Entry | None) -> str:
    return "-" if entry is None else ascii(tuple(entry))


def _refreshed(
    cache: Iterable[Entry],
    merged: Iterable[Entry],
    arrived: Collection[str],
    dropped: Collection[str],
    unmoved: Collection[str],
) -> Iterator[Entry]:
    """What of ``merged`` is in ``cache`` and not ``dropped``, or has ``arrived``; nothing ``unmoved``."""
    old = iter(cache)
    known = next(old, None)
    for entry in merged:
        path = entry[0]
        while known is not None and known[0] != path and sort_key(known[0]) < sort_key(path):
            known = next(old, None)
        if known is not None and known[0] == path:
            known = next(old, None)
            if path in dropped:
                continue
        elif path not in arrived:
            continue
        if path not in unmoved:
            yield entry

"""The server's begin: what was changed there outside DSG is judged, and whether it has the room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.site import Site
from protocol.errors import OutsideChangeError, RemoteStorageError
from protocol.messages import OutsideChanges
from protocol.paths import escape

__all__ = ["begin_there"]

# Files that nobody synced, of which one that matters is looked for. Such a file is never lost: what is put in
# its place moves it to safety.
_MOST_STRAYS = 5000


async def begin_there(
    site: Site,
    repo: RemoteRepo,
    txid: str,
    *,
    base: str,
    need: int,
    accept: Callable[[OutsideChanges], bool],
) -> list[str]:
    """Begin a transaction on the record ``base``; the server's notes.

    ``need``: the bytes to be sent. ``accept`` tells whether changes made
    outside DSG may stand. OutsideChangeError for those that may not,
    RemoteStorageError without the room; what was begun is the caller's to abort.
    """
    try:
        begun = await repo.begin(txid, base=base, user=site.user, host=site.host)
    except OutsideChangeError as error:
        # The server knows nothing of the scope: what does not matter here is left out of the list.
        told = _told(error.facts, site.scope.in_scope)
        raise (_outside_error(told) if told else error) from None
    outside, seen = begun.outside, 0
    while outside:
        if not accept(outside):
            raise _outside_error(_in_scope(outside, site.scope.in_scope))
        seen += len(outside.added)
        if not (outside.more and outside.added) or seen >= _MOST_STRAYS:
            break
        # An answer tells of a thousand, and each takes a walk over the whole tree.
        outside = await repo.outside(seen)
    if need > begun.free:
        raise RemoteStorageError(
            f"not enough space on the server: {need:,} bytes are to be sent, and {begun.free:,} are free",
            hint="Ask the server's administrator for space, then run 'dsg sync' again.",
            facts={"needed": need, "free": begun.free},
        )
    return list(begun.notes)


def _told(facts: Mapping[str, Any], in_scope: Callable[[str], bool]) -> OutsideChanges:
    """What a server's refusal says of the changes, as far as it says what it should."""

    def paths(name: str) -> tuple[str, ...]:
        told = facts.get(name)
        return tuple(path for path in told[:1000] if isinstance(path, str)) if isinstance(told, list) else ()

    more = facts.get("more")
    return OutsideChanges(
        modified=paths("modified"),
        deleted=paths("deleted"),
        added=tuple(path for path in paths("added") if in_scope(path)),
        more=more if isinstance(more, int) and more > 0 else 0,
    )


def _in_scope(outside: OutsideChanges, in_scope: Callable[[str], bool]) -> OutsideChanges:
    """The changes without new files that nobody would sync; all of them when nothing else is left."""
    added = tuple(path for path in outside.added if in_scope(path))
    if not (added or outside.modified or outside.deleted):
        return outside
    return OutsideChanges(modified=outside.modified, deleted=outside.deleted, added=added, more=outside.more)


def _outside_error(outside: OutsideChanges) -> OutsideChangeError:
    """The repository's folder was changed without DSG."""
    groups = []
    for word, paths in (("changed", outside.modified), ("gone", outside.deleted), ("new", outside.added)):
        groups += [f"  {word:<8} {escape(path)}" for path in paths[:10]]
    total = len(outside.modified) + len(outside.deleted) + len(outside.added)
    count = f"{total} {'file' if total == 1 else 'files'}" if not outside.more else f"More than {total} files"
    were = "was" if count.startswith("1 ") else "were"
    if total > len(groups):
        groups.append("  ...")
    return OutsideChangeError(
        f"{count} on the server {were} changed outside DSG:\n" + "\n".join(groups),
        hint="'dsg adopt' takes these changes in; or put the files back as they were on the server.",
        facts={
            "modified": list(outside.modified),
            "deleted": list(outside.deleted),
            "added": list(outside.added),
            "more": outside.more,
        },
    )

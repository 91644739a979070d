"""What changed in a repository's folder without DSG: found by stat, confirmed by hashing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from dsg_remote_agent.storage.base import MAX_SHOWN
from dsg_remote_agent.storage.layout import AREA, INIT_PREFIX
from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex, row_of
from protocol.digest import hasher
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.messages import OutsideChanges
from protocol.paths import escape, sort_key
from protocol.tree.folders import look
from protocol.tree.fs import Kind, Stat, TreeFS
from protocol.value import Value

__all__ = ["Seen", "describe", "examine", "is_ours", "live_paths"]

READ_BYTES = 1 << 20
MAX_SHOWN_BYTES = 512 * 1024  # an answer is one frame
_KINDS = (Kind.FILE, Kind.LINK)
_TICK = 1024  # entries
_LONGEST = 16_000  # characters; what is longer is counted only


def is_ours(name: str) -> bool:
    """Whether a name at the repository's top is DSG's own: its area, or what a crash left of making one."""
    return name == AREA or name.startswith((INIT_PREFIX, ".dsg-probe-"))


def live_paths(tree: TreeFS) -> Iterator[tuple[str, Stat]]:
    """Every path of the live tree that is not a folder, with its stat, in canonical order; not ``.dsg``.

    A folder that cannot be read raises: what is not seen is never taken for
    deleted. One that vanishes meanwhile is taken as empty.
    """
    stack: list[tuple[str, Iterator[tuple[str, Stat]]]] = [("", tree.scan(""))]
    while stack:
        prefix, rest = stack[-1]
        for name, stat in rest:
            if not prefix and is_ours(name):
                continue
            path = prefix + name
            if stat.kind is Kind.FOLDER:
                stack.append((path + "/", _names_in(tree, path)))
                break
            yield path, stat
        else:
            stack.pop()


def _names_in(tree: TreeFS, folder: str) -> Iterator[tuple[str, Stat]]:
    try:
        yield from tree.scan(folder)
    except FileNotFoundError:
        return


class Seen(Value):
    """The outcome of one examination: what differs, and the index as it is now known.

    ``clock_ns``: the file system's time before the first file was read (None: none had to be).
    """

    outside: OutsideChanges
    index: StatIndex
    clock_ns: int | None


class _Found:
    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.modified: list[str] = []
        self.deleted: list[str] = []
        self.added: list[str] = []
        self.total = 0

    def note(self, paths: list[str], path: str) -> None:
        self.total += 1
        if len(paths) < MAX_SHOWN:
            paths.append(path)

    def outside(self) -> OutsideChanges:
        """What was found; modified and deleted come first, as they decide whether a sync may go on."""
        room, size = MAX_SHOWN, MAX_SHOWN_BYTES
        shown: list[tuple[str, ...]] = []
        for paths in (self.modified, self.deleted, self.added):
            kept = []
            for path in map(safe_text, paths):
                if not room or len(path) * 4 > size:
                    break
                if len(path) > _LONGEST:
                    continue
                room -= 1
                size -= len(path) * 4
                kept.append(path)
            shown.append(tuple(kept))
        return OutsideChanges(
            modified=shown[0],
            deleted=shown[1],
            added=shown[2],
            more=self.total - sum(map(len, shown)),
        )


def safe_text(path: str) -> str:
    """A name as it can travel: what is not UTF-8 is shown as escapes (no such path can be synced)."""
    return escape(path) if any(0xD800 <= ord(c) <= 0xDFFF for c in path) else path


def examine(
    tree: TreeFS,
    manifest: Manifest,
    index: StatIndex,
    *,
    note: Callable[[str], None],
    clock: Callable[[], int] = lambda: 0,
    tick: Callable[[], None] = lambda: None,
    passed_over: Callable[[str], bool] = lambda _: False,
    skip: int = 0,
) -> Seen:
    """Compare the live tree with the head's ``manifest``; needs no lock.

    A path whose stat fits its index row is not read. Any other is hashed, and
    its row refreshed when the content is still the manifest's. ``passed_over``
    tells the paths that a running apply is about to change. ``note`` and ``clock``
    are called when reading begins, which may take long; ``tick`` now and then:
    any of them may raise. The first ``skip`` added paths are
    not told: a client that has them goes on from there.
    """
    found = _Found(skip)
    fresh: StatIndex | None = None  # made when it differs
    clock_ns: int | None = None
    live = chain(live_paths(tree), [None])
    here = next(live)
    for at, (entry, row) in enumerate(zip(manifest, index.numbers(), strict=True)):
        path = entry[0]
        if not at % _TICK:
            tick()
        if here is not None and here[0] != path:
            key = sort_key(path)
            while here is not None and sort_key(here[0]) < key:
                _note_added(found, here, passed_over)
                here = next(live)
        if here is None or here[0] != path:
            if not passed_over(path):
                found.note(found.deleted, path)
            fresh = fresh or index.copy()
            fresh.put(at, UNKNOWN)
            continue
        stat = here[1]
        here = next(live)
        # Nearly every path passes here and is done with.
        if row[1] and row == (stat[2], stat[3], stat[4], stat[1]) and stat[0] in _KINDS:
            continue
        fresh = fresh or index.copy()
        if passed_over(path):
            fresh.put(at, UNKNOWN)
            continue
        if clock_ns is None:
            note("hashing")
            clock_ns = clock()
        # It was listed before the file was asked for, perhaps before the clock was.
        stat = look(tree, path) or stat
        if version_of(tree, path, stat, manifest.algorithm, entry) == entry.version:
            fresh.put(at, row_of(stat))
        else:
            found.note(found.modified, path)
            fresh.put(at, UNKNOWN)
    while here is not None:
        _note_added(found, here, passed_over)
        here = next(live)
    return Seen(found.outside(), fresh or index, clock_ns)


def _note_added(found: _Found, here: tuple[str, Stat], passed_over: Callable[[str], bool]) -> None:
    path, stat = here
    if stat.kind is Kind.OTHER or passed_over(path):
        return
    if found.skip:
        found.skip -= 1
    else:
        found.note(found.added, path)


def version_of(
    tree: TreeFS, path: str, stat: Stat, algorithm: str, like: Entry | None
) -> tuple[int, bytes, bool] | None:
    """The version that stands at ``path`` now, by reading it; None for what is neither file nor link.

    Where the file system has no executable bit, it is taken from ``like``.
    """
    if stat.kind is Kind.LINK:
        return LINK, tree.readlink(path).encode("utf-8", "surrogateescape"), False
    if stat.kind is not Kind.FILE:
        return None
    if tree.capabilities.executable_bit:
        executable = stat.executable
    else:
        executable = like is not None and like.kind == FILE and like.executable
    return FILE, digest_of(tree, path, algorithm), executable


def digest_of(tree: TreeFS, path: str, algorithm: str) -> bytes:
    """The raw digest of the file at ``path``."""
    sums = hasher(algorithm)
    source = tree.open_read(path)
    try:
        while chunk := source.read(READ_BYTES):
            sums.update(chunk)
    finally:
        source.close()
    return sums.digest()


def row_if(row: IndexRow, stat: Stat) -> bool:
    """Whether a known row still fits."""
    return bool(row.ctime_ns) and row == row_of(stat)


def describe(outside: OutsideChanges, limit: int = 5) -> str:
    """The changed paths in one line, for a message."""
    groups = []
    for word, paths in (("changed", outside.modified), ("gone", outside.deleted), ("new", outside.added)):
        if paths:
            shown = ", ".join(escape(path) for path in paths[:limit])
            groups.append(
                f"{word}: {shown}" + (f" and {len(paths) - limit} more" if len(paths) > limit else "")
            )
    return "; ".join(groups)

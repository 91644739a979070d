"""Reconcile: the one function that decides what a sync does.

It merges the working folder (L), the manifest of the last sync (C) and the
repository's head (R), applies the matrix of :mod:`dsg_client.core.states` to
every path, lets choices and the preference settle what is a conflict, and
makes sure that the merged result is a possible tree. It is pure and total,
and holds in memory only what differs.

What a preference (``prefer``) does with each kind of conflict:

=============================  =================================  ===================================
conflict                       prefer local                       prefer remote
=============================  =================================  ===================================
all differ; both added         upload L's version                 download R's; L's content is kept
deleted here, changed there    delete on R                        download R's version
changed here, deleted there    upload L's version                 delete on L; the content is kept
file and folder; names that    what R brings to that place is     what L brings to that place is
collide                        deleted on R                       deleted on L; the content is kept
=============================  =================================  ===================================

The preferred side's *state* wins, be it a version or an absence. What it
replaces on R stays in R's older snapshots; what it replaces on L is in C or R,
or else in ``Plan.kept``. An impossible tree stays a conflict under any
preference when the preferred side has nothing in that place, when the other
party is out of scope (never touched) or on both sides, or when a choice
speaks for the path that would have to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from dsg_client.core.choices import Choice
from dsg_client.core.clashes import Origin, Rival, find_clashes, settle_clashes
from dsg_client.core.conflict import KIND_OF_STATE, Conflict, ConflictKind, Resolution
from dsg_client.core.merge import Difference, differences
from dsg_client.core.plan import Change, Plan
from dsg_client.core.states import Action, StateRow, Take, classify
from protocol.manifest import Entry
from protocol.paths import sort_key
from protocol.value import Value

__all__ = ["reconcile"]

_NO_CHOICES: Mapping[str, Choice] = {}


class _Path:
    """One path that differs somewhere, and what becomes of it."""

    __slots__ = (
        "action",
        "cache",
        "chosen",
        "impossible",
        "local",
        "name",
        "other",
        "remote",
        "row",
        "take",
    )

    def __init__(
        self, name: str, local: Entry | None, cache: Entry | None, remote: Entry | None, row: StateRow
    ) -> None:
        self.name = name
        self.local = local
        self.cache = cache
        self.remote = remote
        self.row = row
        self.action = row.action
        self.take: Take | None = None  # who won, where there was a conflict
        self.chosen = False  # by a choice, not by the preference
        self.impossible: ConflictKind | None = None  # where the shape of the merged tree decided
        self.other: Entry | None = None  # what it cannot stand beside


class _Counts(Value):
    unchanged: int
    local: int
    remote: int
    outside: int


def reconcile(
    local: Iterable[Entry],
    cache: Iterable[Entry],
    remote: Iterable[Entry],
    choices: Mapping[str, Choice] = _NO_CHOICES,
    *,
    who: str,
    seq: int,
    prefer: Take | None = None,
    in_scope: Callable[[str], bool] | None = None,
    known: Iterable[Difference] | None = None,
) -> Plan:
    """Decide what a sync of L, C and R does.

    The three are possible trees in strict canonical order. ``remote`` is all
    of R and must be iterable more than once (a Manifest is): it is read again
    when the plan brings a new path to either side, to see that the merged tree
    is a possible one. ``in_scope`` is asked only about paths that L does not
    have and that differ; what it refuses gets no action, stays in R, and is
    forgotten by C. ``who`` and ``seq`` are given to uploaded entries.
    ``known``: what a merge of the three yields (:func:`differences`), where it
    is known already; ``local`` and ``cache`` are not read then.

    Raises TypeError when ``remote`` is an iterator, InternalError when a
    stream is out of order.
    """
    if iter(remote) is remote:
        raise TypeError("remote must be iterable more than once, not an iterator")
    merged = differences(local, cache, remote) if known is None else known
    paths, forgotten, counts = _differing(merged, in_scope)
    used: set[str] = set()

    def choice_for(path: _Path) -> Take | None:
        choice = choices.get(path.name)
        if choice is None or not choice.fits(path.local, path.cache, path.remote):
            return None
        used.add(path.name)
        return choice.take

    for path in paths:
        if path.action is Action.CONFLICT:
            take = choice_for(path)
            path.chosen = take is not None
            path.take = take or prefer
            won = path.row.if_local if path.take is Take.LOCAL else path.row.if_remote
            if path.take is not None and won is not None:
                path.action = won
    _settle_impossible(paths, remote, choice_for, prefer, in_scope)
    lapsed = tuple(sorted(choices.keys() - used, key=sort_key))
    return _plan(paths, forgotten, counts, who, seq, lapsed)


def _differing(
    merged: Iterable[Difference], in_scope: Callable[[str], bool] | None
) -> tuple[list[_Path], list[Entry], _Counts]:
    """What differs in scope; C's entries that are out of scope; how many entries were seen."""
    paths: list[_Path] = []
    forgotten: list[Entry] = []
    unchanged = only_local = only_remote = outside = 0
    for equal, a, b, c in merged:
        unchanged += equal
        entry = a or b or c
        if entry is None:
            continue
        if a is None and in_scope is not None and not in_scope(entry.path):
            if b is not None:
                forgotten.append(b)
            outside += c is not None
            continue
        only_local += a is not None
        only_remote += c is not None
        row = classify(a, b, c)
        paths.append(_Path(entry[0], a, b, c, row))
    return paths, forgotten, _Counts(unchanged, unchanged + only_local, unchanged + only_remote, outside)


def _settle_impossible(
    paths: Iterable[_Path],
    remote: Iterable[Entry],
    choice_for: Callable[[_Path], Take | None],
    prefer: Take | None,
    in_scope: Callable[[str], bool] | None,
) -> None:
    """Let go, or make conflicts of, the added paths that cannot stand in the merged tree."""
    added: dict[str, _Path] = {}
    origins: dict[str, Origin] = {}
    absent: set[str] = set()
    for path in paths:
        if path.action is Action.UPLOAD and path.remote is None:
            added[path.name] = path
            origins[path.name] = Origin.LOCAL
        elif path.action is Action.DOWNLOAD and path.local is None:
            added[path.name] = path
            origins[path.name] = Origin.REMOTE
        elif path.action is Action.DELETE_REMOTE or (path.action is Action.CONFLICT and path.local is None):
            # It goes, or nobody knows yet whether it stays: then this is checked once it is settled.
            absent.add(path.name)

    def standing() -> Iterator[Entry]:
        return (entry for entry in remote if entry[0] not in added and entry[0] not in absent)

    clashes = find_clashes(added, standing, in_scope)
    goes, left = settle_clashes(clashes, origins, lambda name: choice_for(added[name]), prefer)
    for name, (take, rival) in goes.items():
        path = added[name]
        path.action = Action.DELETE_LOCAL if take is Take.REMOTE else Action.DELETE_REMOTE
        path.take, path.chosen = take, choice_for(path) is not None
        _explain(path, rival, added)
    for name, rival in left.items():
        added[name].action = Action.CONFLICT
        _explain(added[name], rival, added)


def _explain(path: _Path, rival: Rival, added: Mapping[str, _Path]) -> None:
    folder = rival.file_and_folder
    path.impossible = ConflictKind.FILE_AND_FOLDER if folder else ConflictKind.NAMES_COLLIDE
    if isinstance(rival.other, str):
        path.other = added[rival.other].local or added[rival.other].remote
    else:
        path.other = rival.other


def _plan(
    paths: Iterable[_Path],
    forgotten: list[Entry],
    counts: _Counts,
    who: str,
    seq: int,
    lapsed: tuple[str, ...],
) -> Plan:
    uploads: list[Change] = []
    downloads: list[Change] = []
    deletes: dict[Action, list[Entry]] = {Action.DELETE_LOCAL: [], Action.DELETE_REMOTE: []}
    updates: list[Entry] = []
    drops = forgotten
    conflicts: list[Conflict] = []
    kept: list[Entry] = []
    resolutions: list[Resolution] = []
    for path in paths:
        a, b, c = path.local, path.cache, path.remote
        match path.action:
            case Action.UPLOAD if a is not None:
                uploads.append(Change(a._replace(who=who, seq=seq), c))
            case Action.DOWNLOAD if c is not None:
                downloads.append(Change(c, a))
            case Action.DELETE_LOCAL if a is not None:
                deletes[path.action].append(a)
            case Action.DELETE_REMOTE if c is not None:
                deletes[path.action].append(c)
            case Action.UPDATE_CACHE if c is not None:
                updates.append(c)
            case Action.DROP_CACHE if b is not None:
                drops.append(b)
        if path.action is Action.CONFLICT:
            conflicts.append(_conflict(path, who))
        elif path.take is not None:
            resolutions.append(Resolution(_conflict(path, who), path.take, path.chosen))
            if path.take is Take.REMOTE and a is not None and not (_holds(b, a) or _holds(c, a)):
                kept.append(a)
    drops.sort(key=lambda entry: sort_key(entry.path))
    return Plan(
        who=who,
        seq=seq,
        uploads=tuple(uploads),
        downloads=tuple(downloads),
        delete_local=tuple(deletes[Action.DELETE_LOCAL]),
        delete_remote=tuple(deletes[Action.DELETE_REMOTE]),
        cache_updates=tuple(updates),
        cache_drops=tuple(drops),
        conflicts=tuple(conflicts),
        kept=tuple(kept),
        resolutions=tuple(resolutions),
        lapsed=lapsed,
        local_entries=counts.local,
        remote_entries=counts.remote,
        outside_scope=counts.outside,
        unchanged=counts.unchanged,
    )


def _conflict(path: _Path, who: str) -> Conflict:
    kind = path.impossible or KIND_OF_STATE[path.row.state]
    return Conflict(path.name, kind, path.local, path.cache, path.remote, path.other, who)


def _holds(entry: Entry | None, wanted: Entry) -> bool:
    return entry is not None and entry.kind == wanted.kind and entry.content == wanted.content

"""Backups of a ZFS repository into a dataset with a fixed name, and making a repository of one again.

The backup is one dataset with the repository's snapshots, and three properties
that say what they are of: ``dsg:backup-format``, ``dsg:backup-repo-id`` and
``dsg:backup-head``, which comes last. The newest snapshot of a backup is held in
the repository, so that the next one finds what both have however much is pruned.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable

from dsg_remote_agent.storage.layout import LOCK, ZFS, Marker
from dsg_remote_agent.storage.zfs.cleaning import clean
from dsg_remote_agent.storage.zfs.command import Trouble, Zfs, failure
from dsg_remote_agent.storage.zfs.holders import holders
from dsg_remote_agent.storage.zfs.init import in_use, make_container, open_made
from dsg_remote_agent.storage.zfs.links import set_link
from dsg_remote_agent.storage.zfs.mounts import open_root
from dsg_remote_agent.storage.zfs.names import HeadValue, snapshot
from dsg_remote_agent.storage.zfs.pruning import list_snapshots
from dsg_remote_agent.storage.zfs.repository import open_outer
from dsg_remote_agent.storage.zfs.site import Site, required_head
from dsg_remote_agent.storage.zfs.streams import Brought, Side, bring_over, guids
from dsg_remote_agent.storage.zfs.survey import Survey, take_survey
from protocol.errors import ConfigError, LockedError, RemoteStorageError, WrongRepositoryError
from protocol.transaction import NoFailpoints

__all__ = ["back_up", "restore"]

_FORMAT = "1"
_OWN = ("dsg:backup-format", "dsg:backup-repo-id", "dsg:backup-head")
_TRIES = 5
_PROMOTED_IN = 30.0  # seconds that housekeeping of a sync just now may take


def back_up(zfs: Zfs, repository: str, backup: Side, tell: Callable[[str], None]) -> Brought:
    """Bring ``backup`` up to the head of ``repository``; made, with all snapshots, when it is missing.

    Repeatable, also after an interruption anywhere. WrongRepositoryError when
    it is the backup of another one, RemoteStorageError as :func:`bring_over`.
    """
    found = _read(backup)
    for left in reversed(range(_TRIES)):
        survey = _promoted(zfs, repository)
        head = required_head(survey)
        if found is not None and found.get(_OWN[1], survey.repo_id) != survey.repo_id:
            raise WrongRepositoryError(
                f"{backup.dataset} is the backup of the repository {found[_OWN[1]]}, not of {survey.repo_id}",
                hint="name another target; nothing was changed",
            )
        source = Side(zfs, survey.current().name)
        try:
            brought = bring_over(source, backup, head.seq)
            break
        except RemoteStorageError:
            # A sync that ended meanwhile has promoted the snapshots away.
            if not left or required_head(take_survey(zfs, repository)) == head:
                raise
    _mark(backup, survey, head)
    _hold(zfs, repository, backup, head.seq, tell)
    return brought


def _promoted(zfs: Zfs, repository: str) -> Survey:
    """A survey in which the head's generation holds all snapshots; housekeeping is done if need be."""
    deadline = time.monotonic() + _PROMOTED_IN
    while True:
        survey = take_survey(zfs, repository)
        older = survey.ancestors() if survey.head is not None else []
        if not older:
            return survey
        if time.monotonic() > deadline:
            found = holders(older)
            raise RemoteStorageError(
                f"the head of {repository} stands on {len(older)} older generations that cannot be promoted"
                + (f"; in use by {', '.join(found[:5])}" if found else ""),
                hint="end what uses an old snapshot (another 'zfs send', a clone), and run it again",
                facts={"holders": found},
            )
        outer = open_outer(survey)
        try:
            clean(Site(zfs, repository, survey.folder, outer, lambda: 0, NoFailpoints(), ""))
        finally:
            outer.close()
        time.sleep(0.2)


def _read(backup: Side) -> dict[str, str] | None:
    """Our properties of the backup, as far as they are set; None when there is no such dataset."""
    answer = backup.zfs.run("get", "-H", "-p", "-o", "property,value,source", ",".join(_OWN), backup.dataset)
    if answer.trouble is Trouble.MISSING:
        return None
    if not answer.good:
        raise failure(answer, backup.dataset, "looking at the backup")
    rows = [line.split("\t") for line in answer.out.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] in ("local", "received")}


def _mark(backup: Side, survey: Survey, head: HeadValue) -> None:
    """Say in the backup what it is, and keep people from writing to it."""
    found = _read(backup) or {}
    wanted = dict(zip(_OWN, (_FORMAT, survey.repo_id, str(head)), strict=True))
    if not found:
        for prop in ("readonly=on", "canmount=noauto"):
            backup.zfs.must("set", prop, backup.dataset, lock=None, shown=backup.dataset)
    for name, value in wanted.items():
        if found.get(name) != value:
            backup.zfs.must("set", f"{name}={value}", backup.dataset, lock=None, shown=backup.dataset)


def _hold(zfs: Zfs, repository: str, backup: Side, seq: int, tell: Callable[[str], None]) -> None:
    """Hold the snapshot ``seq`` for the next backup to this target, and let go of those before it."""
    tag = f"dsg-backup-{hashlib.sha256(backup.zfs.where(backup.dataset).encode()).hexdigest()[:8]}"
    site_survey = take_survey(zfs, repository)
    site = Site(zfs, repository, site_survey.folder, open_outer(site_survey), lambda: 0, NoFailpoints(), "")
    try:
        for _ in range(_TRIES):
            held = list_snapshots(site, site.survey())
            answer = zfs.run("hold", tag, held[seq].name) if seq in held else None
            if answer is not None and answer.trouble is not Trouble.MISSING:
                break
        if answer is None or (not answer.good and answer.trouble is not Trouble.EXISTS):
            why = answer.said if answer is not None else "it is gone"
            tell(f"{snapshot(seq)} could not be held for the next backup, and may be pruned: {why}")
            return
        for number, one in held.items():
            if one.holds and number != seq:
                zfs.run("release", tag, one.name)
    finally:
        site.outer.close()


def restore(backup: Side, zfs: Zfs, repository: str, group: str, now: int) -> HeadValue:
    """Make the dataset ``repository``, which must not exist, a repository with the backup's snapshots.

    Repeatable: an interrupted one is continued, and is no repository until it
    is whole. ConfigError when the name is in use, or the backup is none.
    """
    found = _read(backup)
    if found is None or any(name not in found for name in _OWN):
        raise ConfigError(
            f"{backup.dataset} is no whole backup of a repository",
            hint="'dsg-zfs-backup send' sets its properties last: run that again",
        )
    if found[_OWN[0]] != _FORMAT:
        raise ConfigError(
            f"{backup.dataset} has the backup format {found[_OWN[0]]}; this program reads {_FORMAT}",
            hint="install a newer DSG",
        )
    head = HeadValue.parse(found[_OWN[2]], backup.dataset)
    if head.seq not in (guids(backup) or {}):
        raise RemoteStorageError(
            f"{backup.dataset} has no {snapshot(head.seq)}, which its property dsg:backup-head names",
            hint="was it rolled back? run 'dsg-zfs-backup send' again, or restore another backup",
        )
    # The algorithm is in the generation's own marker.
    marker = Marker(found[_OWN[1]], "sha256", now, ZFS)
    folder = make_container(zfs, repository, marker)
    outer = open_made(folder, group)
    try:
        lock = outer.lock(LOCK)
        if lock is None:
            raise LockedError(
                f"{repository} is being made by somebody else", hint="wait until it is finished"
            )
        try:
            if take_survey(zfs, repository).head is not None:
                raise in_use(repository, "a repository is there already")
            site = Site(zfs, repository, folder, outer, lambda: now, NoFailpoints(), "")
            _fill(site, backup, head, marker.repo_id, lock.fileno())
        finally:
            lock.release()
    finally:
        outer.close()
    return head


def _fill(site: Site, backup: Side, head: HeadValue, repo_id: str, lock: int) -> None:
    zfs, shown = site.zfs, site.shown
    name = site.name_of(head.generation)
    zfs.must("set", f"dsg:repo-id={repo_id}", site.dataset, lock=lock, shown=shown)
    bring_over(backup, Side(zfs, name), head.seq)
    mountpoint = f"{site.folder}/g{head.generation}"
    os.close(open_root(zfs, name, mountpoint, mounted=False, lock=lock, shown=shown))
    with site.view(take_survey(zfs, site.dataset).generations[head.generation], lock) as view:
        chain = view.place.chain.head()
        if (chain.seq, chain.digest, chain.record.repo_id) != (head.seq, head.record, repo_id):
            raise RemoteStorageError(
                f"what was restored to {name} is not the snapshot that the backup's dsg:backup-head names",
                hint="restore another backup; nothing uses what is in this dataset",
            )
        # Every record and its manifest's place in the chain, before anybody is led there.
        view.place.chain.parents(chain, 0)
    set_link(site, head.generation)
    zfs.must("set", f"dsg:head={head}", site.dataset, lock=lock, shown=shown)

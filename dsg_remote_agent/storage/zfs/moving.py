"""The steps by which a dataset becomes the first generation of a repository; each can be repeated."""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from dsg_remote_agent.storage.base import Notice
from dsg_remote_agent.storage.directory_init import fill_area, first_record, share_with
from dsg_remote_agent.storage.faults import explain
from dsg_remote_agent.storage.inventory import Inventory, check_names, take_inventory
from dsg_remote_agent.storage.layout import AREA, INIT_PREFIX, ZFS, Marker, read_marker
from dsg_remote_agent.storage.outside import describe, examine
from dsg_remote_agent.storage.zfs.candidate import Candidate, foreign_names, guid_of, in_use_by
from dsg_remote_agent.storage.zfs.command import Answer, Trouble, failure
from dsg_remote_agent.storage.zfs.holders import users
from dsg_remote_agent.storage.zfs.links import set_link
from dsg_remote_agent.storage.zfs.mounts import destroy, let_mount, mount, open_root, open_tree
from dsg_remote_agent.storage.zfs.names import HeadValue, snapshot
from dsg_remote_agent.storage.zfs.site import Site
from protocol.errors import ConfigError, DsgError, OutsideChangeError
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.tree.posix import PosixTree
from protocol.tree.staging import remove_all

__all__ = ["Begun", "Moving", "Wish"]

_TRIES = 3  # against people who go on writing
_PATIENCE = 6
_DELAY_S = 0.1


class Wish(NamedTuple):
    """What a client asks for: the dataset ``source`` as the repository ``dataset``, in whose name and how."""

    dataset: str
    source: str
    marker: Marker
    user: str
    host: str
    settings: str
    group: str


class Begun(NamedTuple):
    """What the container says: the repository's id, the dataset's GUID and name, and where it was mounted.

    ``folder``: where its generations are mounted below.
    """

    repo_id: str
    value: str
    path: str
    folder: str

    @property
    def guid(self) -> str:
        """The GUID of the dataset, wherever it is by now."""
        return self.value.partition(":")[0]


class Moving:
    """The steps, under the lock. See :mod:`dsg_remote_agent.storage.zfs.taking`."""

    def __init__(
        self,
        site: Site,
        wish: Wish,
        begun: Begun,
        lock: int,
        tick: Callable[[], None],
        notice: Notice,
    ) -> None:
        self._site = site
        self._zfs = site.zfs
        self._wish = wish
        self._begun = begun
        self._lock = lock
        self._tick = tick
        self._notice = notice
        self._name = site.name_of(0)
        self._at = f"{site.folder}/g0"
        self._beside = f"{INIT_PREFIX}{begun.repo_id}"
        self._marker = Marker(begun.repo_id, wish.marker.algorithm, wish.marker.created, ZFS)

    def run(
        self, candidate: Candidate | None, known: Inventory | None
    ) -> tuple[SnapshotRecord, tuple[str, ...]]:
        """Rename ``candidate`` (None: that is done), and make it a repository; s0's record, and notes.

        An error of the renaming leaves everything as it was; a later one says
        that the same call goes on.
        """
        notes: list[str] = []
        if candidate is not None:
            self._rename(candidate)
            notes += [
                f"{prop}={value} was set on {candidate.name} itself; what syncs make has what is set on the "
                f"repository or above it: zfs set {prop}={value} {self._wish.dataset}"
                for prop, value in candidate.lost.items()
            ]
        try:
            record = self._go_on(known, notes)
        except OSError as error:
            raise self._half_way(explain(error, self._at)) from error
        except DsgError as error:
            raise self._half_way(error) from None
        return record, tuple(notes)

    def _half_way(self, error: DsgError) -> DsgError:
        where = f"The files are whole: {self._name}, at {self._at}."
        error.hint += f"\n{where} The same 'dsg init' again goes on from there."
        return error

    def _rename(self, candidate: Candidate) -> None:
        """Bring the dataset to its place; when that fails it is where it was, and the container is gone."""
        zfs, source = self._zfs, candidate.name
        answer = self._patiently("unmount", source)
        if answer.good or answer.trouble is Trouble.MISSING:
            answer = self._patiently("rename", source, self._name)
            # Whatever it said: the dataset is here or there.
            if answer.good or guid_of(zfs, self._name) == self._begun.guid:
                return
        error = failure(answer, source, "taking it over")
        if answer.trouble is Trouble.BUSY:
            error = in_use_by(source, candidate.mountpoint, users([(source, candidate.mountpoint)]))
        try:
            mount(zfs, source, lock=self._lock, shown=source)
        except DsgError:
            error.hint += f"\n{source} could not be mounted again: zfs mount {source}"
        # This destroys nothing that has anything in it.
        destroy(zfs, self._wish.dataset, lock=self._lock, unmounted=True)
        raise error

    def _patiently(self, *words: str) -> Answer:
        """Run it; zfs-fuse calls a file system busy for a moment after its last file was closed."""
        for attempt in range(_PATIENCE):
            time.sleep(_DELAY_S * attempt)
            answer = self._zfs.run(*words, lock=self._lock)
            if answer.trouble is not Trouble.BUSY:
                break
        return answer

    # From here on there is no way back.

    def _go_on(self, known: Inventory | None, notes: list[str]) -> SnapshotRecord:
        site, wish = self._site, self._wish
        self._mend_properties()
        fd = open_root(self._zfs, self._name, self._at, mounted=False, lock=self._lock, shown=site.shown)
        tree = open_tree(fd)
        try:
            if wish.group:
                share_with(fd, wish.group, self._name)
            # People have their files again, before the long part.
            notes += self._set_links()
            self._clear(tree)
            record, inventory = self._take_snapshot(tree, known)
            inventory.index.save(tree, record.digest, site.outer)
        finally:
            tree.close()
        value = HeadValue(0, 0, "", record.digest)
        self._zfs.must("set", f"dsg:head={value}", wish.dataset, lock=self._lock, shown=site.shown)
        self._zfs.must("set", "dsg:format=1", wish.dataset, lock=self._lock, shown=site.shown)
        return record

    def _mend_properties(self) -> None:
        """Have it mounted where generations are, when the pool is imported, and writable."""
        zfs, name = self._zfs, self._name
        words = ("get", "-H", "-o", "property,value,source", "mountpoint,readonly,canmount", name)
        found = {}
        for line in zfs.must(*words, shown=self._site.shown).splitlines():
            prop, value, source = line.split("\t")
            found[prop] = (value, source)
        if found["mountpoint"][0] != self._at or found["mountpoint"][1] in ("local", "received"):
            zfs.must("inherit", "mountpoint", name, lock=self._lock, shown=self._site.shown)
        if found["readonly"][1] in ("local", "received", "temporary"):
            zfs.must("inherit", "readonly", name, lock=self._lock, shown=self._site.shown)
        if found["canmount"][0] != "on":
            let_mount(zfs, name, lock=self._lock, shown=self._site.shown)

    def _set_links(self) -> list[str]:
        """Let the link lead to it, and the path at which it was to the link; a note where that cannot be."""
        path, link = self._begun.path, self._site.link
        try:
            _make_room(path)
            if path != link and not os.path.islink(path):
                os.symlink(link, path)
                _flush(os.path.dirname(path))
            failed = "" if path == link or os.readlink(path) == link else "another link is there"
        except OSError as error:
            failed = error.strerror or str(error)
        set_link(self._site, 0)
        if not failed:
            return []
        old = shlex.quote(escape(path))
        told = f"{escape(path)} does not lead to {escape(link)} now: {failed}"
        return [f"{told}; move away what is there, and: ln -s {shlex.quote(escape(link))} {old}"]

    def _clear(self, tree: PosixTree) -> None:
        """Remove what an interrupted call has put into it, and nothing else."""
        if AREA in tree.names(""):
            try:
                ours = read_marker(tree, self._name, ZFS).repo_id == self._begun.repo_id
            except DsgError:
                ours = False
            if not ours:
                raise ConfigError(
                    f"{self._at} holds a {AREA} folder that somebody has made since",
                    hint=f"move it away: mv {shlex.quote(f'{self._at}/{AREA}')} ELSEWHERE",
                )
            self._zfs.run("destroy", f"{self._name}@{snapshot(0)}", lock=self._lock)
            remove_all(tree, self._beside)
            tree.move(AREA, self._beside)
            tree.flush()
        remove_all(tree, self._beside)
        taken = foreign_names(self._zfs, self._name)
        if taken:
            raise ConfigError(
                f"{self._name} has snapshots that are called as DSG calls its own: {', '.join(taken[:10])}",
                hint=f"rename them, or release and destroy them, as in: zfs rename {taken[0]} @old",
            )

    def _take_snapshot(self, tree: PosixTree, known: Inventory | None) -> tuple[SnapshotRecord, Inventory]:
        """Snapshot it with what tells of it inside; again, when somebody wrote to it while it was read."""
        wish, site = self._wish, self._site
        for _ in range(_TRIES):
            check_names(tree, self._at, self._tick)
            known = take_inventory(tree, self._marker.algorithm, wish.user, time.time_ns(), self._tick, known)
            record = first_record(self._marker, wish.user, wish.host, known.manifest, known.size)
            tree.mkdir(self._beside)
            fill_area(tree, self._beside, self._marker, record, wish.settings, known.manifest)
            tree.flush()
            tree.move(self._beside, AREA)
            tree.flush()
            self._zfs.must("snapshot", f"{self._name}@{snapshot(0)}", lock=self._lock, shown=site.shown)
            # What was written before the snapshot shows now, and what comes later does no harm.
            outside = examine(tree, known.manifest, known.index, note=self._notice).outside
            if not outside:
                return record, known
            self._clear(tree)
        raise OutsideChangeError(
            f"somebody writes to {self._at} while it is taken over: {describe(outside)}",
            hint="end that.",
            facts={"holders": users([(self._name, self._at)])},
        )


def _make_room(path: str) -> None:
    """Remove the empty folder on which it was mounted; OSError when there is something in it."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rmdir(path)
    except FileNotFoundError:
        pass


def _flush(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

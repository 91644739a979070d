"""Where a ZFS repository is: its datasets, its folders, and what its parts were handed.

::

    pool/dsg                 the root, mountpoint FOLDER/.gen, made by the administrator
    pool/dsg/NAME            the repository; dsg:head names its head
    pool/dsg/NAME/gN         a generation, mounted at FOLDER/.gen/NAME/gN
    FOLDER/.gen/NAME/.dsg    the lock and the stat index: outside of all generations
    FOLDER/NAME              a link to the head's mountpoint: what people use
"""

from __future__ import annotations

import os
from collections.abc import Callable

from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.layout import ZFS, read_marker
from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.mounts import open_root, open_tree
from dsg_remote_agent.storage.zfs.names import GENERATIONS, PREFIX, HeadValue
from dsg_remote_agent.storage.zfs.survey import Generation, Survey, take_survey
from protocol.errors import ConfigError, IntegrityError, RemoteStorageError, WrongRepositoryError
from protocol.paths import escape
from protocol.transaction import Failpoints
from protocol.tree.posix import PosixTree
from protocol.value import Value

__all__ = ["CLEANING_LOCK", "Site", "View", "link_path", "required_head"]

CLEANING_LOCK = ".dsg/cleaning.lock"

_TRIES = 5


def link_path(folder: str, name: str) -> str:
    """The link of the repository ``name`` mounted at ``folder``; ConfigError unless that is …/.gen/NAME."""
    above, last = os.path.split(folder)
    top, gen = os.path.split(above)
    if last != name or gen != GENERATIONS or not os.path.isabs(folder):
        raise ConfigError(
            f"the mountpoint of {name} is {escape(folder)!r}, not FOLDER/{GENERATIONS}/{name}",
            hint=f"an administrator sets it on the root: zfs set mountpoint=FOLDER/{GENERATIONS} ROOT",
        )
    return os.path.join(top, name)


class View:
    """One generation opened, with its chain of records. Close it: an open one cannot be unmounted."""

    def __init__(self, generation: Generation, place: Place, tree: PosixTree) -> None:
        self.generation = generation
        self.place = place
        self.tree = tree

    def close(self) -> None:
        self.tree.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Site(Value):
    """One repository. ``outer``: the tree of ``folder``, whose ``.dsg`` has lock and stat index."""

    zfs: Zfs
    dataset: str
    folder: str
    outer: PosixTree
    now: Callable[[], int]
    failpoints: Failpoints
    machine: str

    @property
    def shown(self) -> str:
        """The repository for messages: the address without its host."""
        return PREFIX + self.dataset

    @property
    def link(self) -> str:
        """The path of the link that people use."""
        return link_path(self.folder, self.dataset.rpartition("/")[2])

    def survey(self, *, exact: bool = False) -> Survey:
        """The datasets as they are now; see :func:`take_survey`."""
        return take_survey(self.zfs, self.dataset, exact=exact)

    def name_of(self, number: int) -> str:
        """The dataset of generation ``number``."""
        return f"{self.dataset}/g{number}"

    def place(self, tree: PosixTree) -> Place:
        """What the shared parts need to know about the generation in ``tree``."""
        marker = read_marker(tree, self.shown, ZFS)
        return Place(tree, marker, self.shown, self.now, self.failpoints, self.machine, self.outer)

    def view(self, generation: Generation, lock: int | None = None) -> View:
        """Open a generation, which is mounted if need be."""
        fd = open_root(
            self.zfs,
            generation.name,
            generation.mountpoint,
            mounted=generation.mounted,
            lock=lock,
            shown=self.shown,
        )
        tree = open_tree(fd)
        try:
            return View(generation, self.place(tree), tree)
        except BaseException:
            tree.close()
            raise

    def head(self, lock: int | None = None, known: Survey | None = None) -> tuple[Survey, View, Head]:
        """The head, opened; close the view. Without a lock it may be replaced meanwhile: then the new one.

        ``known``: a survey just made, to be tried first. With a lock, the survey is exact.
        """
        for left in reversed(range(_TRIES)):
            survey, known = known or self.survey(exact=lock is not None), None
            value = required_head(survey)
            try:
                view = self.view(survey.current(), lock)
            except (OSError, RemoteStorageError, IntegrityError):
                # Destroyed since it was looked up; what is really wrong is still so at the last try.
                if not left or self.survey().head == value:
                    raise
                continue
            try:
                head = view.place.chain.head()
                _check_head(survey, value, head)
            except BaseException:
                view.close()
                raise
            return survey, view, head
        raise AssertionError("unreachable")


def required_head(survey: Survey) -> HeadValue:
    """The head; ConfigError when the repository has none yet."""
    if survey.head is None:
        raise ConfigError(
            f"the making of {survey.dataset} was not finished", hint="run the same 'dsg init' again"
        )
    return survey.head


def _check_head(survey: Survey, value: HeadValue, head: Head) -> None:
    if head.record.repo_id != survey.repo_id:
        raise WrongRepositoryError(
            f"generation g{value.generation} of {survey.dataset} belongs to the repository "
            f"{head.record.repo_id}, the dataset says {survey.repo_id}",
            hint="was it received or renamed from another one? nothing was changed",
        )
    if (head.seq, head.digest, head.record.txid) != (value.seq, value.record, value.txid):
        raise IntegrityError(
            f"the generation g{value.generation} of {survey.dataset} holds snapshot s{head.seq}, "
            f"not the s{value.seq} that dsg:head names",
            hint=f"was it rolled back? zfs list -r -t all {survey.dataset} shows what is there; "
            "nothing was changed",
        )

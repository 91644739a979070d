"""The working folder: finding it, its ``.dsg``, and the lock that lets one command change it at a time.

``.dsg`` is private to its owner (0700). ``.dsg/format`` is written last when
it is made, so that a folder without one is known to be unfinished.
"""

from __future__ import annotations

import json
import os
import stat as stat_bits
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from dsg_client.local.area import replace_small, storage_error
from dsg_client.local.lock import LocalLock, take_lock
from dsg_client.local.machine import machine_id
from protocol.errors import ConfigError, VersionError
from protocol.paths import escape
from protocol.tree.actions import AREA
from protocol.tree.fs import TreeFS
from protocol.tree.posix import PosixTree
from protocol.value import Value

__all__ = [
    "CONFIG_NAME",
    "LocalLock",
    "Workdir",
    "create_workdir",
    "find_root",
    "open_workdir",
    "refuse_overlap",
]

CONFIG_NAME = ".dsgconfig.yml"
FORMAT = 1
KIND = "working-folder"
_FORMAT_PATH = f"{AREA}/format"


def find_root(start: str | os.PathLike[str] = ".") -> Path:
    """The tree's root: the nearest folder from ``start`` upward that has ``.dsg`` or ``.dsgconfig.yml``.

    ConfigError when there is none.
    """
    here = Path(os.path.abspath(start))
    for folder in (here, *here.parents):
        if (folder / AREA).is_dir() or (folder / CONFIG_NAME).is_file():
            return folder
    raise ConfigError(
        f"no DSG folder here: neither '{escape(str(here))}' nor any folder above it "
        f"has {AREA} or {CONFIG_NAME}",
        hint="Change into your working folder, or make one: 'dsg init REMOTE' or 'dsg clone REMOTE'.",
        facts={"folder": str(here)},
    )


class Workdir(Value):
    """A working folder, opened: its path for messages, its tree for everything else."""

    root: Path
    tree: TreeFS
    machine: str  # which machine this is; journal and stat index are bound to it
    device_inode: tuple[int, int]  # of the root

    def close(self) -> None:
        """Let go of the tree's descriptors."""
        self.tree.close()

    def __enter__(self) -> Workdir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lock(
        self, command: str, *, pid: int | None = None, now: Callable[[], float] = time.time
    ) -> LocalLock:
        """Take the folder's lock, without waiting; ``command`` is shown to whoever comes second.

        ``pid``: the process that it is for, when that is another.
        LockedError says who holds it, since when and from where. The system
        lets go of it when the process ends, however it ends.
        """
        return take_lock(self.tree, self.machine, command, int(now()), pid)

    def received_lock(self, fd: int) -> LocalLock:
        """The lock that another process took for this one, by its descriptor."""
        return LocalLock.received(self.tree, fd)


def open_workdir(root: str | os.PathLike[str], *, tree: TreeFS | None = None) -> Workdir:
    """Open the working folder ``root``, which must have a finished ``.dsg``.

    ConfigError when it has none, or when others than its owner could write to
    it; VersionError when a newer DSG made it.
    """
    path = Path(os.path.realpath(root))
    opened = tree or _open_tree(path)
    try:
        _refuse_foreign(path, opened)
        _check_format(opened, path)
    except BaseException:
        if tree is None:
            opened.close()
        raise
    return _workdir(path, opened)


def create_workdir(root: str | os.PathLike[str], cache: bytes, *, tree: TreeFS | None = None) -> Workdir:
    """Make ``.dsg`` in the folder ``root`` with the encoded C, and open it.

    Goes on with one that an interrupted attempt left unfinished. ConfigError
    when ``root`` is a working folder already, LockedError when another
    command is just making it one, LocalStorageError when it cannot be
    written. An attempt that fails leaves an unfinished ``.dsg``.
    """
    path = Path(os.path.realpath(root))
    opened = tree or _open_tree(path)
    try:
        try:
            _refuse_finished(path, opened)
            _make_private(path)
            _refuse_foreign(path, opened)
            # Two at once in one folder: the second is told so, and then that there is one already.
            with take_lock(opened, machine_id(), "init", int(time.time())):
                _refuse_finished(path, opened)
                replace_small(opened, f"{AREA}/cache", cache)
                opened.flush_folder(AREA)
                marker = json.dumps({"format": FORMAT, "kind": KIND})
                replace_small(opened, _FORMAT_PATH, f"{marker}\n".encode())
                opened.flush_folder(AREA)
                opened.flush_folder("")
        except OSError as error:
            raise storage_error(AREA, error) from error
    except BaseException:
        if tree is None:
            opened.close()
        raise
    return _workdir(path, opened)


def _refuse_finished(path: Path, tree: TreeFS) -> None:
    if _is_finished(tree):
        raise ConfigError(
            f"'{escape(str(path))}' is a DSG working folder already",
            hint="'dsg remote' shows which repository it belongs to.",
            facts={"folder": str(path)},
        )


def _is_finished(tree: TreeFS) -> bool:
    try:
        tree.stat(_FORMAT_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise storage_error(_FORMAT_PATH, error) from error
    return True


def _workdir(path: Path, tree: TreeFS) -> Workdir:
    top = tree.stat("")
    return Workdir(path, tree, machine_id(), (top.device, top.inode))


def _open_tree(path: Path) -> TreeFS:
    try:
        return PosixTree.open_tree(str(path))
    except OSError as error:
        raise storage_error(str(path), error) from error


def _make_private(path: Path) -> None:
    area = path / AREA
    try:
        os.mkdir(area, 0o700)
    except FileExistsError:
        pass
    # Not less than the umask let through, and nothing for anybody else.
    found = os.lstat(area)
    if stat_bits.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        os.chmod(area, 0o700)


def _refuse_foreign(path: Path, tree: TreeFS) -> None:
    try:
        found = tree.stat(AREA)
    except FileNotFoundError:
        raise ConfigError(
            f"'{escape(str(path))}' is not a DSG working folder yet: it has no {AREA}",
            hint="'dsg clone' connects it to the repository that its .dsgconfig.yml names; "
            "'dsg init REMOTE' makes a new repository.",
            facts={"folder": str(path)},
        ) from None
    except OSError as error:
        raise storage_error(AREA, error) from error
    shown = escape(str(path / AREA))
    if not stat_bits.S_ISDIR(os.lstat(path / AREA).st_mode):
        raise ConfigError(f"'{shown}' is not a folder", hint="Remove it, then clone again.")
    mine = os.geteuid()
    if found.uid != mine and mine != 0:
        raise ConfigError(
            f"'{shown}' belongs to another account (uid {found.uid}; yours is {mine})",
            hint="Use a working folder of your own: 'dsg clone REMOTE FOLDER'.",
            facts={"folder": str(path), "uid": found.uid},
        )
    if found.mode & 0o022:
        raise ConfigError(
            f"'{shown}' can be written to by others (mode {found.mode:04o})",
            hint=f"Take that right away: chmod 700 '{shown}'. If others may have used it, clone anew.",
            facts={"folder": str(path), "mode": found.mode},
        )


def _check_format(tree: TreeFS, path: Path) -> None:
    shown = escape(str(path / AREA))
    try:
        text = tree.read_bytes(_FORMAT_PATH, 16 * 1024)
    except FileNotFoundError:
        raise ConfigError(
            f"'{shown}' is unfinished: an `init` or `clone` was interrupted here",
            hint="Run that command again; it goes on where it stopped. No file of yours was touched.",
            facts={"folder": str(path)},
        ) from None
    except OSError as error:
        raise storage_error(_FORMAT_PATH, error) from error
    try:
        found = json.loads(text)
        number, kind = found["format"], found["kind"]
        if type(number) is not int:
            raise ValueError
    except (ValueError, TypeError, LookupError):
        raise ConfigError(
            f"'{shown}/format' does not say what a working folder's says; it begins "
            f"'{escape(text[:60].decode('utf-8', 'replace'))}'",
            hint="Move '.dsg' away and 'dsg clone' into this folder: files that match are taken over.",
            facts={"folder": str(path)},
        ) from None
    if kind == "repository":
        raise ConfigError(
            f"'{escape(str(path))}' is a repository, not a working folder",
            hint="Do not work inside it: 'dsg clone' makes a working folder elsewhere.",
            facts={"folder": str(path)},
        )
    if number > FORMAT:
        raise VersionError(
            f"'{shown}' has format {number}, and this version of DSG reads formats up to {FORMAT}",
            hint="Upgrade DSG on this machine: pip install --upgrade dsg-sync.",
            facts={"folder": str(path), "format": number},
        )
    if kind != KIND or number < 1:
        raise ConfigError(
            f"'{shown}/format' names the kind '{escape(str(kind))}', format {number}; "
            f"expected '{KIND}', format {FORMAT}",
            facts={"folder": str(path)},
        )


def refuse_overlap(local: str | os.PathLike[str], repository: str | os.PathLike[str]) -> None:
    """ConfigError when a repository on this machine is, or is inside, or is around the working folder.

    Compared by what the folders are, not by how they are spelled: links, bind
    mounts and case-insensitive names do not hide an overlap. The repository
    need not exist yet.
    """
    for inner, outer, how in (
        (repository, local, "lies inside"),
        (local, repository, "lies around"),
    ):
        target = _identity(outer)
        if target is None:
            continue
        folder = Path(os.path.realpath(inner))
        for step in (folder, *folder.parents):
            if _identity(step) == target:
                what = "is" if step == folder else how
                raise ConfigError(
                    f"the repository '{escape(os.fspath(repository))}' {what} "
                    f"the working folder '{escape(os.fspath(local))}'",
                    hint="Choose a place for the repository outside of every working folder.",
                    facts={"repository": os.fspath(repository), "folder": os.fspath(local)},
                )


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)

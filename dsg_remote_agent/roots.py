"""Which folders and datasets of the server this agent may touch.

A path is resolved first (links and ``..`` included), then compared with the
allowed roots component by component, and the folder is then opened one
component after another without following links: what happens to the path
between the check and the opening cannot lead elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from protocol.errors import ConfigError, NotPermittedError
from protocol.paths import escape
from protocol.value import Value

__all__ = ["DATASET", "Roots"]

DATASET = "zfs:"  # of a root that is a dataset

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASS_THROUGH = getattr(os, "O_PATH", os.O_RDONLY)


class Roots(Value):
    """The folders and datasets below which this agent works; none named: all that the account may use."""

    roots: tuple[str, ...] = ()

    @classmethod
    def of(cls, folders: Sequence[str]) -> Roots:
        """The roots named on the command line; ValueError for one that is not an absolute path."""
        for folder in folders:
            if not os.path.isabs(folder) and not folder.startswith(DATASET):
                raise ValueError(f"--root {folder}: neither an absolute path nor zfs:DATASET")
        return cls(tuple(folders))

    @property
    def folders(self) -> tuple[str, ...]:
        """The roots that are folders."""
        return tuple(root for root in self.roots if not root.startswith(DATASET))

    def check_dataset(self, dataset: str) -> None:
        """NotPermittedError unless ``dataset`` is, or lies below, a root that is a dataset, or none is named.

        A root that is a folder does not let in the datasets mounted there: what
        is mounted where changes, and names do not.
        """
        allowed = [root.removeprefix(DATASET).rstrip("/") for root in self.roots if root.startswith(DATASET)]
        if self.roots and not any(dataset == root or dataset.startswith(f"{root}/") for root in allowed):
            raise self._refused(DATASET + dataset)

    def _refused(self, path: str) -> NotPermittedError:
        return NotPermittedError(
            f"this agent may not use {escape(path)}",
            hint=f"it serves only what lies in {', '.join(map(escape, self.roots))}",
            facts={"path": path},
        )

    def resolve(self, path: str) -> str:
        """``path`` as the client gave it, resolved; NotPermittedError when it lies outside every root.

        ``~`` is the account's home; another relative path starts there too,
        or, with a single root, in that root.
        """
        named = os.path.expanduser(path)
        if not os.path.isabs(named):
            folders = self.folders
            named = os.path.join(folders[0] if len(folders) == 1 else os.path.expanduser("~"), named)
        resolved = os.path.realpath(named)
        if self.roots and not any(_inside(resolved, os.path.realpath(root)) for root in self.folders):
            raise self._refused(path)
        return resolved

    def open(self, resolved: str, *, create: bool = False) -> int:
        """A readable descriptor of a folder that :meth:`resolve` returned; no link is followed any more.

        ``create`` makes what is missing on the way, the last one for this
        account alone. ConfigError when there is no such folder,
        NotPermittedError when a component has become a link since.
        """
        fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        names = [name for name in resolved.split("/") if name]
        for position, name in enumerate(names):
            flags = os.O_RDONLY if position + 1 == len(names) else _PASS_THROUGH
            try:
                if create:
                    _make(name, fd, 0o700 if position + 1 == len(names) else 0o777)
                below = os.open(name, flags | _FOLDER, dir_fd=fd)
            except OSError as error:
                raise _refusal(error, resolved, is_link=_is_link(name, fd)) from None
            finally:
                os.close(fd)
            fd = below
        return fd


def _is_link(name: str, parent: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _refusal(error: OSError, resolved: str, *, is_link: bool) -> Exception:
    if is_link:
        return NotPermittedError(f"{escape(resolved)} changed while it was opened")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ConfigError(
            f"there is no folder {escape(resolved)} on the server",
            hint="check the path; 'dsg init' makes a new repository",
            facts={"path": resolved},
        )
    return OSError(error.errno, error.strerror, resolved)


def _make(name: str, parent: int, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        pass
    except OSError as error:
        # A folder that is there may say EROFS or EACCES before EEXIST.
        try:
            there = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except OSError:
            there = False
        if not there:
            raise error from None


def _inside(path: str, root: str) -> bool:
    """Whether ``path`` is ``root`` or below it, by whole components."""
    parts = [part for part in path.split("/") if part]
    above = [part for part in root.split("/") if part]
    return parts[: len(above)] == above

"""Finding out what a file system can do by trying it, in DSG's own corner of the tree."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from protocol.tree.actions import AREA, TMP
from protocol.tree.fs import Capabilities, Kind, TreeFS
from protocol.tree.staging import remove_all

__all__ = ["probe"]

_NFC, _NFD = "\u00e9", "e\u0301"
# An odd number of seconds, and digits down to the nanosecond.
_ODD_TIME = 1_000_000_001_123_456_789
_GRAINS = (1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)
_READ_ONLY = frozenset([errno.EROFS, errno.EACCES, errno.EPERM])


def probe(tree: TreeFS, place_at_once: Callable[[str, str], None]) -> Capabilities:
    """What ``tree``'s file system can do, tried in a folder that is removed again.

    ``place_at_once`` is the tree's renaming without replacing, without the
    substitute that :meth:`TreeFS.place` falls back to; OSError where there is none.
    The folder is made in ``.dsg/tmp``, else in the root. Where nothing can be
    written, nothing will be, and the answers are a plain Unix file system's
    without its newer calls. Other errors are raised as they are.
    """
    for base in (TMP, ""):
        prefix = f"{base}/probe" if base else ".dsg-probe"
        for attempt in range(100):
            path = f"{prefix}-{os.getpid()}-{attempt}"
            try:
                tree.mkdir(path)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno in _READ_ONLY or (base and error.errno in (errno.ENOENT, errno.ENOTDIR)):
                    break
                raise
            try:
                found = _probe_in(tree, path, place_at_once)
                tree.stat(path)
            except FileNotFoundError:
                continue  # swept away meanwhile: what was seen may mean nothing
            finally:
                remove_all(tree, path)
            return found
    return Capabilities(
        executable_bit=True,
        symlinks=True,
        case_sensitive=not _same(tree, AREA, AREA.upper()),
        keeps_normal_form=True,
        swap=False,
        place=False,
        time_grain_ns=_clock_grain(),
    )


def _probe_in(tree: TreeFS, folder: str, place_at_once: Callable[[str, str], None]) -> Capabilities:
    plain, other = f"{folder}/plain", f"{folder}/other"
    grain = _new_file(tree, plain)
    _new_file(tree, other)
    return Capabilities(
        executable_bit=_keeps_executable_bit(tree, plain),
        symlinks=_has_symlinks(tree, folder),
        case_sensitive=not _same(tree, plain, f"{folder}/PLAIN"),
        keeps_normal_form=_keeps_normal_form(tree, folder),
        swap=_swaps(tree, plain, other),
        place=_places(plain, other, place_at_once),
        time_grain_ns=max(grain, _clock_grain()),
    )


def _new_file(tree: TreeFS, path: str) -> int:
    made = tree.create(path)
    kept = made.finish(executable=False, mtime_ns=_ODD_TIME).mtime_ns
    return next((grain for grain in _GRAINS if abs(kept - _ODD_TIME) < grain), _GRAINS[-1])


def _clock_grain() -> int:
    # The kernel stamps files with its coarse clock, a tick of 1 to 10 ms.
    if hasattr(time, "CLOCK_REALTIME_COARSE"):
        return max(1, round(time.clock_getres(time.CLOCK_REALTIME_COARSE) * 1e9))
    return 10_000_000


def _same(tree: TreeFS, path: str, other: str) -> bool:
    try:
        return tree.stat(path).inode == tree.stat(other).inode
    except OSError:
        return False


def _keeps_executable_bit(tree: TreeFS, path: str) -> bool:
    try:
        kept = []
        for wanted in (True, False):
            tree.set_executable(path, wanted)
            kept.append(tree.stat(path).executable)
        return kept == [True, False]
    except OSError:
        return False


def _has_symlinks(tree: TreeFS, folder: str) -> bool:
    path = f"{folder}/link"
    try:
        tree.symlink("plain", path)
        return tree.stat(path).kind is Kind.LINK and tree.readlink(path) == "plain"
    except OSError:
        return False


def _keeps_normal_form(tree: TreeFS, folder: str) -> bool:
    _new_file(tree, f"{folder}/{_NFC}")
    return _NFC in tree.names(folder) and not _same(tree, f"{folder}/{_NFC}", f"{folder}/{_NFD}")


def _swaps(tree: TreeFS, a: str, b: str) -> bool:
    before = (tree.stat(a).inode, tree.stat(b).inode)
    try:
        tree.swap(a, b)
    except OSError:
        return False
    return (tree.stat(b).inode, tree.stat(a).inode) == before


def _places(source: str, taken: str, place_at_once: Callable[[str, str], None]) -> bool:
    try:
        place_at_once(source, taken)
    except FileExistsError:
        pass
    except OSError:
        return False
    else:
        return False
    try:
        place_at_once(source, f"{source}-moved")
    except OSError:
        return False
    return True

"""Checking the names of one folder at once.

Almost every folder holds nothing but plain names. Whether it does is decided
on all its names joined, a few searches in C for the whole folder; only where
that finds something suspicious is each name looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from protocol.paths import PathProblem, path_problem, portability_problem

__all__ = ["are_plain", "check_name", "may_collide"]

# On "/name/name/": what never.py lists, what Windows dislikes, what paths.py refuses among plain ASCII.
_SUSPICIOUS_START = re.compile(
    r"/(?:[.~#$@]|4913/|icon|thumbs|ehthumbs|desktop\.ini/|system v|lost\+"
    r"|(?:con|prn|aux|nul|com\d|lpt\d)[ ./])"
)
_SUSPICIOUS_END = re.compile(r"(?:[~. ]|\.swp|___)/")
_NOT_ON_WINDOWS = '<>:"\\|?*'

MAX_PATH_BYTES = 4000


def _joined(names: Sequence[str]) -> str:
    return f"/{'/'.join(names)}/"


def are_plain(folder: str, names: Sequence[str]) -> bool:
    """Whether no name in ``folder`` can be out of scope by its form, refused, or worth a warning."""
    joined = _joined(names)
    if not (joined.isascii() and joined.isprintable()):
        return False
    if len(folder) + 256 > MAX_PATH_BYTES:
        return False
    for character in _NOT_ON_WINDOWS:
        if character in joined:
            return False
    lowered = joined.lower()
    return _SUSPICIOUS_START.search(lowered) is None and _SUSPICIOUS_END.search(lowered) is None


def may_collide(names: Sequence[str]) -> bool:
    """Whether two of ``names`` may differ only in case or normal form."""
    joined = _joined(names)
    if not joined.isascii():
        return True
    lowered = joined.lower()
    return lowered != joined and len(set(lowered.split("/"))) < len(names) + 1


class NameFinding(NamedTuple):
    """What is wrong with a name: it is refused, or, when only ``warning``, Windows could not hold it."""

    problem: PathProblem
    warning: bool


def check_name(path: str, name: str) -> NameFinding | None:
    """What is wrong with ``name``, the last component of ``path``; the folders above are not looked at."""
    reason = path_problem(name)
    if reason is None and len(path) > MAX_PATH_BYTES // 4:
        length = len(path.encode("utf-8", "surrogateescape"))
        if length > MAX_PATH_BYTES:
            reason = f"the path is {length} bytes long; at most {MAX_PATH_BYTES} can be synced"
    if reason is None:
        reason = portability_problem(name)
        return NameFinding(PathProblem(path, reason), warning=True) if reason else None
    return NameFinding(PathProblem(path, reason, _normalized(path, name)), warning=False)


def _normalized(path: str, name: str) -> str | None:
    """``path`` with its last component in NFC, if that is all it takes to make it good."""
    if name.isascii() or unicodedata.is_normalized("NFC", name):
        return None
    good = unicodedata.normalize("NFC", name)
    return None if path_problem(good) else path[: len(path) - len(name)] + good

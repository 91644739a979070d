"""Compare folders as a person would, without any product code."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

__all__ = ["first_difference"]


def first_difference(left: Path, right: Path) -> str:
    """'' when both folders hold the same names, bytes, links and executable bits, else the first difference.

    ``.dsg`` is left out at any depth; folders without files count as absent.
    """
    found = [_names(folder) for folder in (left, right)]
    if found[0] != found[1]:
        return f"{min(found[0] ^ found[1])} is only in one of {left} and {right}"
    for name in sorted(found[0]):
        one, other = left / name, right / name
        if one.is_symlink() or other.is_symlink():
            equal = one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
        else:
            equal = filecmp.cmp(one, other, shallow=False)
            equal = equal and not (one.stat().st_mode ^ other.stat().st_mode) & 0o100
        if not equal:
            return f"{name} differs between {left} and {right}"
    return ""


def _names(folder: Path) -> set[str]:
    names = set()
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".dsg"]
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        names |= {os.path.relpath(os.path.join(here, name), folder) for name in (*files, *links)}
    return names

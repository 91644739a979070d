"""``--normalize``: giving names that are only in another Unicode normal form the one that syncs.

macOS writes names decomposed (NFD), everything else composed (NFC). A rename
is made only where nothing has the new name, and never replaces anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from protocol.errors import LocalStorageError
from protocol.paths import PathProblem, escape
from protocol.tree.fs import TreeFS

__all__ = ["Normalization", "Rename", "normalize_names", "plan_normalization"]


@frozen
class Rename:
    """One name to change; both are paths as the folders above are spelled now."""

    old: str
    new: str


@frozen
class Normalization:
    """What ``--normalize`` can do, deepest first, and what it cannot, with the reason."""

    renames: tuple[Rename, ...]
    blocked: tuple[PathProblem, ...]


def plan_normalization(tree: TreeFS, problems: Iterable[PathProblem]) -> Normalization:
    """The renames that cure the ``problems`` of a scan; the rest is blocked. Changes nothing.

    Raises OSError.
    """
    renames: list[Rename] = []
    blocked: list[PathProblem] = []
    taken: dict[str, set[str]] = {}  # folder -> names that are there, or will be
    # The deepest first: a folder keeps its name until everything below has been renamed.
    for problem in sorted(problems, key=lambda p: (-p.path.count("/"), p.path)):
        if problem.normalized is None:
            blocked.append(problem)
            continue
        folder, _, name = problem.normalized.rpartition("/")
        if folder not in taken:
            taken[folder] = tree.names(folder)
        if name in taken[folder]:
            blocked.append(
                PathProblem(
                    problem.path, f"cannot become '{escape(name)}', because there is one of that name already"
                )
            )
            continue
        taken[folder].add(name)
        renames.append(Rename(problem.path, problem.normalized))
    return Normalization(tuple(renames), tuple(blocked))


def normalize_names(tree: TreeFS, renames: Sequence[Rename]) -> None:
    """Carry out ``renames`` in order.

    LocalStorageError at the first that fails: what was renamed before it
    stays renamed, the rest is as it was, and doing it again goes on from there.
    """
    for done, rename in enumerate(renames):
        try:
            tree.place(rename.old, rename.new)
        except OSError as error:
            raise LocalStorageError(
                f"'{escape(rename.old)}' cannot be renamed to '{escape(rename.new)}': {error.strerror}",
                hint=f"{done} of {len(renames)} names were changed; nothing was synced. "
                "Run it again when the cause is gone.",
                facts={"path": rename.old, "renamed": done, "of": len(renames)},
            ) from error

"""What a scan found that cannot be synced: collected, and raised together at the end."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from protocol.errors import LocalChangedError, LocalStorageError, PathsRefusedError
from protocol.paths import PathProblem, escape

__all__ = ["Findings", "paths_refused"]

_SHOWN = 20  # lines in a message; the facts hold the whole list
_FACTS = 10_000


class Findings:
    """Refused names, what could not be read, and what changed; and warnings, which stop nothing."""

    __slots__ = ("_portable", "changed", "refused", "unreadable_paths", "warnings")

    def __init__(self, portable_names: bool) -> None:
        self._portable = portable_names
        self.refused: list[PathProblem] = []
        self.warnings: list[PathProblem] = []
        self.unreadable_paths: list[tuple[str, str]] = []  # path, reason
        self.changed: list[tuple[str, str]] = []  # path, how

    @property
    def any(self) -> bool:
        """Whether the scan will end in an error."""
        return bool(self.refused or self.unreadable_paths or self.changed)

    def refuse(self, problem: PathProblem) -> None:
        """This path cannot be synced."""
        self.refused.append(problem)

    def not_portable(self, problem: PathProblem) -> None:
        """Windows could not hold this name: a warning, or refused with ``portable_names``."""
        (self.refused if self._portable else self.warnings).append(problem)

    def failed(self, path: str, error: OSError) -> None:
        """The system refused to read ``path``, or the path is not what it was listed as."""
        # EINVAL: what was a link is none any more when its target is read.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
            self.changed.append((path, "vanished or became something else"))
        else:
            self.unreadable_paths.append((path, error.strerror or os.strerror(error.errno or errno.EIO)))

    def raise_if_any(self) -> None:
        """Raise what was collected, the most lasting kind first, each with all others among its facts."""
        unreadable, changed = sorted(self.unreadable_paths), sorted(self.changed)
        facts = {
            "unreadable": [{"path": p, "reason": r} for p, r in unreadable[:_FACTS]],
            "changed": [{"path": p, "reason": r} for p, r in changed[:_FACTS]],
        }
        cannot_be_read = _listing(
            f"{_count(len(unreadable), 'path')} in the working folder cannot be read",
            [f"{escape(p) or '.'}: {r}" for p, r in unreadable],
        )
        if self.refused:
            error = paths_refused(self.refused)
            if unreadable:
                error.message += f"\n{cannot_be_read}"
            error.facts.update({k: v for k, v in facts.items() if v})
            raise error
        if unreadable:
            raise LocalStorageError(
                cannot_be_read,
                hint="What cannot be read must not look as if it had been deleted. "
                "Give yourself the right to read it, or exclude it under 'ignore' in .dsgconfig.yml.",
                facts=facts,
            )
        if changed:
            raise LocalChangedError(
                _listing(
                    f"{_count(len(changed), 'path')} changed while the working folder was being read",
                    [f"{escape(p)}: {how}" for p, how in changed],
                ),
                hint="Run the command again when no program is writing there.",
                facts=facts,
            )


def paths_refused(problems: Sequence[PathProblem]) -> PathsRefusedError:
    """The error for names and paths that cannot be synced, all of them in one."""
    ordered = sorted(problems, key=lambda p: p.path)
    hint = "Rename or remove them, or exclude them under 'ignore' in .dsgconfig.yml."
    if any(p.normalized for p in ordered):
        hint += " `dsg sync --normalize` renames those that are only in another Unicode normal form."
    return PathsRefusedError(
        _listing(f"{_count(len(ordered), 'path')} cannot be synced", [str(p) for p in ordered]),
        hint=hint,
        facts={
            "problems": [
                {"path": p.path, "reason": p.reason, "normalized": p.normalized} for p in ordered[:_FACTS]
            ],
            "count": len(ordered),
        },
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listing(title: str, lines: Sequence[str]) -> str:
    shown = [f"\n  {line}" for line in lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        shown.append(f"\n  … and {len(lines) - _SHOWN} more")
    return f"{title}:{''.join(shown)}"

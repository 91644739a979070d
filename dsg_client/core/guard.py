"""The mass-deletion guard: a plan that would delete too much of a side stops and asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from enum import Enum
from typing import Any

from dsg_client.core.plan import Plan
from dsg_client.core.states import Take
from protocol.errors import MassDeleteError
from protocol.manifest import Entry
from protocol.paths import escape
from protocol.value import Value

__all__ = ["MassDeletion", "Why", "mass_deletions", "refuse_mass_deletion"]

MANY = 20  # from this many entries on, deleting more than half is asked about


class Why(Enum):
    """What makes a deletion a mass deletion."""

    EVERYTHING = "everything"
    MORE_THAN_HALF = "more than half"
    FOLDER_VANISHED = "a data folder vanished"


class MassDeletion(Value):
    """One reason to stop: ``deleted`` of ``entries`` on ``side`` would go.

    ``folder`` is the data folder that vanished from the working folder, or ''.
    ``moved`` of the deleted have their content come back at another path.
    """

    why: Why
    side: Take
    deleted: int
    entries: int
    folder: str = ""
    moved: int = 0

    def fields(self) -> dict[str, Any]:
        """For ``--json``, and for an error's facts."""
        return {
            "why": self.why.value,
            "side": self.side.value,
            "deleted": self.deleted,
            "entries": self.entries,
            "folder": self.folder,
            "moved": self.moved,
        }

    def explain(self) -> str:
        """One sentence, safe to show on a terminal."""
        where = "the working folder" if self.side is Take.LOCAL else "the repository"
        again = f" ({self.moved} of them come back under another path)" if self.moved else ""
        if self.why is Why.FOLDER_VANISHED:
            return (
                f"the data folder {escape(self.folder)} is missing, empty or on another device here, "
                f"and {'its only entry' if self.deleted == 1 else f'its {self.deleted} entries'} "
                f"would be deleted in {where}{again}"
            )
        if self.why is Why.EVERYTHING:
            count = "the only entry" if self.entries == 1 else f"all {self.entries} entries"
            return f"{count} in {where} would be deleted{again}"
        return f"{self.deleted} of {self.entries} entries in {where} would be deleted{again}"


def mass_deletions(plan: Plan, vanished: Collection[str] = ()) -> tuple[MassDeletion, ...]:
    """The reasons why ``plan`` must not be carried out unasked, local side first.

    Counted for each side by itself, in scope, after choices: everything on the
    side, or more than half of 20 or more. ``vanished`` are the data folders
    that have entries in C and are now missing, empty or on another device:
    any delete on the remote side below one of these counts.
    """
    found = []
    for side, deletes, arrivals, entries in (
        (Take.LOCAL, plan.delete_local, plan.downloads, plan.local_entries),
        (Take.REMOTE, plan.delete_remote, plan.uploads, plan.remote_entries),
    ):
        deleted = len(deletes)
        if not deleted:
            continue
        why = None
        if deleted >= entries:
            why = Why.EVERYTHING
        elif entries >= MANY and 2 * deleted > entries:
            why = Why.MORE_THAN_HALF
        if why is not None:
            moved = _moved(deletes, (change.after for change in arrivals))
            found.append(MassDeletion(why, side, deleted, entries, "", moved))
    for folder in sorted(vanished):
        inside = folder.rstrip("/") + "/"
        below = [entry for entry in plan.delete_remote if entry.path.startswith(inside)]
        if below:
            moved = _moved(below, (change.after for change in plan.uploads))
            found.append(
                MassDeletion(
                    Why.FOLDER_VANISHED,
                    Take.REMOTE,
                    len(below),
                    plan.remote_entries,
                    folder.rstrip("/"),
                    moved,
                )
            )
    return tuple(found)


def refuse_mass_deletion(plan: Plan, vanished: Collection[str] = ()) -> None:
    """Raise MassDeleteError when ``plan`` deletes too much to be carried out unasked."""
    found = mass_deletions(plan, vanished)
    if found:
        raise MassDeleteError(
            "; ".join(deletion.explain() for deletion in found),
            hint="'dsg status' lists them; if this is what you want, run again with --allow-mass-delete.",
            facts={"reasons": [deletion.fields() for deletion in found]},
        )


def _moved(deleted: Iterable[Entry], arriving: Iterable[Entry]) -> int:
    gone = Counter((entry.kind, entry.content) for entry in deleted)
    come = Counter((entry.kind, entry.content) for entry in arriving)
    return (gone & come).total()

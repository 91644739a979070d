"""What a sync tells while it runs: typed events, rendered by the command line, read by scripts.

Every event is an immutable value; a consumer is a plain callable that must
return quickly and never raise.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from protocol.value import Value

__all__ = [
    "Attempt",
    "Emit",
    "Event",
    "Note",
    "Phase",
    "PhaseStarted",
    "Planned",
    "Progress",
    "ignore",
]


class Phase(Enum):
    """Where a sync is."""

    CONNECT = "connect"
    SCAN = "scan"
    RECOVER = "recover"
    PLAN = "plan"
    TRANSFER = "transfer"
    COMMIT = "commit"
    APPLY = "apply"


class PhaseStarted(Value):
    """A phase began; phases may overlap (CONNECT and SCAN do)."""

    phase: Phase


class Progress(Value):
    """How far a phase is. Totals are 0 while unknown."""

    phase: Phase
    files: int
    files_total: int
    bytes: int
    bytes_total: int


class Note(Value):
    """Something the user should read; ``warning`` when it may need an action."""

    text: str
    warning: bool = False


class Planned(Value):
    """The plan is made; nothing has moved yet. Counts and bytes of what will."""

    uploads: int
    upload_bytes: int
    downloads: int
    download_bytes: int
    delete_local: int
    delete_remote: int


class Attempt(Value):
    """The sync starts again after a transient error."""

    number: int
    reason: str
    wait: float  # seconds until it starts


Event = PhaseStarted | Progress | Note | Planned | Attempt
Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An ``Emit`` that drops everything."""

"""The transaction as tables: the steps both sides walk, and the agent's states.

Presumed abort: until the decision is durable, a crash anywhere undoes the
transaction; after it, a crash anywhere finishes it. The decision is the
agent's when the remote repository changes, the local journal's when only the
working folder and the cache do.

``STEPS`` is walked in order. Every step is a failpoint: the code calls
``failpoints.reach(Step...)`` just after what the step names became true, and
the tests kill either side at each of them; a step that no test reaches fails
the suite.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from protocol.value import Value

__all__ = ["STEPS", "TRANSITIONS", "Failpoints", "NoFailpoints", "RemoteState", "Side", "Step", "StepRow"]


class Side(Enum):
    """Which process is at a step."""

    LOCAL = "local"
    REMOTE = "remote"


class Step(Enum):
    """A moment of the transaction after which a crash must be harmless."""

    LOCAL_LOCKED = "local-locked"
    SCANNED = "scanned"
    PLANNED = "planned"
    REMOTE_LOCKED = "remote-locked"
    REMOTE_BEGUN = "remote-begun"
    DOWNLOADED = "downloaded"
    UPLOAD_STARTED = "upload-started"
    UPLOADED = "uploaded"
    LOCAL_FLUSHED = "local-flushed"
    REMOTE_FLUSHED = "remote-flushed"
    REMOTE_PREPARED = "remote-prepared"
    LOCAL_CHECKED = "local-checked"
    LOCAL_PREPARED = "local-prepared"
    COMMIT_SENT = "commit-sent"
    REMOTE_CHECKED = "remote-checked"
    REMOTE_DECIDED = "remote-decided"
    REMOTE_APPLIED = "remote-applied"
    REMOTE_PUBLISHED = "remote-published"
    REMOTE_REPLIED = "remote-replied"
    LOCAL_DECIDED = "local-decided"
    LOCAL_TRASHED = "local-trashed"
    LOCAL_APPLIED = "local-applied"
    CACHE_WRITTEN = "cache-written"
    LOCAL_FINISHED = "local-finished"


class StepRow(Value):
    """One row: where it happens, which row of the design's table it is, what a crash here leads to."""

    step: Step
    side: Side
    row: int
    committed: bool | None  # a sync that changes R, crashed right here, ends as "all after"; None: as either


_L, _R = Side.LOCAL, Side.REMOTE
STEPS: tuple[StepRow, ...] = (
    StepRow(Step.LOCAL_LOCKED, _L, 1, False),
    StepRow(Step.SCANNED, _L, 1, False),
    StepRow(Step.PLANNED, _L, 2, False),
    StepRow(Step.REMOTE_LOCKED, _R, 3, False),
    StepRow(Step.REMOTE_BEGUN, _R, 3, False),
    StepRow(Step.DOWNLOADED, _L, 4, False),
    StepRow(Step.UPLOAD_STARTED, _R, 4, False),
    StepRow(Step.UPLOADED, _R, 4, False),
    StepRow(Step.LOCAL_FLUSHED, _L, 5, False),
    StepRow(Step.REMOTE_FLUSHED, _R, 5, False),
    StepRow(Step.REMOTE_PREPARED, _R, 5, False),
    StepRow(Step.LOCAL_CHECKED, _L, 6, False),
    StepRow(Step.LOCAL_PREPARED, _L, 6, False),
    # The commit may or may not have left this machine.
    StepRow(Step.COMMIT_SENT, _L, 7, None),
    StepRow(Step.REMOTE_CHECKED, _R, 7, False),
    StepRow(Step.REMOTE_DECIDED, _R, 7, True),
    StepRow(Step.REMOTE_APPLIED, _R, 8, True),
    StepRow(Step.REMOTE_PUBLISHED, _R, 8, True),
    StepRow(Step.REMOTE_REPLIED, _R, 8, True),
    StepRow(Step.LOCAL_DECIDED, _L, 8, True),
    StepRow(Step.LOCAL_TRASHED, _L, 9, True),
    StepRow(Step.LOCAL_APPLIED, _L, 9, True),
    StepRow(Step.CACHE_WRITTEN, _L, 9, True),
    StepRow(Step.LOCAL_FINISHED, _L, 9, True),
)


class RemoteState(Enum):
    """Where the agent's transaction stands."""

    NONE = "none"
    BEGUN = "begun"  # lock held, staging exists
    PREPARED = "prepared"  # everything durable but the decision
    DECIDING = "deciding"  # the decision may be durable or not: nothing is undone any more
    DECIDED = "decided"  # committed; publishing
    DONE = "done"  # replied; lock released
    ABORTED = "aborted"  # staging destroyed; lock released


# (state, request) -> state after its success; what is not here is refused as a protocol error.
TRANSITIONS: dict[tuple[RemoteState, str], RemoteState] = {
    (RemoteState.NONE, "tx.begin"): RemoteState.BEGUN,
    (RemoteState.BEGUN, "tx.changes"): RemoteState.BEGUN,
    (RemoteState.BEGUN, "tx.upload"): RemoteState.BEGUN,
    (RemoteState.BEGUN, "tx.adopt"): RemoteState.BEGUN,
    (RemoteState.BEGUN, "tx.prepare"): RemoteState.PREPARED,
    (RemoteState.PREPARED, "tx.commit"): RemoteState.DONE,
    (RemoteState.BEGUN, "tx.abort"): RemoteState.ABORTED,
    (RemoteState.PREPARED, "tx.abort"): RemoteState.ABORTED,
}


class Failpoints(Protocol):
    """Where tests stop a process; see :class:`NoFailpoints` for the ordinary one."""

    def reach(self, step: Step) -> None:
        """Called when ``step`` has just happened."""


class NoFailpoints:
    """Nothing happens at any step."""

    def reach(self, step: Step) -> None:
        return None

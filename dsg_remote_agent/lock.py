"""The repository's exclusive lock, and the note beside it that says who has it.

The lock is ``flock`` on ``.dsg/lock``: made at init, never removed, opened
read-only, so that every account of the group can take it. The kernel lets it
go with the last process that has the descriptor: this agent, or a mutating
child that inherited it. The note ``.dsg/lock.holder`` is for messages only;
it is replaced whole, removed at release, and a stale one means nothing.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dsg_remote_agent.storage.base import Claim
from dsg_remote_agent.storage.layout import LOCK, LOCK_HOLDER, replace_bytes
from protocol.errors import IntegrityError, LockedError
from protocol.paths import escape
from protocol.tree.fs import Lock, TreeFS
from protocol.value import Value

__all__ = ["Held", "read_holder", "take"]

MAX_HOLDER_BYTES = 8192
_NOTE_DELAY_S = 0.02
_NOTE_TRIES = 25


class Held(Value):
    """The lock, held until :meth:`release` or the end of the process; a context manager."""

    tree: TreeFS
    lock: Lock
    claim: Claim

    def fileno(self) -> int:
        """The descriptor that a mutating child process must inherit (``pass_fds``)."""
        return self.lock.fileno()

    def release(self) -> None:
        """Let the lock go. Harmless when it is gone."""
        try:
            self.tree.unlink(LOCK_HOLDER)
        except OSError:
            pass  # a stale note is harmless; keeping the lock would not be
        self.lock.release()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(tree: TreeFS, claim: Claim, shown: str, now: Callable[[], int]) -> Held:
    """Take the lock without waiting.

    LockedError names the holder; IntegrityError when the lock's file is
    missing, as a new one would not exclude those who have the old one open.
    """
    try:
        lock = tree.lock(LOCK)
    except FileNotFoundError:
        raise IntegrityError(
            f"{shown}/{LOCK} is missing",
            hint=f"when nobody is syncing with this repository, make it again: touch {LOCK} in its folder",
        ) from None
    if lock is None:
        raise _locked(tree, shown)
    held = Held(tree, lock, claim.but(since=now()))
    try:
        replace_bytes(tree, LOCK_HOLDER, json.dumps(held.claim.to_map()).encode() + b"\n", durable=False)
    except OSError as error:
        # A full disk must not keep anybody from recovering what filled it; the note is only for messages.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            held.release()
            raise
    return held


def read_holder(tree: TreeFS) -> Claim | None:
    """Who says to have the lock; None when nobody says so, or not legibly."""
    try:
        found: Any = json.loads(tree.read_bytes(LOCK_HOLDER, MAX_HOLDER_BYTES))
        claim = Claim(**found)
    except (OSError, ValueError, TypeError):
        return None
    texts = (claim.txid, claim.user, claim.host, claim.account, claim.server)
    if not all(isinstance(text, str) and len(text) <= 1000 for text in texts):
        return None
    if type(claim.pid) is not int or type(claim.since) is not int or not 0 <= claim.since < 1 << 40:
        return None
    return claim


def _locked(tree: TreeFS, shown: str) -> LockedError:
    # The holder may have the lock and not yet have written its note: that takes it a moment.
    holder = read_holder(tree)
    for _ in range(_NOTE_TRIES):
        if holder is not None:
            break
        time.sleep(_NOTE_DELAY_S)
        holder = read_holder(tree)
    hint = "wait until it is finished, or let DSG wait: --retries 5"
    if holder is None:
        return LockedError(f"{shown} is locked by another sync", hint=hint, facts={"path": shown})
    since = datetime.fromtimestamp(holder.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    who = escape(holder.user) or escape(holder.account)
    return LockedError(
        f"{shown} is locked by {who} (from {escape(holder.host)}, account {escape(holder.account)}, "
        f"process {holder.pid} on {escape(holder.server)}) since {since}",
        hint=hint,
        facts={"path": shown, **holder.to_map()},
    )

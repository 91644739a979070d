"""Settling a transaction that a crash or a lost connection left open."""

from __future__ import annotations

import asyncio
from typing import Any

from dsg_client.local.index import IndexChanges
from dsg_client.remote.calls import RemoteRepo
from dsg_client.sync.events import Note, Phase, PhaseStarted
from dsg_client.sync.localside import Settled, settle, storage_errors
from dsg_client.sync.site import Site
from dsg_client.sync.threads import to_the_end
from protocol.errors import (
    DsgError,
    HostKeyChangedError,
    HostKeyUnknownError,
    InDoubtError,
    IntegrityError,
    LinkError,
    LockedError,
    SignInError,
    WrongRepositoryError,
)
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.tree.change import (
    JOURNAL_PREPARED,
    Journal,
    JournalState,
    Staging,
    decide,
    discard_prepared,
    read_journal,
    sweep,
)
from protocol.tree.fs import TreeFS

__all__ = ["ask_outcome", "describe_pending", "drop_prepared", "finish_there", "settle_leftover"]

# An agent that lost its client aborts within 60 s, or finishes the commit it has begun.
_RUNNING_LIMIT = 75.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 4.0


def drop_prepared(tree: TreeFS, txid: str) -> None:
    """Remove the PREPARED journal of ``txid``, if there is one; never a decided one, never another's."""
    with storage_errors("Undoing the prepared sync"):
        found = read_journal(tree)
        if found is not None and found[0] is JournalState.PREPARED and found[1].txid == txid:
            discard_prepared(tree)


async def ask_outcome(site: Site, txid: str, record: SnapshotRecord, *, patience: float = 0.0) -> str:
    """Ask the server on a new connection: ``committed`` or ``aborted``, each of them final.

    InDoubtError when it cannot be asked, or does not know within 75 s. A server
    that cannot be reached, or is lost again, is tried again for ``patience``
    seconds. A commit that a dead agent left unapplied is carried out on the way.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _RUNNING_LIMIT
    last_try = loop.time() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            async with site.connect() as repo:
                if repo.opened.repo_id != record.repo_id:
                    raise WrongRepositoryError(
                        f"{site.address} holds another repository now (id {repo.opened.repo_id}, "
                        f"expected {record.repo_id})",
                        hint="Correct the address with 'dsg remote set'; or 'dsg recover --abandon' "
                        "gives up this side of the sync (nothing here has changed).",
                        outcome=InDoubtError.default_outcome,
                    )
                while True:
                    try:
                        found = await repo.outcome(txid, record.seq)
                    except LockedError:
                        found = None  # another sync runs: whether ours was undone is said under the lock
                    if found is not None and found.outcome != "running":
                        if found.outcome == "committed":
                            await finish_there(site, repo)
                        return str(found.outcome)
                    if loop.time() > give_up:
                        raise InDoubtError(
                            f"the server is still busy with this sync (transaction {txid})",
                            hint="Wait a minute, then run 'dsg sync' again: it settles this first.",
                        )
                    await asyncio.sleep(0.5)
        except (InDoubtError, WrongRepositoryError):
            raise
        except DsgError as error:
            if _may_pass(error) and loop.time() + pause <= last_try:
                if pause == _FIRST_PAUSE:
                    site.emit(Note(f"{error.message}; trying again for {patience:.0f} s ..."))
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            raise InDoubtError(
                f"whether the server committed this sync is not known: {error.message}",
                hint="Nothing was changed here. Run 'dsg sync' again when the server can be reached: it "
                "settles this first. If it is gone for good: 'dsg recover --abandon'.",
                facts={"txid": txid, "cause": error.to_wire()},
            ) from error


def _may_pass(error: DsgError) -> bool:
    """Whether a network that is gone for a moment, or a server that starts again, can look like this."""
    return isinstance(error, LinkError) and not isinstance(
        error, SignInError | HostKeyChangedError | HostKeyUnknownError
    )


async def finish_there(site: Site, repo: RemoteRepo) -> None:
    """Let the server carry out a commit that a dead agent left unapplied.

    Without it, those who read the repository's plain folder would wait for the
    next one who uploads. What keeps the server from it is told, not raised:
    through DSG the commit can be read as it is.
    """
    if not repo.opened.unapplied or repo.opened.role == "read":
        return
    try:
        notes = await repo.recover()
    except LockedError:
        return  # somebody is at it
    except DsgError as error:
        site.emit(Note(f"the server has yet to finish an earlier sync: {error.message}", warning=True))
        return
    for note in notes:
        site.emit(Note(f"server: {note}"))


def describe_pending(tree: TreeFS) -> str | None:
    """What a journal in the folder is waiting for, in words; None when there is none."""
    found = read_journal(tree)
    if found is None:
        return None
    state, journal = found
    what = f"a sync (s{journal.meta.get('seq')}) was interrupted"
    if state is JournalState.DECIDED:
        return f"{what} after it was committed; the next command finishes it"
    return f"{what} before its outcome was known here; the next 'dsg sync' or 'dsg recover' settles it"


async def settle_leftover(site: Site, *, abandon: bool = False) -> list[str]:
    """Finish or undo what an earlier command left; the folder's lock is held. What was done, in words.

    InDoubtError when the server must be asked and cannot be; then nothing was
    changed. ``abandon`` gives up a PREPARED transaction without asking.
    """
    with storage_errors("Looking for an interrupted sync"):
        found = read_journal(site.tree)
    if found is None:
        await to_the_end(_sweep, site.tree)
        return []
    state, journal = found
    site.emit(PhaseStarted(Phase.RECOVER))
    copied = (journal.machine, tuple(journal.root)) != (site.workdir.machine, site.bound_to)
    notes = await _settle_found(site, state, journal, abandon=abandon, copied=copied)
    for note in notes:
        site.emit(Note(note))
    await to_the_end(_sweep, site.tree)
    return notes


async def _settle_found(
    site: Site, state: JournalState, journal: Journal, *, abandon: bool, copied: bool
) -> list[str]:
    label = f"the interrupted sync (s{journal.meta.get('seq')})"
    if state is JournalState.PREPARED:
        if not journal.meta.get("remote") or abandon:
            await to_the_end(_discard, site.tree)
            word = "given up" if abandon else "undone: it had not been decided"
            return [f"{label} was {word}; nothing here had changed"]
        outcome = await ask_outcome(site, journal.txid, _record(journal.meta))
        if outcome == "aborted":
            await to_the_end(_discard, site.tree)
            return [f"{label} was undone: the server had not committed it"]
        if not copied:
            await to_the_end(_decide, site.tree)
    if copied:
        # Stats and inodes of the original say nothing here. Without the journal the next sync compares
        # this folder with the repository as it is, and finds the same changes again.
        await to_the_end(_set_aside, site.tree, journal, state)
        note = (
            f"{label} was committed, but this folder is a copy of the one that it ran in: its journal was "
            f"dropped, and the files that it had staged or replaced are in .dsg/replaced/{journal.txid}; "
            "this sync compares everything anew"
        )
        return [note]
    settled = await to_the_end(_forward, site, journal)
    who = "the server had committed it" if journal.meta.get("remote") else "it had been decided"
    notes = [f"{label} was finished: {who}"]
    return notes + held_notes(settled)


def held_notes(settled: Settled) -> list[str]:
    """The paths that were left as the user has them, and what was moved to safety."""
    notes = [f"left as it is: {escape(path)} ({reason})" for path, reason in settled.held]
    return notes + [
        f"moved to safety: {escape(path)} is now {escape(where)}" for path, where in settled.rescued
    ]


def _record(meta: Any) -> SnapshotRecord:
    raw = meta.get("record")
    if not isinstance(raw, bytes):
        raise IntegrityError(
            "the journal of an interrupted sync names no snapshot",
            hint="Copy .dsg aside, then run 'dsg recover --abandon'.",
        )
    return SnapshotRecord.from_bytes(raw)


def _forward(site: Site, journal: Journal) -> Settled:
    record = _record(journal.meta)

    def note(changes: IndexChanges) -> None:
        site.save_index(changes, record.manifest.partition(":")[0])

    return settle(site.tree, journal, site.failpoints, note, site.clock)


def _discard(tree: TreeFS) -> None:
    with storage_errors("Undoing the prepared sync"):
        discard_prepared(tree)


def _decide(tree: TreeFS) -> None:
    with storage_errors("Writing the journal"):
        decide(tree)


def _set_aside(tree: TreeFS, journal: Journal, state: JournalState) -> None:
    """Keep what a copied folder's transaction had in hand, then drop its journal."""
    from protocol.tree.change import JOURNAL_DECIDED, REPLACED, TRASH

    with storage_errors("Setting an interrupted sync aside"):
        target = f"{REPLACED}/{journal.txid}"
        tree.make_folders(target)
        for source in (f"{TRASH}/{journal.txid}", Staging(tree, journal.txid).folder):
            try:
                tree.place(source, f"{target}/{source.split('/')[1]}")
            except FileNotFoundError:
                pass
        tree.flush()
        tree.unlink(JOURNAL_DECIDED if state is JournalState.DECIDED else JOURNAL_PREPARED)
        tree.flush_folder(".dsg")


def _sweep(tree: TreeFS) -> None:
    with storage_errors("Removing leftovers"):
        sweep(tree)

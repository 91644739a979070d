"""Bringing the snapshots of one dataset over into another, by ``zfs send`` and ``zfs receive``.

What both have is told by GUID: names say nothing, as the same snapshot is in
another generation after every sync. A receive that is interrupted leaves what
was there before, so that all of this can be repeated.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
from typing import IO, NamedTuple

from dsg_remote_agent.storage.zfs.command import Answer, Trouble, Zfs, failure
from dsg_remote_agent.storage.zfs.names import generation_number, snapshot, snapshot_number
from dsg_remote_agent.storage.zfs.privileges import account
from protocol.errors import NotPermittedError, RemoteStorageError
from protocol.paths import escape

__all__ = ["Brought", "Side", "bring_over", "guids"]

# What who receives into a dataset and marks it needs on the one above.
_RECEIVING = "canmount,create,mount,readonly,receive,userprop"
_DIVERGED = ("has been modified", "does not match incremental source", "destination has snapshots")


class Side(NamedTuple):
    """A dataset, and the ``zfs`` that sees it."""

    zfs: Zfs
    dataset: str


class Brought(NamedTuple):
    """How far it was brought: the snapshot that both had before (None: nothing), and the newest now."""

    base: int | None
    newest: int


def guids(side: Side) -> dict[int, str] | None:
    """The GUID of each snapshot ``sN`` by its number; None when there is no such dataset."""
    words = ("get", "-H", "-p", "-r", "-d", "1", "-o", "name,value", "guid", side.dataset)
    answer = side.zfs.run(*words)
    if answer.trouble is Trouble.MISSING:
        return None
    if not answer.good:
        raise failure(answer, side.dataset, "looking at the snapshots")
    found = {}
    for line in answer.out.splitlines():
        name, _, guid = line.partition("\t")
        number = snapshot_number(name, side.dataset)
        if number is not None:
            found[number] = guid
    return found


def bring_over(source: Side, target: Side, newest: int) -> Brought:
    """Have ``target`` hold the snapshots of ``source`` up to ``newest``, and all between; made when missing.

    RemoteStorageError when the two have nothing in common, or the target has
    what the source has not: then it is as it was.
    """
    ours, theirs = guids(source), guids(target)
    if ours is None or newest not in ours:
        raise RemoteStorageError(
            f"{source.dataset} has no snapshot {snapshot(newest)} any more",
            hint="a sync or an administrator moved it just now: run it again",
        )
    wanted = sorted(seq for seq in ours if seq <= newest)
    if theirs is None:
        # Even of the first one nothing is left when it is interrupted.
        _stream(source, [f"{source.dataset}@{snapshot(wanted[0])}"], target)
        base, begun = None, wanted[0]
    else:
        common = [seq for seq in wanted if theirs.get(seq) == ours[seq]]
        if not common:
            raise RemoteStorageError(
                f"{target.dataset} and {source.dataset} have no snapshot in common (in the target: "
                f"{_names(theirs)}; in the source: {_names(ours)})",
                hint="what they had in common was pruned or destroyed, or the target belongs to another "
                "repository: name a target that does not exist, and all of it is sent",
            )
        base = begun = common[-1]
    if begun != newest:
        names = [f"{source.dataset}@{snapshot(seq)}" for seq in (begun, newest)]
        _stream(source, ["-I", *names], target)
    return Brought(base, newest)


def _names(found: dict[int, str]) -> str:
    if not found:
        return "none"
    return snapshot(min(found)) + (f" to {snapshot(max(found))}" if len(found) > 1 else "")


def _stream(source: Side, words: list[str], target: Side) -> None:
    """``zfs send WORDS | zfs receive -u TARGET``; the error of the one that failed first."""
    with tempfile.TemporaryFile() as sent, tempfile.TemporaryFile() as received:
        sender = source.zfs.start("send", *words, stdout=subprocess.PIPE, stderr=sent)
        assert sender.stdout is not None
        try:
            receiver = target.zfs.start("receive", "-u", target.dataset, stdin=sender.stdout, stderr=received)
        finally:
            # Its end is the receiver's alone: that one's death must end the sender.
            sender.stdout.close()
        statuses = receiver.wait(), sender.wait()
        receiving = Answer(("receive", "-u", target.dataset), statuses[0], "", _said(received))
        sending = Answer(("send", *words), statuses[1], "", _said(sent))
    if not receiving.good and any(sign in receiving.err for sign in _DIVERGED):
        raise RemoteStorageError(
            f"{target.dataset} is not as the last backup left it: {receiving.said}",
            hint="somebody wrote to it, or took or received a snapshot: look at what is newer (zfs diff), "
            "throw it away (zfs rollback) or name a new target; nothing was changed",
        )
    # A receiver that got nothing complains of that, which says nothing.
    for answer, side in ((sending, source), (receiving, target)):
        if answer.trouble is Trouble.DENIED:
            raise _denied(answer, side)
        if not answer.good and not _cut_off(answer):
            raise failure(answer, target.dataset, f"zfs {answer.words[0]}")
    if not (sending.good and receiving.good):
        raise failure(receiving if sending.good else sending, target.dataset, "zfs send to zfs receive")


def _cut_off(answer: Answer) -> bool:
    """Whether it only ended because the receiver had."""
    return answer.status == -signal.SIGPIPE or "Broken pipe" in answer.err


def _denied(answer: Answer, side: Side) -> NotPermittedError:
    above, _, last = side.dataset.rpartition("/")
    if answer.words[0] == "send" and generation_number(side.dataset) is not None:
        above = above.rpartition("/")[0]  # where all rights on repositories are
    rights = "send" if answer.words[0] == "send" else _RECEIVING
    near = side.zfs.where(side.dataset) == side.dataset
    who = account() if near else "ACCOUNT"  # whoever is signed in to there
    return NotPermittedError(
        f"zfs {answer.words[0]} is not permitted for {side.zfs.where(side.dataset)}: {answer.said}",
        hint=f"an administrator there runs: zfs allow -u {who} {rights} {above or last}",
    )


def _said(file: IO[bytes]) -> str:
    file.seek(0)
    return escape(file.read(10_000).decode("utf-8", "replace").replace("\n", " "))

"""Around the decision: the old head stands still, ``dsg:head`` is written, what is seen of it confirmed."""

from __future__ import annotations

import errno
import os

from dsg_remote_agent.storage.layout import TMP
from dsg_remote_agent.storage.zfs.command import failure
from dsg_remote_agent.storage.zfs.names import HeadValue
from dsg_remote_agent.storage.zfs.site import Site
from dsg_remote_agent.storage.zfs.survey import Generation
from protocol.errors import DsgError, Outcome, RemoteStorageError
from protocol.tree.posix import PosixTree

__all__ = ["confirm", "decide", "freeze", "thaw"]

_REFUSED = frozenset([errno.EROFS])


def freeze(site: Site, generation: Generation, tree: PosixTree, lock: int) -> None:
    """Let nobody write to ``generation`` any more, and have what was written reach its dataset.

    Flushed before: once it is read-only Linux has nothing to flush in it, and what programs wrote to mapped
    memory would be in no snapshot. What they write there from then on is cleaning's to keep. Setting the
    property ends a transaction group, so that ``written`` afterwards tells all of it.

    The property is not believed: OpenZFS may set it and say that it failed,
    zfs-fuse sets it and shows another value. What counts is that a file cannot
    be made. RemoteStorageError when it can.
    """
    tree.flush()
    answer = site.zfs.run("set", "readonly=on", generation.name, lock=lock)
    if _writable(tree):
        raise (
            failure(answer, site.shown, f"making {generation.name} read-only")
            if not answer.good
            else RemoteStorageError(
                f"{generation.name} could not be made read-only",
                hint="is it mounted twice, or with options of its own? nothing was changed",
            )
        )
    tree.flush()  # zfs-fuse does: what came in between


def thaw(site: Site, generation: Generation, lock: int) -> None:
    """Let people write to ``generation`` again; an error is left to the next recovery."""
    site.zfs.run("inherit", "readonly", generation.name, lock=lock)


def _writable(tree: PosixTree) -> bool:
    path = f"{TMP}/frozen-{os.getpid()}"
    try:
        out = tree.create(path)
    except FileNotFoundError:
        return True  # without its folder this tells nothing
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
    out.close()
    tree.unlink(path)
    return True


def decide(site: Site, value: HeadValue, before: HeadValue, lock: int) -> None:
    """The decision: ``dsg:head`` becomes ``value``, durably.

    A DsgError whose outcome is ABORTED when it is still ``before``. When it
    cannot be told the error's outcome is IN_DOUBT: the command may still be
    running, with the lock, so that nobody else can begin meanwhile.
    """
    answer = site.zfs.run("set", f"dsg:head={value}", site.dataset, lock=lock)
    if answer.good:
        return
    try:
        now = site.survey().head
    except (DsgError, OSError):
        now = None
    if now == value:
        confirm(site, value.txid, lock)
        return
    if now == before and answer.status is not None:
        raise failure(answer, site.shown, "the decision")
    error = failure(answer, site.shown, "the decision")
    error.outcome = Outcome.IN_DOUBT
    raise error


def confirm(site: Site, txid: str, lock: int | None = None) -> None:
    """Have the pool write what was seen of the decision of ``txid``; a DsgError that leaves it in doubt.

    A property is seen before the transaction group that holds it is on the
    disk: after a power cut it may be the old one again. Any command that
    changes something ends with a later group.
    """
    answer = site.zfs.run("set", f"dsg:asked={txid}", site.dataset, lock=lock)
    if not answer.good:
        error = failure(answer, site.shown, "the decision")
        error.outcome = Outcome.IN_DOUBT
        raise error

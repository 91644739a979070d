"""The end of a transaction: the applied change becomes durable, the journal goes."""

from __future__ import annotations

from protocol.tree.actions import (
    AREA,
    JOURNAL_DECIDED,
    STAGING,
    TRASH,
)
from protocol.tree.fs import TreeFS
from protocol.tree.journal import Journal
from protocol.tree.report import Unexpected
from protocol.tree.staging import remove_all
from protocol.tree.taking import rescue, rescue_area

__all__ = ["finish"]


def finish(
    tree: TreeFS, journal: Journal, unexpected: Unexpected = Unexpected.KEEP, *, only_area: bool = False
) -> list[tuple[str, str]]:
    """After :func:`apply`: flush, remove the journal, then trash and staging. Repeatable.

    ``only_area``: nothing was changed but names in ``.dsg`` itself, so that its flush is enough.

    Returns (path, where) of things about to be dropped that are not what they
    should be and were moved to safety: written to by a program that still had
    them open. OSError leaves the journal, or only things in the trash and
    staging that :func:`protocol.tree.staging.sweep` removes.
    """
    txid = journal.txid
    trash, staging = f"{TRASH}/{txid}", f"{STAGING}/{txid}"
    area = rescue_area(txid, unexpected)
    saved = []
    try:
        slots = tree.names(staging)
    except FileNotFoundError:
        slots = set()
    for position, (path, before, after, keep) in enumerate(journal.actions):
        doubtful = []
        if keep is not None and before is not None and keep.startswith(f"{trash}/"):
            try:
                if not before.came_out(tree.stat(keep)):
                    doubtful.append(keep)
            except FileNotFoundError:
                pass
        if after is not None and str(after.number) in slots:
            left = f"{staging}/{after.number}"
            if tree.stat(left).inode != after.inode:
                doubtful.append(left)
        if f"out-{position}" in slots:
            doubtful.append(f"{staging}/out-{position}")
        for source in doubtful:
            where = rescue(tree, area, source, path)
            if where is not None:
                saved.append((path, where))
    if only_area:
        tree.flush_folder(AREA)
    else:
        tree.flush()
    try:
        tree.unlink(JOURNAL_DECIDED)
    except FileNotFoundError:
        pass
    tree.flush_folder(AREA)
    remove_all(tree, trash)
    remove_all(tree, staging)
    return saved

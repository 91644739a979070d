"""``clean``: what DSG itself left in the working folder and no longer needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from dsg_client.local.index import INDEX_FILES
from dsg_client.sync.localside import storage_errors
from dsg_client.sync.settling import describe_pending
from dsg_client.sync.site import Site
from protocol.errors import InDoubtError
from protocol.tree.change import REPLACED, STAGING, TMP, TRASH, remove_all
from protocol.tree.fs import Kind, TreeFS

__all__ = ["clean"]


def clean(site: Site, *, dry_run: bool, replaced: bool, index: bool) -> list[tuple[str, int]]:
    """Remove leftovers; (path, size in bytes) of each file.

    InDoubtError while an interrupted sync waits to be settled: its staging
    may be all that there is of a file.
    """
    with site.workdir.lock("dsg clean"), storage_errors("Cleaning"):
        pending = describe_pending(site.tree)
        if pending:
            raise InDoubtError(pending, hint="Run 'dsg recover' first.")
        areas = [STAGING, TRASH, TMP, *([REPLACED] if replaced else [])]
        found = [item for area in areas for item in _files(site.tree, area)]
        stood = []
        for path in INDEX_FILES if index else ():
            try:
                stood.append((path, site.tree.stat(path).size))
            except FileNotFoundError:
                pass
        if not dry_run:
            for area in areas:
                remove_all(site.tree, area)
            for path, _ in stood:
                # A status, which takes no lock, may have put both in one meanwhile.
                with suppress(FileNotFoundError):
                    site.tree.unlink(path)
        return found + stood


def _files(tree: TreeFS, folder: str) -> Iterator[tuple[str, int]]:
    try:
        below = list(tree.scan(folder))
    except FileNotFoundError:
        return
    for name, stat in below:
        path = f"{folder}/{name}"
        if stat.kind is Kind.FOLDER:
            yield from _files(tree, path)
        else:
            yield path, stat.size

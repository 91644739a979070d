"""``clean``: all of the stat index goes, and what others did meanwhile is in nobody's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsg_client.local.index import INDEX_FILES, IndexChanges, save_index
from dsg_client.sync.care import clean
from dsg_client.sync.site import Site
from protocol.tree.posix import PosixTree
from tests.client.sync.conftest import Ground


def with_news(site: Site) -> None:
    """An index large enough to have news beside it."""
    for count in (2000, 1):
        changes = IndexChanges()
        for number in range(count):
            changes.put(f"input/{number:05}", (1, 2, 3, number), b"d" * 32)
        save_index(site.tree, site.binding("sha256"), changes)
    assert all((site.root / path).exists() for path in INDEX_FILES)


async def test_the_index_goes_with_its_news(ground: Ground) -> None:
    site = await ground.init("ann")
    with_news(site)
    found = clean(site, dry_run=True, replaced=False, index=True)
    assert [path for path, size in found if size] == list(INDEX_FILES)
    assert all((site.root / path).exists() for path in INDEX_FILES)
    assert clean(site, dry_run=False, replaced=False, index=True) == found
    assert not any((site.root / path).exists() for path in INDEX_FILES)
    assert clean(site, dry_run=False, replaced=False, index=True) == []


async def test_news_that_a_status_has_just_put_into_the_index(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await ground.init("ann")
    with_news(site)
    unlink = PosixTree.unlink

    def after_the_status(tree: PosixTree, path: str) -> None:
        (Path(site.root) / INDEX_FILES[1]).unlink(missing_ok=True)
        unlink(tree, path)

    monkeypatch.setattr(PosixTree, "unlink", after_the_status)
    assert len(clean(site, dry_run=False, replaced=False, index=True)) == 2
    assert not any((site.root / path).exists() for path in INDEX_FILES)

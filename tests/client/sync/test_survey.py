"""A scan can be given up at any moment, tells how far it is, and begins when it should."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from dsg_client.local.index import INDEX_PATH, read_index
from dsg_client.sync.events import Event, Progress
from dsg_client.sync.looking import Look
from dsg_client.sync.survey import look_at_local
from tests.client.sync.conftest import Ground


async def test_a_scan_is_given_up_within_a_large_file(ground: Ground) -> None:
    site = await ground.init("ann")
    events: list[Event] = []
    site.emit = events.append
    folder = site.root / "input"
    folder.mkdir()
    (folder / "a").write_text("small")
    with (folder / "large").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)  # an hour of hashing, of holes alone
    look = Look(site, "sha256")
    task = asyncio.create_task(look_at_local(site, look, site.cache().manifest))
    while look.bytes_read < 1 << 24:
        assert not task.done()
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    assert any(isinstance(event, Progress) and event.bytes > 1 << 24 for event in events)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 10
    assert not [one for one in threading.enumerate() if one.name.startswith("hash")]
    assert "input/large" not in [row[0] for row in read_index(site.tree, site.binding("sha256"))]


async def test_who_is_syncing_is_found_out_while_the_server_is_waited_for(ground: Ground) -> None:
    site = await ground.init("ann")
    site.tree.write_bytes(INDEX_PATH, b"")
    vars(site).pop("identity", None)
    async with site.connecting(), site.connect():
        await asyncio.get_running_loop().shutdown_default_executor()
        assert "identity" in vars(site)

"""Opening the working folder of a command that was begun ahead, while the way to its server is being made."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dsg_client.remote.link import prepare_link
from dsg_client.remote.reach import Link
from dsg_client.sync.ahead import Ahead

if TYPE_CHECKING:
    from dsg_client.sync.site import Site

__all__ = ["opened"]


@asynccontextmanager
async def opened(
    ahead: Ahead, *modules: str, connect: bool = True, accept_new_host_key: bool = False
) -> AsyncIterator[Site]:
    """The folder's site; with ``connect``, being connected to its server.

    ``modules`` are what the command will need: they are imported meanwhile.
    Raises what :func:`~dsg_client.sync.site.open_site` raises.
    """

    def needed(site: Site) -> Site:
        for module in modules:
            importlib.import_module(module)
        return site

    def opened_here() -> Site:
        return ahead.open(accept_new_host_key=accept_new_host_key)

    try:
        waiting = asyncio.get_running_loop().run_in_executor(None, ahead.direction)
        if connect:
            prepare_link()
        direction = await waiting
        if not connect:
            yield needed(await asyncio.to_thread(opened_here))
        elif direction is None:
            site = await asyncio.to_thread(opened_here)
            async with site.connecting():
                yield await asyncio.to_thread(needed, site)
        else:
            link = Link(direction.address, direction, accept_new_host_key=accept_new_host_key)
            async with link.connecting():
                site = await asyncio.to_thread(lambda: needed(opened_here()))
                site.link = link
                site.find_identity_aside()
                yield site
    except asyncio.CancelledError:
        ahead.stop()  # or the thread that waits for the other process would be waited for
        raise

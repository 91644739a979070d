"""The way to a server: an address, how to reach it, and a connection begun before it is needed."""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.ask import terminal_ask
from dsg_client.remote.link import open_link
from dsg_client.remote.settings import LinkSettings

if TYPE_CHECKING:
    from dsg_client.remote.calls import RemoteAgent, RemoteRepo

__all__ = ["Link", "Way"]

# Seconds after which a thread that imports or scans lets the one go on that signs in; Python's are 5 ms,
# and signing in has a dozen steps.
_SWITCH = 0.0005

_log = logging.getLogger("dsg")  # shown with -vv


class Way(Protocol):
    """What of the configuration matters for the way to a server; see :class:`LinkSettings`."""

    @property
    def transport(self) -> str: ...

    @property
    def agent_command(self) -> str: ...

    @property
    def connect_timeout(self) -> float: ...


class Link:
    """How to reach a server: an address and the settings that matter for the way."""

    def __init__(self, address: RemoteAddress, way: Way, *, accept_new_host_key: bool = False) -> None:
        self.address = address
        self.way = way
        self.accept_new_host_key = accept_new_host_key
        #: Set once all that is needed to connect has been imported: from here on there is time to spare.
        self._starting = asyncio.Event()
        self._early: asyncio.Task[RemoteAgent] | None = None

    async def open(self) -> RemoteAgent:
        """Start an agent there. Close it."""
        settings = LinkSettings(
            transport=self.way.transport,
            agent_command=self.way.agent_command,
            accept_new_host_key=self.accept_new_host_key,
            ask=terminal_ask(),
            connect_limit=self.way.connect_timeout,
            again=shlex.join(["dsg", *sys.argv[1:]]),
        )
        usual = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        try:
            agent = await open_link(self.address, settings, self._starting.set)
        finally:
            sys.setswitchinterval(usual)
            self._starting.set()
        found = agent.preamble
        _log.debug(
            "%s: agent %s, protocol %s, features %s",
            self.address,
            found.dsg,
            ", ".join(map(str, found.protocol)),
            ", ".join(sorted(agent.session.features)) or "none",
        )
        return agent

    @asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """Begin to connect, and go on meanwhile; the next :meth:`agent` takes the connection up.

        What needs time while it is made belongs into a thread. An error is
        raised by who takes it up. A connection that nobody took up is closed
        when the context is left.
        """
        self._early = early = asyncio.ensure_future(self.open())
        # Even a cancelled wait must not leave the connection to itself.
        try:
            await self._starting.wait()
            yield
        finally:
            if self._early is not None:
                self._early = None
                early.cancel()
                await asyncio.wait([early])
                if not early.cancelled() and early.exception() is None:
                    await early.result().close()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[RemoteAgent]:
        """An agent there, started now or already begun; it is gone when the context is left."""
        early, self._early = self._early, None
        try:
            agent = await (early if early is not None else self.open())
        except asyncio.CancelledError:
            if early is not None:
                await asyncio.wait([early])
            raise
        async with agent:
            yield agent

    @asynccontextmanager
    async def repository(
        self,
        *,
        mending: bool = False,
        have: str | None = None,
        examine: Callable[[], bool] = lambda: False,
    ) -> AsyncIterator[RemoteRepo]:
        """Start an agent and open the repository; see :meth:`RemoteAgent.open_repo`."""
        async with self.agent() as agent:
            yield await agent.open_repo(self.address.path, mending=mending, have=have, examine=examine)

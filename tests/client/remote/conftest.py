"""An agent program of the tests, as a child process."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from dsg_client.remote.child import ChildTransport
from dsg_client.remote.session import AgentSession
from dsg_client.remote.start import start_agent
from protocol.connection import Connection

PROGRAM = Path(__file__).with_name("agent_program.py")


def program(mode: str) -> list[str]:
    """The command that runs the tests' agent in ``mode``."""
    return [sys.executable, str(PROGRAM), mode]


OpenSession = Callable[..., Awaitable[AgentSession]]


@pytest.fixture
async def open_session() -> AsyncIterator[OpenSession]:
    """Opens sessions with the tests' agent, and closes them at the end."""
    opened: list[AgentSession] = []

    async def open_one(mode: str = "serve", **options: float) -> AgentSession:
        transport = ChildTransport(program(mode))
        started = await start_agent(transport)
        connection = Connection.client(started.preamble, "0.0.0", {"zstd"})
        session = AgentSession(transport, connection, **options)
        if started.rest:
            session.received(started.rest)
        opened.append(session)
        return session

    yield open_one
    for session in opened:
        await session.close()

"""Whatever answers instead of an agent is told apart, with what it printed and what to do."""

from __future__ import annotations

import time

import pytest

from dsg_client.remote.child import ChildTransport
from dsg_client.remote.start import remote_command, start_agent
from protocol.errors import AgentStartError, VersionError
from tests.client.remote.conftest import OpenSession, program


async def failure(command: list[str], *, tried: str = "", limit: float = 5.0) -> AgentStartError:
    transport = ChildTransport(command)
    with pytest.raises(AgentStartError) as caught:
        await start_agent(transport, tried=tried, limit=limit)
    assert transport._child.poll() is not None  # nothing is left running
    assert "\x1b" not in caught.value.message
    assert caught.value.hint
    return caught.value


async def test_a_profile_that_prints_a_little_does_no_harm(open_session: OpenSession) -> None:
    session = await open_session("noisy")
    assert await session.call("echo", {"n": 1}) == {"n": 1}


async def test_a_profile_that_prints_without_end() -> None:
    error = await failure(program("flood"))
    assert "something other than a DSG agent spoke" in error.message
    assert "\\x1b[31mdisk quota exceeded\\x1b[0m\\n" in error.message
    assert "start-up file" in error.hint


async def test_an_account_that_may_not_run_commands() -> None:
    error = await failure(program("says"))
    assert "This account is currently not available." in error.message
    assert "exit status 1" in error.message
    assert "may not run commands" in error.hint


async def test_no_agent_on_the_path_names_what_was_tried_and_the_path() -> None:
    error = await failure(["env", "PATH=/nowhere:/usr/bin:/bin", "HOME=/h", "sh", "-c", remote_command()])
    assert "no DSG agent was found" in error.message
    assert "'dsg-remote-agent'" in error.message
    assert "/nowhere:/usr/bin:/bin" in error.message
    assert error.facts["path"].startswith("/nowhere:/usr/bin:/bin")
    assert "agent_command" in error.hint


async def test_a_configured_command_that_is_not_there() -> None:
    error = await failure(["sh", "-c", "/opt/none/dsg-remote-agent"], tried="/opt/none/dsg-remote-agent")
    assert "/opt/none/dsg-remote-agent" in error.message
    assert "exit status 127" in error.message
    assert "not found" in error.message
    assert "agent_command" in error.hint


async def test_an_agent_that_dies_before_it_speaks() -> None:
    error = await failure(program("dies"))
    assert "exit status 1" in error.message
    assert "ModuleNotFoundError: No module named 'attrs'" in error.message


async def test_an_agent_killed_before_it_speaks() -> None:
    assert "killed by SIGKILL" in (await failure(program("killed"))).message


async def test_an_agent_that_ends_without_a_word() -> None:
    error = await failure(program("quiet"))
    assert "without a word" in error.message
    assert "authorized_keys" in error.hint


async def test_an_agent_that_waits_for_something() -> None:
    started = time.monotonic()
    error = await failure(program("silent"), limit=0.8)
    assert time.monotonic() - started < 3
    assert "did not speak within" in error.message
    assert "Password: " in error.message


async def test_bytes_changed_by_a_terminal() -> None:
    error = await failure(program("altered"))
    assert "changed on the way" in error.message
    assert "ssh -t" in error.hint


async def test_another_protocol_version() -> None:
    transport = ChildTransport(program("old"))
    with pytest.raises(VersionError, match="protocol 77") as caught:
        await start_agent(transport)
    assert "same version" in caught.value.hint
    assert transport._child.poll() is not None


async def test_a_program_that_cannot_be_started() -> None:
    with pytest.raises(AgentStartError, match="cannot be started"):
        ChildTransport(["/none/at/all"])

"""The agent as a child process: its own group, safe to find, gone with its client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.child import ChildTransport, agent_command
from dsg_client.remote.link import open_link
from dsg_client.remote.settings import LinkSettings
from dsg_client.remote.start import start_agent
from tests.client.remote.conftest import program
from tests.hosts.sshd import REPOSITORY
from tests.processes import alive, gone

HERE = RemoteAddress("/x")


CLIENT = """
import asyncio, os, signal, sys
from dsg_client.remote.link import open_link
from dsg_client.remote.settings import LinkSettings
from dsg_client.remote.address import RemoteAddress

async def main():
    agent = await open_link(RemoteAddress('/x'), LinkSettings())
    print(agent.session.transport.pid, flush=True)
    {then}

signal.signal(signal.SIGINT, lambda *_: None)
asyncio.run(main())
"""


def run_client(then: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )


def test_ctrl_c_on_the_terminal_reaches_dsg_alone() -> None:
    # What a terminal does at Ctrl-C: the signal goes to every process of the group.
    client = run_client(
        "os.killpg(0, signal.SIGINT); await asyncio.sleep(0.2); print(len(await agent.doctor()))"
    )
    out, _ = client.communicate(timeout=20)
    assert int(out.splitlines()[1]) > 0


GROUPS = """
import asyncio, os, signal, sys
from dsg_client.remote.child import ChildTransport
from dsg_client.remote.start import start_agent

async def main():
    transport = ChildTransport(sys.argv[2:], own_group=sys.argv[1] == 'own')
    await start_agent(transport)
    os.killpg(0, signal.SIGINT)
    print(await transport.exit_status(0.5))

signal.signal(signal.SIGINT, lambda *_: None)
asyncio.run(main())
"""


@pytest.mark.parametrize(("group", "ended"), [("own", "None\n"), ("same", "was killed by SIGINT\n")])
def test_it_is_the_group_that_keeps_ctrl_c_away(group: str, ended: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", GROUPS, group, *program("serve")],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
        timeout=20,
    )
    assert told.stdout == ended


def test_a_client_that_is_killed_leaves_no_agent() -> None:
    client = run_client("await asyncio.sleep(60)")
    assert client.stdout
    pid = int(client.stdout.readline())
    assert alive(pid)
    client.kill()
    client.communicate()
    assert gone(pid)


async def test_an_orderly_end_leaves_no_agent() -> None:
    agent = await open_link(HERE, LinkSettings())
    pid = agent.session.transport.pid  # type: ignore[attr-defined]
    await agent.close()
    assert not alive(pid)


async def test_nothing_of_the_environment_or_the_folder_gets_into_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "protocol").mkdir()
    (tmp_path / "protocol" / "__init__.py").write_text("raise SystemExit('taken from the folder')")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('taken from PYTHONPATH')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "sitecustomize.py"))
    async with await open_link(HERE, LinkSettings()) as agent:
        assert await agent.doctor()
    # The control: this interpreter, not isolated, would have taken them.
    told = subprocess.run(  # noqa: ASYNC221 - nothing else runs on the loop meanwhile
        [sys.executable, "-c", "1"], check=False, capture_output=True, text=True
    )
    assert "taken from" in told.stderr


async def test_the_agents_folders_come_last(tmp_path: Path) -> None:
    command = agent_command(["--version"])
    count = int(command[4])
    assert command[1] == "-I" and str(REPOSITORY) in command[5 : 5 + count]
    assert all(os.path.isabs(folder) for folder in command[5 : 5 + count])


async def test_a_program_that_does_not_end_is_killed() -> None:
    stubborn = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    transport = ChildTransport([sys.executable, "-c", stubborn])
    started = time.monotonic()
    await transport.close()
    assert 0.4 < time.monotonic() - started < 2
    assert transport._child.returncode == -signal.SIGKILL


async def test_what_is_queued_is_still_sent_before_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = f"import sys, time; time.sleep(0.2); open({str(out)!r}, 'wb').write(sys.stdin.buffer.read())"
    transport = ChildTransport([sys.executable, "-c", slow])
    transport.write([b"x" * 5_000_000, b"y"])
    assert transport.congested
    await transport.close(undoing=True)
    assert out.stat().st_size == 5_000_001


async def test_a_program_that_closes_its_input_is_no_error_by_itself() -> None:
    transport = ChildTransport(program("silent"))
    transport._child.terminate()
    for _ in range(50):
        transport.write([b"z" * 100_000])
    status = await transport.exit_status(5)
    assert status is not None and str(status) == "was killed by SIGTERM"
    await transport.close()


async def test_the_rest_after_the_preamble_is_not_lost() -> None:
    text = "import os,sys,time; sys.path.insert(0, %r);" % str(REPOSITORY)  # noqa: UP031
    text += "from protocol.preamble import *; os.write(1, preamble_bytes(Preamble(dsg='1')) + b'rest');"
    text += "time.sleep(0.1); os.write(1, b' of it')"
    transport = ChildTransport([sys.executable, "-c", text])
    started = await start_agent(transport)
    assert started.rest.startswith(b"rest")

    class Collect:
        came = started.rest
        over = False

        def received(self, chunk: bytes) -> None:
            self.came += chunk

        def writable(self) -> None:
            pass

        def ended(self, error: Exception | None) -> None:
            self.over = True

    collect = Collect()
    transport.attach(collect)
    await transport.exit_status(5)
    assert collect.came == b"rest of it" and collect.over
    await transport.close()

"""Starting the agent behind every login shell, quiet and with a start-up file that prints."""

from __future__ import annotations

import shutil

import pytest

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.link import open_link
from dsg_client.remote.settings import LinkSettings
from protocol.errors import AgentStartError
from tests.hosts.sshd import ssh_host

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

SHELLS = ["sh", "bash", "dash", "zsh", "fish", "tcsh"]
PRINTS = ["bash", "zsh", "fish", "tcsh"]  # those that read a start-up file for a command, too


def shell_path(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} not found; to have it: sudo apt-get install -y {name}")
    return found


async def doctor(alias: str, command: str = "") -> None:
    async with await open_link(RemoteAddress("/x", alias), LinkSettings(agent_command=command)) as agent:
        await agent.doctor()


@pytest.mark.parametrize("shell", SHELLS)
async def test_the_agent_starts_and_its_absence_is_told(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    with ssh_host(shell=shell_path(shell)) as host:
        client = host.client()
        client.enter(monkeypatch)
        with pytest.raises(AgentStartError, match="no DSG agent was found") as caught:
            await doctor(client.alias)
        assert caught.value.facts["path"].startswith(str(host.bin))
        with pytest.raises(AgentStartError, match="not-there") as caught:
            await doctor(client.alias, "/opt/not-there/agent --role read")
        assert "agent_command" in caught.value.hint
        host.install_agent()
        await doctor(client.alias)
        await doctor(client.alias, "dsg-remote-agent --role read")


@pytest.mark.parametrize("shell", PRINTS)
async def test_a_profile_that_prints(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    banner = "echo Welcome to the cluster; echo quota 80% >&2\n"
    with ssh_host(shell=shell_path(shell), profile=banner) as host:
        client = host.client()
        client.enter(monkeypatch)
        with pytest.raises(AgentStartError, match="no DSG agent was found") as caught:
            await doctor(client.alias)
        # The control: the profile was read, and printed.
        assert "Welcome to the cluster" in caught.value.message
        host.install_agent()
        await doctor(client.alias)


async def test_a_profile_that_prints_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "i=0; while [ $i -lt 9000 ]; do echo 'module load: \x1b[31mfailed\x1b[0m'; i=$((i+1)); done\n"
    with ssh_host(shell=shell_path("bash"), profile=loop) as host:
        host.install_agent()
        client = host.client()
        client.enter(monkeypatch)
        with pytest.raises(AgentStartError, match="something other than a DSG agent spoke") as caught:
            await doctor(client.alias)
        assert "module load: \\x1b[31mfailed" in caught.value.message
        assert "~/.bashrc" in caught.value.hint


async def test_a_profile_that_ends_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    with ssh_host(shell=shell_path("bash"), profile="exit 7\n") as host:
        host.install_agent()
        client = host.client()
        client.enter(monkeypatch)
        with pytest.raises(AgentStartError, match="exit status 7"):
            await doctor(client.alias)


async def test_an_agent_in_pips_own_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with ssh_host() as host:
        agent = host.install_agent()
        place = host.home / ".local" / "bin"
        place.mkdir(parents=True)
        agent.rename(place / agent.name)
        client = host.client()
        client.enter(monkeypatch)
        await doctor(client.alias)

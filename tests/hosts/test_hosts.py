"""The hosts of the tests are what they claim to be."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time

import pytest

from tests.hosts.accounts import shared_python, unix_accounts
from tests.hosts.proxy import Proxy
from tests.hosts.sshd import _descendants, ssh_host

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh", "ssh-keygen")]


def test_ssh_runs_a_command_and_stopping_ends_what_runs() -> None:
    with ssh_host() as host:
        ann, bob = host.client("ann"), host.client("bob")
        for client in (ann, bob):
            told = subprocess.run(
                ["ssh", client.alias, "echo $HOME; echo $PATH"],
                env=client.environment,
                check=True,
                capture_output=True,
                text=True,
            )
            assert told.stdout.splitlines() == [str(host.home), f"{host.bin}:/usr/bin:/bin"]
        running = subprocess.Popen(["ssh", ann.alias, "sleep 60"], env=ann.environment)
        assert host._daemon
        for _ in range(200):
            if len(_descendants(host._daemon.pid)) >= 3:
                break
            time.sleep(0.02)
        host.stop()
        assert running.wait(5) == 255


def test_a_pinned_key_runs_its_command_only() -> None:
    with ssh_host() as host:
        client = host.client(pinned="echo pinned $SSH_ORIGINAL_COMMAND")
        told = subprocess.run(
            ["ssh", client.alias, "id"], env=client.environment, check=True, capture_output=True, text=True
        )
        assert told.stdout == "pinned id\n"


def test_variables_reach_the_session() -> None:
    with ssh_host() as host:
        client = host.client()
        host.set_environment({"DSG_FAILPOINTS": "a=kill 'x'"})
        told = subprocess.run(
            ["ssh", client.alias, 'echo "$DSG_FAILPOINTS"'],
            env=client.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert told.stdout == "a=kill 'x'\n"


def test_accounts_are_real_and_share_a_group() -> None:
    with unix_accounts(2) as accounts, ssh_host() as host:
        python = shared_python()
        host.install_agent(python=python)
        people = [host.client(account.name, account=account) for account in accounts]
        for account, client in zip(accounts, people, strict=True):
            told = subprocess.run(
                ["ssh", client.alias, "id -un; id -gn; umask; dsg-remote-agent --version"],
                env=client.environment,
                check=False,
                capture_output=True,
                text=True,
            )
            lines = told.stdout.splitlines()
            assert lines[:3] == [account.name, account.group, "0022"], told.stderr
            assert "dsg-remote-agent 0." in told.stdout + told.stderr
    with pytest.raises(KeyError):
        import pwd

        pwd.getpwnam(accounts[0].name)


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            try:
                end, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(end,), daemon=True).start()

    def serve(self, end: socket.socket) -> None:
        try:
            while chunk := end.recv(65536):
                end.sendall(chunk)
        except OSError:
            pass
        end.close()


def test_the_proxy_counts_delays_freezes_and_cuts() -> None:
    echo = Echo()
    with Proxy(echo.port, delay=0.1) as proxy:
        end = socket.create_connection(("127.0.0.1", proxy.port))
        end.settimeout(5)
        started = time.monotonic()
        end.sendall(b"x" * 1000)
        assert len(end.recv(1000, socket.MSG_WAITALL)) == 1000
        assert 0.2 <= time.monotonic() - started < 1
        assert (proxy.up, proxy.down, proxy.connections) == (1000, 1000, 1)

        proxy.freeze()
        end.sendall(b"y")
        end.settimeout(0.5)
        with pytest.raises(TimeoutError):
            end.recv(1)
        proxy.thaw()
        end.settimeout(5)
        assert end.recv(1) == b"y"

        proxy.cut_after(up=10)
        end.sendall(b"z" * 100)
        got = b""
        with pytest.raises(ConnectionError):
            while chunk := end.recv(100):
                got += chunk
            raise ConnectionError
        assert len(got) <= 10 and proxy.up == 1011
        with pytest.raises(ConnectionError):
            again = socket.create_connection(("127.0.0.1", proxy.port))
            again.settimeout(5)
            if not again.recv(1):
                raise ConnectionError
        proxy.mend()
        again = socket.create_connection(("127.0.0.1", proxy.port))
        again.settimeout(5)
        again.sendall(b"w")
        assert again.recv(1) == b"w"


def test_another_process_with_an_agents_number_is_no_agent() -> None:
    with ssh_host() as host:
        for age, agent in ((0, True), (60, False)):
            with subprocess.Popen(["sleep", "60"]) as other:
                note = host.agents / str(other.pid)
                note.touch()
                began = time.time() - age
                os.utime(note, (began, began))
                assert host.running_agents() == ([other.pid] if agent else [])
                other.kill()
        assert not host.running_agents()
        assert not list(host.agents.iterdir())

"""What a command imports before it begins to connect: all of it delays every sync."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dsg_client.cli.main import dsg
from dsg_client.cli.start import EVERYDAY

SLOW = ("asyncssh", "attr", "difflib", "platformdirs", "ssl", "structlog", "tqdm", "yaml", "zstandard")


@pytest.mark.parametrize("name", ["sync", "clone", "status"])
def test_what_is_slow_to_import_is_not_imported(name: str) -> None:
    found = run(
        "import click, sys\n"
        "from dsg_client.cli.main import dsg\n"
        f"dsg.get_command(click.Context(dsg), {name!r})\n"
        "import dsg_client.sync.site\n"
        f"print(sorted(set({SLOW!r}) & set(sys.modules)))\n"
    )
    assert found == "[]\n"


@pytest.mark.parametrize("name", ["run", "clone", "status"])
def test_nothing_of_a_sync_takes_generated_classes(name: str) -> None:
    found = run(f"import sys, dsg_client.sync.{name}\nprint('attr' in sys.modules)\n")
    assert found == "False\n"


@pytest.mark.parametrize("name", list(EVERYDAY))
def test_every_option_is_known_to_change_what_is_begun_ahead_or_not_to(name: str) -> None:
    _, flags, valued = EVERYDAY[name]
    command = dsg.get_command(click.Context(dsg), name)
    assert command is not None
    options = [p for p in command.params if isinstance(p, click.Option)]
    known = {opt: not (p.is_flag or p.count) for p in options for opt in p.opts}
    assert {opt for opt in flags | valued if opt not in known} == set()
    assert {opt for opt in flags if known[opt]} == set()
    assert {opt for opt in valued if not known[opt]} == set()
    others = {"--dry-run", "-n", "--normalize"} if name == "sync" else {"--offline", "--verify"}
    assert known.keys() - flags - valued == others


@pytest.mark.parametrize(
    ("words", "early"),
    [
        (["sync"], True),
        (["sync", "--quiet", "-m", "--dry-run", "--retries", "3", "-v", "-v"], True),
        (["sync", "-m"], True),
        (["status", "--check", "--json"], True),
        (["sync", "-qn"], False),
        (["sync", "--message=x"], False),
        (["sync", "--help"], False),
        (["sync", "--dry-run"], False),
        (["sync", "--normalize"], False),
        (["status", "--verify"], False),
        (["clone", "--quiet"], False),
        (["--version"], False),
        ([], False),
    ],
)
def test_a_plain_command_is_begun_before_click_is_imported(
    tmp_path: Path, words: list[str], early: bool
) -> None:
    (tmp_path / ".dsgconfig.yml").write_text("repository: host:/srv/x\n")
    script = (
        "import os, sys\n"
        "fork = os.fork\n"
        "def forked():\n"
        "    print('forked', 'click' in sys.modules, flush=True)\n"
        "    return fork()\n"
        "os.fork = forked\n"
        "from dsg_client.cli.start import main\n"
        f"sys.argv[1:] = {words!r}\n"
        "main()\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert ("forked False" in told) == early
    assert told.count("forked") <= 1, "and not twice"


def test_asyncio_is_whole_but_for_tls_and_ssl_can_still_be_imported() -> None:
    found = run(
        "from dsg_client.cli.common import import_asyncio\n"
        "import_asyncio()\n"
        "import asyncio, ssl\n"
        "async def main():\n"
        "    server = await asyncio.start_server(lambda reader, writer: writer.close(), '127.0.0.1', 0)\n"
        "    port = server.sockets[0].getsockname()[1]\n"
        "    reader, writer = await asyncio.open_connection('127.0.0.1', port)\n"
        "    child = await asyncio.create_subprocess_exec('true')\n"
        "    return await reader.read(), await child.wait()\n"
        "print(asyncio.run(main()), ssl.create_default_context() is not None)\n"
    )
    assert found == "(b'', 0) True\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_as_if_nobody_read_them(tmp_path: Path, closed: str) -> None:
    (tmp_path / ".dsgconfig.yml").write_text("repository: host:/srv/x\n")
    program = f"{shlex.quote(sys.executable)} -m dsg_client.cli.start"
    for words, status in (("validate-config", 0), ("status --offline", 4), ("sync -n", 4)):
        done = subprocess.run(
            ["sh", "-c", f"exec {program} {words} {closed}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == status, done.stderr
        if ">&-" not in closed.replace("2>&-", ""):
            assert (words == "validate-config") == bool(done.stdout)
        if "2>&-" not in closed:
            assert "Traceback" not in done.stderr


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout

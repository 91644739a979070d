"""docs/commands.md beside ``--help``, and beside the JSON documents that the commands print."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dsg_client.cli.main import COMMANDS, dsg
from tests.e2e.near import NearPeople, NearWorld
from tests.e2e.oracle import File
from tests.e2e.world import Ended
from tests.hosts.sshd import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "commands.md").read_text()
# For all commands, and described once.
SHARED = {"--json", "-q", "--quiet", "-v", "--verbose", "--accept-new-host-key", "-h", "--help"}
EVERY_DOCUMENT = {"schema", "ok", "exit_status", "notes"}


def section(name: str) -> str:
    found = re.search(rf"^### dsg {re.escape(name)}\b.*?(?=^##)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/commands.md has no section for dsg {name}"
    return found[0]


def rows(text: str, title: str) -> dict[str, str]:
    """The table whose head is ``title``: the words in its first column, each with the second."""
    found = re.search(rf"^\| {title} \| \|\n\|---\|---\|\n((?:\|.*\n)*)", text, re.MULTILINE)
    table: dict[str, str] = {}
    for line in found[1].splitlines() if found else ():
        first, second = re.split(r" (?<!\\)\| ", line[2:-2], maxsplit=1)
        for word in re.findall(r"`([^`]+)`", first):
            assert word not in table, f"{word} stands there twice"
            table[word.replace("\\|", "|")] = second
    return table


def help_of(name: str) -> str:
    result = CliRunner().invoke(dsg, [name, "--help"], prog_name="dsg")
    assert result.exit_code == 0
    return result.output


def options_in_help(text: str) -> dict[str, tuple[str, str]]:
    """Each option of ``--help``: all its spellings, and its metavar."""
    found = {}
    for line in re.findall(r"^  (-.*)$", text.partition("Options:")[2], re.MULTILINE):
        written = re.split(r"\s{2,}", line)[0]
        spellings = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", written)
        metavar = re.sub(r"^.*?(?<![\w-])--[a-z-]+ ?", "", written)
        found[spellings[-1]] = (" ".join(spellings), metavar)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_documented_options_are_those_of_help(name: str) -> None:
    told = {
        option: spellings
        for option, (spellings, _) in options_in_help(help_of(name)).items()
        if option not in SHARED
    }
    text = section(name)
    written: dict[str, str] = {}
    for cell in re.findall(r"^\| (`-.*?`) \| ", text.replace("\\|", "¦"), re.MULTILINE):
        spellings = [re.match(r"--?[a-z-]+", word)[0] for word in re.findall(r"`([^`]+)`", cell)]  # type: ignore[index]
        written[spellings[-1]] = " ".join(spellings)
    assert written == told


@pytest.mark.parametrize("name", COMMANDS)
def test_a_documented_value_is_taken_and_none_is_missing(name: str) -> None:
    command = dsg.get_command(click.Context(dsg), name)
    assert command is not None
    takes = {
        p.opts[-1]: p for p in command.params if isinstance(p, click.Option) and p.opts[-1] not in SHARED
    }
    text = section(name).replace("\\|", "¦")
    for option, parameter in takes.items():
        found = re.search(rf"`{option}(?: ([^`]+))?`", text)
        assert found, option
        assert bool(found[1]) == (not parameter.is_flag), f"{option}: {found[0]}"
        if isinstance(parameter.type, click.Choice):
            assert found[1].split("¦") == list(parameter.type.choices)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_documented_exit_statuses_are_those_of_help(name: str) -> None:
    listed = re.search(r"Exit status:\n((?:\s+\d+  .*\n?)+)", help_of(name))
    assert listed
    told = [int(number) for number in re.findall(r"^\s+(\d+)  ", listed[1], re.MULTILINE)]
    written = re.search(r"^Exit status: (.*)\.$", section(name), re.MULTILINE)
    assert written
    assert [int(word) for word in written[1].split(", ")] == told == sorted(told)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_documented_examples_are_those_of_help(name: str) -> None:
    def commands(lines: Iterable[str]) -> list[str]:
        return [re.split(r"  +(?=[a-z#(])", line.strip())[0].replace(" #", "").strip() for line in lines]

    shown = re.search(r"Examples:\n((?:    .*\n)+)", help_of(name))
    assert shown
    # What continues an explanation stands far to the right.
    told = commands(line for line in shown[1].splitlines() if not line.startswith(" " * 8))
    block = re.search(r"^```sh\n(.*?)^```", section(name), re.MULTILINE | re.DOTALL)
    assert block
    assert [re.sub(r"\s+", " ", c) for c in commands(block[1].splitlines())] == [
        re.sub(r"\s+", " ", c) for c in told
    ]


# JSON


def leaves(value: Any, at: str = "") -> Iterator[str]:
    """Where the values of a document are: ``a.b``, ``a[].b``; an empty list is somewhere by itself."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, f"{at}.{key}" if at else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from leaves(item, f"{at}[]")
    else:
        yield at


def one_document(ended: Ended) -> Any:
    """What was printed, which is one line of JSON on stdout and nothing else anywhere."""
    assert ended.out.endswith("\n") and ended.out.count("\n") == 1, ended
    assert ended.err == "", ended
    document = ended.document
    assert document["schema"] == 1
    assert document["exit_status"] == ended.status
    assert isinstance(document["notes"], list)
    return document


@pytest.fixture(scope="module")
def documents(near_people: NearPeople, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each command prints with ``--json`` when it works; several times, to have every list filled."""
    world = NearWorld(near_people, tmp_path_factory.mktemp("documents"))
    found: dict[str, list[Any]] = {name: [] for name in COMMANDS}

    def keep(ended: Ended, name: str) -> None:
        found[name].append(one_document(ended))

    ann = world.client("ann")
    keep(ann.dsg("init", world.address, "--json"), "init")
    ann.put("input/x.csv", File(b"x\n"))
    ann.put("input/y.csv", File(b"y\n"))
    ann.put("output/z.csv", File(b"z\n"))
    keep(ann.dsg("sync", "--dry-run", "--json"), "sync")
    keep(ann.sync("-m", "first"), "sync")
    bob = world.client("bob")
    keep(bob.dsg("clone", world.address, ".", "--json"), "clone")
    for name in ("log", "list-files", "remote", "doctor", "validate-config", "recover", "adopt", "clean"):
        keep(ann.dsg(name, "--json"), name)
    keep(ann.dsg("remote", "set", world.address, "--json"), "remote")
    keep(ann.dsg("list-files", "--remote", "--json"), "list-files")
    keep(ann.dsg("completion", "bash", "--json"), "completion")
    ann.put("input/x.csv", File(b"ann's\n"))
    ann.must("sync")
    bob.put("input/x.csv", File(b"bob's\n"))
    keep(bob.dsg("status", "--json"), "status")
    bob.must("sync", "--prefer", "remote")
    keep(bob.dsg("clean", "--replaced", "--json"), "clean")
    shutil.rmtree(bob.path("output"))
    keep(bob.dsg("status", "--check", "--json"), "status")
    keep(bob.dsg("status", "--offline", "--json"), "status")
    (world.repository / "input" / "x.csv").write_bytes(b"by hand\n")
    keep(ann.dsg("adopt", "--json"), "adopt")
    keep(ann.dsg("protect", "s1", "--json"), "protect")
    keep(ann.dsg("prune", "--keep-last", "1", "--json"), "prune")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_documented_fields_are_those_that_are_printed(name: str, documents: dict[str, list[Any]]) -> None:
    written = rows(section(name), "JSON")
    assert written
    top = {re.split(r"[.\[]", path)[0] for path in written}
    printed: set[str] = set()
    for document in documents[name]:
        assert set(document) == top | EVERY_DOCUMENT
        assert document["ok"] is True
        printed |= set(leaves({k: v for k, v in document.items() if k not in EVERY_DOCUMENT}))
    # An empty list says nothing of its items; elsewhere it is filled, or nothing short of a race fills it.
    lists = {path.partition("[]")[0] for path in written if "[]" in path}
    missing = set(written) - printed - {path for path in written if path.startswith(("held[", "rescued["))}
    assert printed - lists <= set(written), "printed, and not in the document"
    assert not missing, "in the document, and not printed"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_error_is_one_document_too(name: str, near: NearWorld) -> None:
    client = near.client("ann")  # no working folder, and no address
    arguments = {"init": ["/"], "completion": ["csh"], "validate-config": ["extra"], "doctor": ["no@:/"]}
    arguments |= {"protect": ["s1"], "prune": ["--keep-last", "1"]}
    ended = client.dsg(name, *arguments.get(name, []), "--json")
    if name == "doctor" and ended.status == 1:
        return
    document = one_document(ended)
    assert document["ok"] is False
    assert ended.status in (2, 4)
    assert set(document["error"]) == {"code", "message", "hint", "facts", "outcome"}
    assert document["error"]["hint"], "it says what to do"
    assert not list(client.folder.iterdir())


def test_an_unknown_command_is_an_error_document(near: NearWorld) -> None:
    client = near.client("ann")
    document = one_document(client.dsg("snyc", "--json"))
    assert "dsg sync" in document["error"]["message"]


def test_the_documents_shell_blocks_name_real_commands() -> None:
    for line in re.findall(r"^dsg ([a-z-]+)", DOCUMENT, re.MULTILINE):
        assert line in COMMANDS


def test_help_needs_no_working_folder_and_no_slow_import(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); sys.argv = ['dsg', 'sync', '--help']\n"
        "import atexit, os\n"
        "from dsg_client.cli import main, render\n"
        "render.Output.leave = lambda self, status: print(sorted(\n"
        "    {'asyncssh', 'structlog', 'yaml', 'tqdm', 'pathspec'} & set(sys.modules)), status)\n"
        "main.main()\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.endswith("[] 0\n"), told.stdout

"""The documents name what the program has, and link to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from dsg_client.cli.main import COMMANDS, dsg
from dsg_client.local.settings import KEYS, Place
from protocol.errors import DsgError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
# Described once, for all commands.
SHARED = {"--json", "--quiet", "--verbose", "--accept-new-host-key", "--help", "--version"}


def section(name: str) -> str:
    text = (ROOT / "docs" / "commands.md").read_text()
    found = re.search(rf"^### dsg {re.escape(name)}\b.*?(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/commands.md has no section for dsg {name}"
    return found[0]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_is_described(name: str) -> None:
    command = dsg.get_command(click.Context(dsg), name)
    assert command is not None
    text = section(name)
    has = {
        word for p in command.params for word in p.opts if isinstance(p, click.Option) and word[:2] == "--"
    }
    named = set(re.findall(r"(?<!-)--[a-z][a-z-]+", text))
    assert has - SHARED <= named, "options that the document lacks"
    assert named <= has, "options that only the document has"


def test_every_setting_is_described() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name, key in KEYS.items():
        (row,) = [row for row in rows if f"`{name}`" in row.split("|")[1]]
        assert (f"`{key.variable}`" in row.split("|")[2]) == (Place.VARIABLE in key.places), row


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (document.parent / path) if path else document
        assert other.exists(), f"{document.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert any(a == anchor or re.sub(r"^\d+-", "", a) == anchor for a in anchors), target


def statuses(base: type[DsgError]) -> set[int]:
    return {base.exit_status}.union(*(statuses(child) for child in base.__subclasses__()))


@pytest.mark.parametrize("document", ["commands.md", "design.md"])
def test_every_exit_status_is_in_the_table(document: str) -> None:
    text = (ROOT / "docs" / document).read_text()
    table = {
        int(n) for row in re.findall(r"^\|.*\|$", text, re.MULTILINE) for n in re.findall(r"\| (\d+) \|", row)
    }
    # 0 and 20 are no errors.
    assert table >= statuses(DsgError) | {0, 20}

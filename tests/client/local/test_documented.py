"""docs/configuration.md names every key, its default, its variable, and the names that are never synced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsg_client.local import never
from dsg_client.local.settings import KEYS, Place

TEXT = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize("name", list(KEYS))
def test_every_key_is_in_the_table(name: str) -> None:
    key = KEYS[name]
    row = next(line for line in TEXT.splitlines() if line.startswith("| `") and f"`{name}`" in line)
    if Place.VARIABLE in key.places:
        assert f"`{key.variable}`" in row
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3] == ("yes" if Place.USER in key.places else "no")


def test_every_name_is_in_the_table() -> None:
    named = {word.lower().replace("\\r", "\r") for word in re.findall(r"`([^`]+)`", TEXT)}
    assert named >= never._RESERVED
    assert named >= never._NAMES
    assert named >= never.OUTSIDE_ONLY


def test_every_shape_in_the_table_is_never_synced() -> None:
    rows = re.findall(r"^\| (?:locks|deleted|of the system).*$", TEXT, re.MULTILINE)
    assert len(rows) == 3
    for shape in re.findall(r"`([^`]+)`", "".join(rows)):
        name = shape.replace("[a-p]", "o").replace("\\r", "\r")
        if name in (".nfs", ".cifs", ".Trash-*"):
            name = name.rstrip("*") + "00012"
        assert never.is_never_synced(name.replace("*", "some")), shape

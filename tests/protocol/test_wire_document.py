"""docs/wire.md says what the code does: its tables are read and compared."""

from __future__ import annotations

import re
from pathlib import Path

from protocol.filestream import OpKind
from protocol.framing import _RULES, Flag, FrameType
from protocol.messages import METHODS, Body
from protocol.preamble import Limits
from tests.protocol.test_errors import CLASSES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")


# What stands in the maps of an answer's array.
NESTED = {
    "server.doctor": {"name", "ok", "detail", "cure"},
    "repo.stock": {"seq", "pruned", "kept"},
    "repo.prune": {"seq", "time", "user", "verdict", "why", "keep", "prune"},
}


def table(first_column: str) -> list[list[str]]:
    """The rows of the first table whose head begins so."""
    lines = DOCUMENT.split("\n")
    at = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([a-z_]+)`", cell)


def test_frames() -> None:
    found = {}
    for number, name, _by, stream, flags, payload in table("Type"):
        sizes = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", payload)] or [0, 0]
        if payload.endswith("to 1 MiB"):
            sizes[1] = 1 << 20
        found[name] = (int(number), stream != "0", set(re.findall(r"[A-Z_]+", flags)), sizes)
    expected = {}
    for kind, rule in _RULES.items():
        flags = {flag.name for flag in Flag if flag & rule.allowed}
        expected[FrameType(kind).name] = (int(kind), rule.on_stream, flags, [rule.shortest, rule.longest])
    assert found == expected


def test_methods() -> None:
    found = {}
    for method, params, response, bodies in table("Method, role"):
        name, role = method.replace("`", "").split()
        asked = "none"
        answered = "none"
        for arrow, what in re.findall(r"([→←]) ([a-z ]+)", bodies):
            kind = next(body.value for body in Body if body.value in what)
            asked, answered = (kind, answered) if arrow == "→" else (asked, kind)
        found[name] = (role, set(names(params)), set(names(response)), asked, answered)
    assert set(found) == set(METHODS)
    for row in METHODS.values():
        role, params, response, asked, answered = found[row.name]
        assert role == row.role.value
        assert params == row.request.FIELDS.keys()
        extra = NESTED.get(row.name, set())
        assert response - extra == row.result.FIELDS.keys(), row.name
        assert (asked, answered) == (row.request_body.value, row.response_body.value), row.name


def test_limits() -> None:
    rows = {names(cells[0])[0]: cells[1:4] for cells in table("Name")}
    assert rows == {"in_flight": ["1", "256", "256"], "credit": ["2 MiB", "64 MiB", "8 MiB"]}
    assert (Limits.MOST_IN_FLIGHT, Limits.LEAST_CREDIT, Limits.MOST_CREDIT) == (256, 2 << 20, 64 << 20)
    assert Limits() == Limits(in_flight=256, credit=8 << 20)


def test_operations_and_codes() -> None:
    after = DOCUMENT.split("| Kind | Name | Meaning |")[1]
    rows = {name: int(number) for number, name in re.findall(r"\n\| (\d) \| ([A-Z]+) \|", after)}
    assert rows == {kind.name: kind.value for kind in OpKind}
    codes = DOCUMENT.split("Codes: `")[1].split("`")[0].split()
    assert sorted(codes) == sorted(cls.code for cls in CLASSES)

"""Output: what goes where, and that nothing hostile reaches a terminal."""

from __future__ import annotations

import json

import pytest

from dsg_client.cli.common import exit_statuses
from dsg_client.cli.render import Output, bytes_text, count_text, plural
from dsg_client.sync.events import Attempt, Note, Phase, PhaseStarted, Planned, Progress
from protocol.errors import ConflictError, DsgError, InDoubtError, Outcome, UsageError

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * 10**9, "4.7 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert bytes_text(size) == text


def test_counts() -> None:
    assert (plural(1, "file"), plural(0, "file"), plural(1234, "file")) == (
        "1 file",
        "0 files",
        "1,234 files",
    )
    assert plural(2, "entry", "entries") == "2 entries"
    assert (
        count_text([(3, "uploaded"), (0, "deleted"), (1200, "downloaded")]) == "3 uploaded, 1,200 downloaded"
    )
    assert count_text([(0, "uploaded")]) == "nothing"


def test_answers_go_to_stdout_and_the_rest_to_stderr(capsys: Captured) -> None:
    output = Output(verbose=1)
    output.say("answer")
    output.warn("careful")
    output.detail("detail")
    output.on_event(Note("noted"))
    output.on_event(PhaseStarted(Phase.SCAN))
    output.on_event(Planned(1, 2048, 0, 0, 3, 4))
    output.on_event(Attempt(2, "busy", 4.0))
    output.on_event(Progress(Phase.TRANSFER, 1, 2, 3, 4))  # a terminal only
    said = capsys.readouterr()
    assert said.out == "answer\n"
    assert said.err.splitlines() == [
        "warning: careful",
        "detail",
        "noted",
        "[scan]",
        "plan: 1 up (2.0 KiB), 0 down (0 B), 3 to delete here, 4 on the server",
        "busy; attempt 2 in 4 s",
    ]


def test_quiet_says_nothing_but_warnings_and_errors(capsys: Captured) -> None:
    output = Output(quiet=True)
    output.say("answer")
    output.on_event(Note("noted"))
    assert capsys.readouterr() == ("", "")
    output.on_event(Note("careful", warning=True))
    output.error(ConflictError("two versions", hint="choose one"))
    said = capsys.readouterr()
    assert said.out == ""
    assert "careful" in said.err and "two versions" in said.err and "Choose one" in said.err


def test_json_is_one_document_with_the_notes(capsys: Captured) -> None:
    output = Output(json_mode=True)
    output.say("answer")
    output.warn("careful \udcff")
    output.on_event(Note("noted"))
    output.on_event(Attempt(2, "busy", 4.0))
    output.result({"seq": 3})
    said = capsys.readouterr()
    assert said.err == "" and said.out.count("\n") == 1 and said.out.isascii()
    assert json.loads(said.out) == {
        "schema": 1,
        "ok": True,
        "exit_status": 0,
        "seq": 3,
        "notes": [
            {"text": "careful \udcff", "warning": True},
            {"text": "noted", "warning": False},
            {"text": "attempt 2: busy", "warning": False},
        ],
    }


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConflictError("m", hint="h"), "Nothing was changed"),
        (ConflictError("m", hint="h", outcome=Outcome.COMMITTED), "committed"),
        (InDoubtError("m", hint="h"), "not known whether"),
        (UsageError("m", hint="h"), ""),
    ],
)
def test_an_error_tells_the_outcome(error: DsgError, says: str, capsys: Captured) -> None:
    assert Output().error(error) == error.exit_status
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["dsg: m", "  H"]
    assert says in "".join(lines[2:])
    assert bool(lines[2:]) == bool(says)


def test_what_others_wrote_is_escaped(capsys: Captured) -> None:
    Output().error(ConflictError("a \x1b[2J\n  b\u202e", hint="c\x07\nd\udcff"))
    said = capsys.readouterr().err
    assert said.splitlines()[:4] == [
        "dsg: a \\x1b[2J",
        "    b\\u{202e}".removeprefix("  "),
        "  C\\x07",
        "  d\\xff",
    ]


def test_exit_statuses_of_a_help_text() -> None:
    assert exit_statuses(4, 130).splitlines() == [
        "\b",
        "Exit status:",
        "    0  done, or nothing to do",
        "    4  configuration",
        "  130  interrupted",
    ]

"""Rows: each kind's fields, and their order over all payloads of a body."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import pack_rows
from protocol.errors import RemoteProtocolError
from protocol.manifest import FILE, LINK, Entry
from protocol.paths import escape
from protocol.rows import ContentRow, RowReader, change_row, content_row, path_row

DIGEST = bytes(range(32))


def read(parse: Any, rows: list[tuple[Any, ...]], target: int = 1 << 16, **options: int) -> list[Any]:
    reader = RowReader(parse, **options)
    return [row for payload in pack_rows(rows, target) for row in reader.read(payload)]


def test_each_kind() -> None:
    assert read(content_row, [("a/b", DIGEST, 5)]) == [ContentRow("a/b", DIGEST, 5)]  # type: ignore[arg-type]
    assert read(path_row, [("a",), ("é",)]) == ["a", "é"]
    put = Entry("b", FILE, DIGEST, True, 5, 7, "ada", 3)
    link = Entry("c", LINK, b"b", False, 1, 0)
    assert read(change_row, [("a",), put, link]) == ["a", put, link]


@pytest.mark.parametrize(
    ("parse", "row"),
    [
        (content_row, ("a", DIGEST)),
        (content_row, ("a", DIGEST, 5, 6)),
        (content_row, ("a", DIGEST[:31], 5)),
        (content_row, ("a", "x" * 32, 5)),
        (content_row, ("a", DIGEST, -1)),
        (content_row, ("a", DIGEST, True)),
        (content_row, ("a", DIGEST, (1 << 60) + 1)),
        (content_row, (b"a", DIGEST, 5)),
        (content_row, ("/etc/passwd", DIGEST, 5)),
        (content_row, ("a/../../b", DIGEST, 5)),
        (path_row, (".dsg/head",)),
        (path_row, ("",)),
        (path_row, ("a\x1b[31m",)),
        (path_row, ("a", "b")),
        (path_row, (None,)),
        (change_row, ("a", FILE)),
        (change_row, ("a", FILE, DIGEST, 1, 5, 7, "", 0)),
        (change_row, ("a", LINK, b"../x", False, 1, 0, "", 0)),
        (change_row, (5,)),
    ],
)
def test_bad_rows_are_refused(parse: Any, row: tuple[Any, ...]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read(parse, [row])
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("paths", [["b", "a"], ["a", "a"], ["a b", "a/b"], ["x/é", "x/z"]])
@pytest.mark.parametrize("target", [1, 1 << 16])
def test_order_holds_over_payloads(paths: list[str], target: int) -> None:
    with pytest.raises(RemoteProtocolError, match="order"):
        read(path_row, [(p,) for p in paths], target)
    assert read(path_row, [(p,) for p in sorted(set(paths), key=lambda p: p.split("/"))], target)


def test_rows_without_end_are_refused() -> None:
    rows = [(f"{n:05}",) for n in range(11)]
    assert len(read(path_row, rows[:10], most=10)) == 10
    with pytest.raises(RemoteProtocolError, match="too many"):
        read(path_row, rows, most=10)


@given(
    st.lists(
        st.lists(
            st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.binary(max_size=3),
            min_size=1,
            max_size=9,
        ).map(tuple)
    )
)
def test_any_rows_are_read_or_refused(rows: list[tuple[Any, ...]]) -> None:
    for parse in (content_row, path_row, change_row):
        try:
            read(parse, rows)
        except RemoteProtocolError as error:
            assert escape(error.message) == error.message

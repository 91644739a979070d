"""What a file system cannot hold is taken from C or R, and is no difference."""

from __future__ import annotations

import itertools

import pytest

from dsg_client.local.lacking import supply_lacking
from protocol.manifest import FILE, LINK, Entry
from protocol.tree.fs import Capabilities


def fs(*, executable_bit: bool = True, symlinks: bool = True) -> Capabilities:
    return Capabilities(
        executable_bit=executable_bit,
        symlinks=symlinks,
        case_sensitive=True,
        keeps_normal_form=True,
        swap=True,
        place=True,
        time_grain_ns=1,
    )


def file(path: str, executable: bool = False) -> Entry:
    return Entry(path, FILE, b"d" * 32, executable, 1, 1)


def link(path: str) -> Entry:
    return Entry(path, LINK, b"target", False, 0, 0, "somebody", 4)


@pytest.mark.parametrize(
    ("cached", "remote", "expected"),
    [
        (True, False, True),
        (False, True, False),
        (True, None, True),
        (None, True, True),
        (None, None, False),
    ],
)
def test_the_bit_is_what_c_says_else_r(cached: bool | None, remote: bool | None, expected: bool) -> None:
    c = [file("a")] + ([file("b", cached)] if cached is not None else []) + [file("c")]
    r = ([file("b", remote)] if remote is not None else []) + [file("z")]
    # On such a system every file may look executable.
    found = list(supply_lacking([file("b", True)], c, r, fs(executable_bit=False)))
    assert found == [file("b", expected)]


def test_a_link_of_c_or_r_says_nothing_about_a_bit() -> None:
    found = list(supply_lacking([file("a", True)], [link("a")], [file("a", True)], fs(executable_bit=False)))
    assert found == [file("a", True)]
    assert list(supply_lacking([file("a", True)], [], [link("a")], fs(executable_bit=False))) == [file("a")]


def test_links_of_r_count_as_there() -> None:
    remote = [link("a"), file("b"), link("c/d"), link("m"), link("z")]
    found = list(supply_lacking([file("b"), file("m")], [link("gone")], remote, fs(symlinks=False)))
    assert [(e.path, e.kind) for e in found] == [
        ("a", LINK),
        ("b", FILE),
        ("c/d", LINK),
        ("m", FILE),
        ("z", LINK),
    ]
    assert found[0].version == link("a").version


def test_order_is_kept_in_every_combination() -> None:
    paths = ["a", "a b", "a/x", "a.b", "b"]
    canonical = sorted(paths, key=lambda p: p.split("/"))
    for chosen in itertools.product([0, 1, 2], repeat=len(paths)):
        local = [file(p) for p, c in zip(canonical, chosen, strict=True) if c == 1]
        remote = [link(p) for p, c in zip(canonical, chosen, strict=True) if c]
        found = list(supply_lacking(local, [], remote, fs(symlinks=False, executable_bit=False)))
        assert [e.path for e in found] == [p for p, c in zip(canonical, chosen, strict=True) if c]


def test_where_nothing_is_lacking_nothing_changes() -> None:
    local = [file("a", True), file("b")]
    assert list(supply_lacking(local, [file("a")], [link("c")], fs())) == local

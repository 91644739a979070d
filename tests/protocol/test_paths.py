"""Paths: what may be one, their order, their collisions, links, and how they are shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol.paths import (
    PathProblem,
    check_link_target,
    collision_key,
    collisions,
    escape,
    parse_path,
    path_problem,
    portability_problem,
    sort_key,
)

anything = st.text(max_size=30)
names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"], exclude_characters="/"),
    min_size=1,
    max_size=8,
).map(lambda s: unicodedata.normalize("NFC", s))
good_paths = st.lists(names, min_size=1, max_size=4).map("/".join).filter(lambda p: path_problem(p) is None)


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "input/2024/a b.csv",
        "-rf",
        "--",
        "'; drop table",
        'a"b',
        "a\\b",
        "...",
        ".hidden",
        "a/..b/c..",
        ".dsgconfig.yml",
        "dsg",
        "a.dsg",
        ".dsgx",
        "x.dsg/y",
        "naïve",
        "日本語/データ.csv",
        "🧪/👩‍🔬.txt",  # the woman scientist is joined by U+200D, which names may hold
        "a" * 255,
        "é" * 127,
        "/".join(["d" * 255] * 15),
        "~",
        "a~1",
        "con.csv",
    ],
)
def test_good_paths(path: str) -> None:
    assert path_problem(path) is None
    assert parse_path(path) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "empty"),
        ("/", "absolute"),
        ("/etc/passwd", "absolute"),
        ("//a", "absolute"),
        ("a/", "component ''"),
        ("a//b", "component ''"),
        (".", "component '.'"),
        ("..", "component '..'"),
        ("../a", "component '..'"),
        ("a/..", "component '..'"),
        ("a/../b", "component '..'"),
        ("a/./b", "component '.'"),
        ("./a", "component '.'"),
        ("a\0b", "control character U+0000"),
        ("a\nb", "control character U+000A"),
        ("a\x1b[31m", "control character U+001B"),
        ("a\x7f", "control character U+007F"),
        ("a\x9b31m", "control character U+009B"),
        ("a\x85", "control character U+0085"),
        ("a\u202eb", "direction character U+202E"),
        ("a\u2066b", "direction character U+2066"),
        ("a\u200fb", "direction character U+200F"),
        ("a\u061cb", "direction character U+061C"),
        ("a\u2028b", "line separator"),
        ("a\udcffb", "not valid UTF-8"),
        ("a\ud800b", "not valid UTF-8"),
        ("\udcff" * 300, "longer than 255"),
        ("\ud800" * 70, "not valid UTF-8"),
        ("e\u0301", "normal form C"),
        ("\u212b", "normal form C"),
        ("a" * 256, "longer than 255"),
        ("é" * 128, "longer than 255"),
        ("x/" + "🧪" * 64, "longer than 255"),
        ("/".join(["d" * 249] * 17), "path is longer than 4000"),
        (".dsg", "reserved"),
        ("a/.dsg/head", "reserved"),
        (".DSG", "reserved"),
        (".Dsg", "reserved"),
        (".dsg.", "reserved"),
        (".dsg ", "reserved"),
        (".dsg. .", "reserved"),
        (".d\u200csg", "reserved"),
        (".d\u200dsg", "reserved"),
        (".d\ufeffsg", "reserved"),
        (".d" + "\u200c" * 60 + "sg", "reserved"),
        ("\u00ad" * 100 + ".dsg", "reserved"),
        (".dſg", "reserved"),
        ("․dsg", "reserved"),
        (".ｄｓｇ", "reserved"),
        (".𝐝𝐬𝐠", "reserved"),
    ],
)
def test_bad_paths(path: str, reason: str) -> None:
    assert reason in (path_problem(path) or "")
    with pytest.raises(ValueError, match=r".") as caught:
        parse_path(path)
    assert str(caught.value).isprintable()


@given(anything)
@settings(max_examples=500)
def test_a_path_that_passes_has_what_is_promised(path: str) -> None:
    if path_problem(path) is not None:
        return
    path.encode()  # UTF-8
    assert unicodedata.is_normalized("NFC", path)
    for name in path.split("/"):
        assert name not in ("", ".", "..")
        assert len(name.encode()) <= 255
        assert unicodedata.normalize("NFKC", name).casefold() != ".dsg"
        assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name)
        assert not any(
            unicodedata.bidirectional(c) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "PDI") for c in name
        )


@given(
    st.lists(st.sampled_from(["a", "b", ".", "..", "", "x" * 300, ".dsg", "A", "é", "e\u0301"]), max_size=5)
)
def test_the_short_cut_and_the_long_way_agree(parts: list[str]) -> None:
    """A folder before it takes a path off the common case without changing what is wrong with it."""
    path = "/".join(parts)
    assume(path and not path.startswith("/"))
    assert (path_problem(path) is None) == (path_problem("ß/" + path) is None)


# Order


def test_the_order_keeps_a_folder_together() -> None:
    paths = ["a", "a b", "a/b", "a/b/c", "a/b c", "a!", "a-b", "a.b", "b"]
    assert sorted(paths, key=sort_key) == ["a", "a/b", "a/b/c", "a/b c", "a b", "a!", "a-b", "a.b", "b"]


@given(good_paths, good_paths)
def test_the_order_is_by_components_and_by_bytes(a: str, b: str) -> None:
    by_key = sort_key(a) < sort_key(b)
    assert by_key == (a.split("/") < b.split("/"))
    assert by_key == ([n.encode() for n in a.split("/")] < [n.encode() for n in b.split("/")])


# Collisions


@pytest.mark.parametrize(
    ("paths", "pairs"),
    [
        (["a", "b"], []),
        (["A", "a"], [("A", "a")]),
        (["Data/x", "data/y"], [("Data", "data")]),
        (["Data/x", "data/x"], [("Data", "data")]),
        (["d/Data/x", "d/data/y", "d/data/z"], [("d/Data", "d/data")]),
        (["a/X", "a/x", "b/x"], [("a/X", "a/x")]),
        (["A/x", "a"], [("A", "a")]),
        (["A", "a/x"], [("A", "a")]),
        (["READ", "Read", "read"], [("READ", "Read"), ("READ", "read")]),
        (["É", "é"], [("É", "é")]),
        (["É", "e\u0301"], [("É", "e\u0301")]),
        (["K", "\u212a"], [("K", "\u212a")]),
        (["x/a", "y/A"], []),
    ],
)
def test_collisions(paths: list[str], pairs: list[tuple[str, str]]) -> None:
    paths.sort(key=sort_key)
    assert sorted(collisions(paths)) == sorted(tuple(sorted(p, key=sort_key)) for p in pairs)


cased_paths = st.lists(st.sampled_from(["a", "A", "b", "B", "é", "É", "c"]), min_size=1, max_size=3).map(
    "/".join
)


@given(st.lists(cased_paths, unique=True, max_size=8).map(lambda ps: sorted(ps, key=sort_key)))
def test_collisions_are_found_wherever_two_names_are_one(paths: list[str]) -> None:
    spelled: dict[str, set[str]] = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            spelled.setdefault(collision_key(prefix), set()).add(prefix)
    expected = any(len(found) > 1 for found in spelled.values())
    assert bool(list(collisions(paths))) == expected


@given(anything)
@settings(max_examples=500)
def test_collision_keys_hold_what_file_systems_hold_as_one(text: str) -> None:
    assume(not any(0xD800 <= ord(c) <= 0xDFFF for c in text))
    key = collision_key(text)
    for other in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
        assert collision_key(other) == key
    assert collision_key(text.casefold()) == key


@pytest.mark.parametrize(
    "pair", [("a.csv", "A.CSV"), ("straße", "STRASSE"), ("σς", "ΣΣ"), ("é", "É"), ("ǆ", "Ǆ")]
)
def test_pairs_that_are_one(pair: tuple[str, str]) -> None:
    assert collision_key(pair[0]) == collision_key(pair[1])


# Windows


@pytest.mark.parametrize(
    "path",
    [
        "a/12:30.csv",
        "what?",
        "a*b",
        "a|b",
        "a<b",
        'a"b',
        "a\\b",
        "a./b",
        "a /b",
        "con",
        "CON.csv",
        "x/nul.tar.gz",
        "lpt1",
        "COM9 .txt",
    ],
)
def test_not_portable(path: str) -> None:
    assert portability_problem(path)


@pytest.mark.parametrize("path", ["a/b.csv", "console", "com10", "com", "a.con", " a", ".a", "日本"])
def test_portable(path: str) -> None:
    assert portability_problem(path) is None


# Links


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("a", "b"),
        ("a", "./b"),
        ("d/a", "../b"),
        ("d/e/a", "../../b/c"),
        ("d/e/a", "./.././../b"),
        ("a", "b//c/"),
        ("d/a", ".."),
        ("a", "."),
        ("a", "missing/é"),
        ("a", "b/.hidden"),
        ("a", ".dsgconfig.yml"),
        ("a", "b c"),
        ("a", "-x"),
    ],
)
def test_good_links(path: str, target: str) -> None:
    assert check_link_target(path, target) is None


@pytest.mark.parametrize(
    ("path", "target", "reason"),
    [
        ("a", "", "empty"),
        ("a", "/etc/passwd", "absolute"),
        ("a", "..", "outside"),
        ("a", "../x", "outside"),
        ("d/a", "../../x", "outside"),
        ("d/a", "../../d/a", "outside"),
        ("d/e/a", "f/../../../..", "after a name"),
        ("d/e/a", "up/../x", "after a name"),
        ("a", ".dsg", ".dsg"),
        ("a", ".DSG/journal", ".dsg"),
        ("d/a", "../.dsg/head", ".dsg"),
        ("a", ".d\u200csg/x", ".dsg"),
        ("a", "b\0c", "control"),
        ("a", "b\nc", "control"),
        ("a", "b\x9bc", "control"),
        ("a", "b\u202ec", "control"),
        ("a", "b\u2029c", "control"),
        ("a", "b\udcff", "control"),
        ("a", "b/" * 2001, "longer"),
    ],
)
def test_bad_links(path: str, target: str, reason: str) -> None:
    problem = check_link_target(path, target)
    assert problem is not None
    assert reason in problem
    assert problem.isprintable()


@given(st.data())
@settings(max_examples=300)
def test_links_that_pass_never_lead_outside(data: st.DataObject) -> None:
    """A tree of real folders and links that passed: following any of them, through others, stays inside."""
    targets = st.lists(st.sampled_from(["..", "u", "v", "."]), min_size=1, max_size=3).map("/".join)
    drawn = data.draw(st.dictionaries(st.sampled_from(["d/e/u", "d/e/v", "d/u", "v"]), targets))
    links = {path: target for path, target in drawn.items() if check_link_target(path, target) is None}
    for start in links:
        here = start.split("/")[:-1]
        waiting = list(reversed(links[start].split("/")))
        for _ in range(200):
            if not waiting:
                break
            name = waiting.pop()
            if name == "..":
                assert here, f"{start} leads outside: {links}"
                here.pop()
            elif name != ".":
                link = links.get("/".join([*here, name]))
                if link is None:
                    here.append(name)
                else:
                    waiting += reversed(link.split("/"))


# Showing


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本", "plain é 日本"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\rb\nc\td", "a\\x0db\\nc\\td"),
        ("a\x9bb", "a\\x9bb"),
        ("a\u202eb", "a\\u{202e}b"),
        ("a\u200bb", "a\\u{200b}b"),
        ("a\udcffb", "a\\xffb"),
        ("a\ud800b", "a\\u{d800}b"),
        ("a\u2028b", "a\\u{2028}b"),
        ("\U000e0041", "\\u{e0041}"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown
    assert str(PathProblem(text, "odd")) == f"{shown}: odd"


@given(st.text())
def test_what_is_shown_cannot_speak_to_a_terminal(text: str) -> None:
    shown = escape(text)
    shown.encode()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    assert escape(shown) == shown

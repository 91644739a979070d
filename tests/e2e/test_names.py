"""Names and kinds of things: what syncs exactly, and what is refused, all of it at once."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path

import pytest

from tests.e2e.near import NearPeople, NearWorld, ordinary
from tests.e2e.oracle import File, Link, Tree, Version, photograph
from tests.e2e.world import Client, Ended, World

pytestmark = pytest.mark.slow

INDEX = {".dsg/index", ".dsg/index.late"}
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"  # one picture of three, joined by ZWJ

GOOD_NAMES = [
    "with space",
    " leading and trailing ",
    'it\'s "quoted" and `ticked`',
    "back\\slash",
    "$HOME ${x} $(date) !! %s {} ~ * ? [a-z]",
    "; rm -rf & | > < #",
    "-rf",
    "--json",
    "-",
    "%00%2e%2e",
    "\U0001f4be disk",
    f"{FAMILY} family",
    "❤\ufe0f",
    "é",  # one character, NFC
    "straße",
    "\u0130stanbul \u0131",
    "한국어",
    "日本語のファイル",
    "עברית and العربية",
    "a" * 255,
    "\U0001f4be" * 63,  # 252 bytes
    "é" * 127,  # 254 bytes
    "...",
    ".hidden",
    "con.csv",
    "12:30.csv",
    "trailing dot.",
    "a.dsg",
    "dsg",
]

# As bytes: not all of it is text.
BAD_NAMES: dict[bytes, str] = {
    b"new\nline": "control character U+000A",
    b"tab\there": "control character U+0009",
    b"escape\x1b[31m": "control character U+001B",
    b"delete\x7f": "control character U+007F",
    "next\u0085line".encode(): "control character U+0085",
    b"latin-\xe9": "not valid UTF-8",
    b"\xff\xfe": "not valid UTF-8",
    unicodedata.normalize("NFD", "décomposé").encode(): "normal form C",
    "right\u202eto left".encode(): "direction character U+202E",
    "line\u2028separator".encode(): "line separator U+2028",
    b".DSG": "reserved",
}


@pytest.fixture(scope="module")
def started(near_people: NearPeople, tmp_path_factory: pytest.TempPathFactory) -> NearWorld:
    """Ann's folder with one file, synced; and bob's clone."""
    world = NearWorld(near_people, tmp_path_factory.mktemp("names"))
    ann = world.init("ann", "--ignore", "skipped/")
    ann.put("input/keep", File(b"stays\n"))
    ann.must("sync")
    world.clone("bob")
    return world


@pytest.fixture
def ann(started: NearWorld, tmp_path: Path) -> Client:
    return started.copy(tmp_path).clients["ann"]


def good_tree() -> Tree:
    tree: Tree = {f"input/{name}": File(name.encode()) for name in GOOD_NAMES}
    tree |= {f"output/{name}/{name}": File(b"in a folder of that name") for name in GOOD_NAMES}
    tree |= {f"frozen/link {n}": Link(f"../input/{name}") for n, name in enumerate(GOOD_NAMES)}
    return tree


def exercise(world: World) -> None:
    """Upload, download, rename and delete every good name."""
    ann = world.init("ann")
    tree = good_tree()
    ann.put_all(tree)
    ann.must("sync")
    assert world.remote().check().live == tree
    bob = world.clone("bob")
    assert bob.local() == tree
    listed = bob.dsg("list-files", "--json").document["files"]
    assert {row["path"] for row in listed} == set(tree)
    for name in GOOD_NAMES:
        bob.path(f"input/{name}").rename(bob.path(f"input/{name[:60]} 2"))
    bob.must("sync")
    ann.must("sync")
    assert ann.local() == bob.local() == world.remote().check().live
    assert {f"input/{name[:60]} 2" for name in GOOD_NAMES} <= set(ann.local())


def test_every_good_name_syncs_exactly(near: NearWorld) -> None:
    exercise(near)


@pytest.mark.needs("sshd", "ssh-keygen")
def test_every_good_name_syncs_exactly_over_ssh(world: World) -> None:
    exercise(world)


def test_names_of_options_are_files_too(ann: Client) -> None:
    for name in ("--json", "-q"):
        ann.put(f"input/{name}", File(b""))
    ann.must("sync")
    listed = ann.must("list-files", "--", "input/--json", "-q").out.splitlines()
    assert listed == ["input/--json", "input/-q"]


def problems(ended: Ended) -> dict[str, str]:
    """The path, and the reason, of everything that was refused."""
    return {p["path"]: p["reason"] for p in ended.document["error"]["facts"]["problems"]}


def refused(client: Client) -> Ended:
    """Run ``sync``, which refuses and changes nothing; and ``status``, which refuses the same."""
    before = photograph(client.folder, without=INDEX)
    ended = client.sync()
    assert ended.status == 12, ended
    assert photograph(client.folder, without=INDEX) == before
    looked = client.dsg("status", "--json")
    assert looked.status == 12
    assert looked.document["error"]["facts"] == ended.document["error"]["facts"]
    return ended


def test_every_bad_name_is_refused_with_the_full_list(started: NearWorld, tmp_path: Path) -> None:
    world = started.copy(tmp_path)
    ann = world.clients["ann"]
    head = world.remote().head
    folder = os.fsencode(ann.path("input"))
    for name in BAD_NAMES:
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"")
        os.makedirs(os.fsdecode(folder + b"/sub/" + name))
        Path(os.fsdecode(folder + b"/sub/" + name + b"/file")).write_bytes(b"")
    ended = refused(ann)
    found = problems(ended)
    for name, reason in BAD_NAMES.items():
        if name == b".DSG":
            continue  # never synced, in any case, so that it stands in nobody's way
        text = os.fsdecode(name)
        for path in (f"input/{text}", f"input/sub/{text}"):
            assert reason in found.pop(path, ""), path
    assert not found
    assert world.remote().head == head
    told = ann.dsg("sync")
    assert told.status == 12
    assert "\x1b[31m" not in told.err and "\u202e" not in told.err, "it must not reach a terminal as it is"
    assert "input/new\\nline" in told.err and "--normalize" in told.err


def test_what_was_refused_can_be_ignored(ann: Client) -> None:
    Path(os.fsdecode(os.fsencode(ann.folder) + b"/input/latin-\xe9")).write_bytes(b"")
    os.makedirs(ann.path("input/skipped"))
    os.mkfifo(ann.path("input/skipped/fifo"))
    assert set(problems(refused(ann))) == {os.fsdecode(b"input/latin-\xe9")}
    settings = ann.path(".dsgconfig.yml")
    settings.write_text(settings.read_text().replace('"skipped/"', '"skipped/", "latin*"'))
    ann.must("sync")


def test_normalize_renames_what_it_can_and_the_sync_goes_on(started: NearWorld, tmp_path: Path) -> None:
    world = started.copy(tmp_path)
    ann = world.clients["ann"]
    nfd = unicodedata.normalize("NFD", "données/été/Ångström.csv")
    ann.put(f"input/{nfd}", File(b"1\n"))
    ended = refused(ann)
    assert [p["normalized"] for p in ended.document["error"]["facts"]["problems"]] != []
    told = ann.must("sync", "--normalize")
    assert told.err.count("renamed") == 3
    assert set(ann.local()) == {"input/keep", "input/données/été/Ångström.csv"}
    assert world.remote().check().live == ann.local()
    assert ann.sync("--normalize").document["state"] == "nothing"


def test_normalize_renames_nothing_over_something(ann: Client) -> None:
    ann.put("input/été", File(b"composed\n"))
    ann.put("input/" + unicodedata.normalize("NFD", "été"), File(b"decomposed\n"))
    before = ann.local()
    ended = ann.sync("--normalize")
    assert ended.status == 12
    assert ann.local() == before


def test_normalize_of_a_dry_run_renames_nothing(ann: Client) -> None:
    ann.put("input/" + unicodedata.normalize("NFD", "été"), File(b"1\n"))
    before = ann.local()
    assert ann.sync("--normalize", "--dry-run").status == 12
    assert ann.local() == before


def test_pairs_that_differ_only_in_case_are_refused(ann: Client) -> None:
    for path in (
        "input/Data.csv",
        "input/data.csv",
        "input/DIR/a",
        "input/dir/b",
        "input/Straße",
        "input/STRASSE",
    ):
        ann.put(path, File(b""))
    found = problems(refused(ann))
    assert len(found) == 3
    text = " ".join([*found, *found.values()])
    assert all(word in text for word in ("Data.csv", "data.csv", "DIR", "dir", "Straße", "STRASSE"))


@pytest.mark.parametrize(
    ("hers", "his"),
    [
        ("input/Data.csv", "input/data.csv"),
        ("input/DIR/a", "input/dir/b"),
        ("input/Σίσυφος", "input/ΣΊΣΥΦΟΣ"),
    ],
)
def test_one_of_a_pair_from_each_of_two_clients_is_a_conflict(
    started: NearWorld, tmp_path: Path, hers: str, his: str
) -> None:
    world = started.copy(tmp_path)
    ann, bob = world.clients["ann"], world.clients["bob"]
    ann.put(hers, File(b"ann's\n"))
    bob.put(his, File(b"bob's\n"))
    ann.must("sync")
    before, head = photograph(bob.folder, without=INDEX), world.remote().head
    ended = bob.sync()
    assert ended.status == 3, ended
    conflicts = ended.document["error"]["facts"]["conflicts"]
    assert {c["kind"] for c in conflicts} == {"names collide"}
    assert {hers, his} <= {c["path"] for c in conflicts} | {c["other"] for c in conflicts}
    assert (photograph(bob.folder, without=INDEX), world.remote().head) == (before, head)
    bob.path(his).rename(bob.path("input/mine"))
    bob.must("sync")
    assert {hers, "input/mine"} <= set(bob.local())


def test_every_bad_kind_and_link_is_refused_with_the_full_list(started: NearWorld, tmp_path: Path) -> None:
    world = started.copy(tmp_path)
    ann = world.clients["ann"]
    links = {
        "absolute": "/etc/passwd",
        "outside": "../../elsewhere",
        "sly": "keep/../../../elsewhere",
        "sub/climbs": "../../../elsewhere",
        "into dsg": "../.dsg/cache",
        "control": "a\nb",
    }
    bad: dict[str, str] = {f"input/{name}": target for name, target in links.items()}
    for path, target in bad.items():
        ann.put(path, Link(target))
    os.mkfifo(ann.path("input/fifo"))
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(ann.path("input"))  # a socket's path is at most 107 bytes long
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        ended = refused(ann)
    found = problems(ended)
    assert set(found) == {*bad, "input/fifo", "input/socket"}
    assert "fifo" in found["input/fifo"] and "socket" in found["input/socket"]
    assert "absolute" in found["input/absolute"] and "outside" in found["input/sub/climbs"]
    for path in found:
        ann.path(path).unlink()
    ann.must("sync")
    assert world.remote().check().live == ann.local()


def test_a_dangling_link_syncs(started: NearWorld, tmp_path: Path) -> None:
    world = started.copy(tmp_path)
    ann, bob = world.clients["ann"], world.clients["bob"]
    links: dict[str, Version] = {
        "input/dangling": Link("not/there"),
        "input/self": Link("self"),
        "input/up": Link("../notes/outside the data folders.txt"),
        "input/dot": Link("./keep"),
    }
    ann.put_all(links)
    ann.must("sync")
    bob.must("sync")
    assert {path: bob.local()[path] for path in links} == links


def test_what_cannot_be_read_is_refused_with_the_full_list(started: NearWorld, tmp_path: Path) -> None:
    world = started.copy(tmp_path)
    ann = ordinary(world.clients["ann"])
    closed = ["input/secret.csv", "output/secret folder"]
    ann.put(closed[0], File(b"x"))
    ann.put(f"{closed[1]}/inside", File(b"y"))
    ann.must("sync")
    head = world.remote().head
    for path in closed:
        ann.path(path).touch()
        ann.path(path).chmod(0)
    try:
        ended = ann.sync()
        told = ann.dsg("sync")
        offline = ann.dsg("status", "--offline")
    finally:
        ann.path(closed[0]).chmod(0o644)
        ann.path(closed[1]).chmod(0o755)
    assert (ended.status, told.status, offline.status) == (10, 10, 10), ended
    assert [p["path"] for p in ended.document["error"]["facts"]["unreadable"]] == closed
    assert all(path in told.err for path in closed)
    assert "Give yourself the right" in told.err
    assert world.remote().head == head
    assert ann.sync().document["state"] == "nothing"


def test_what_cannot_be_read_is_listed_beside_bad_names(started: NearWorld, tmp_path: Path) -> None:
    ann = ordinary(started.copy(tmp_path).clients["ann"])
    ann.put("input/a\nb", File(b""))
    ann.put("input/secret.csv", File(b"x"))
    ann.path("input/secret.csv").chmod(0)
    ended = ann.sync()
    told = ann.dsg("sync")
    ann.path("input/secret.csv").chmod(0o644)
    assert (ended.status, told.status) == (12, 12)
    assert set(problems(ended)) == {"input/a\nb"}
    assert ended.document["error"]["facts"]["unreadable"][0]["path"] == "input/secret.csv"
    assert "input/a\\nb" in told.err and "input/secret.csv" in told.err


def test_names_that_only_windows_dislikes_are_a_warning_or_refused(ann: Client) -> None:
    bad = {"input/12:30.csv", "input/con.csv", "input/dot.", "input/what?"}
    for path in bad:
        ann.put(path, File(b""))
    strict = ann.dsg("sync", "--json", variables={"DSG_PORTABLE_NAMES": "true"})
    assert strict.status == 12
    assert set(problems(strict)) == bad
    ended = ann.sync()
    assert ended.status == 0
    warned = [note["text"] for note in ended.document["notes"] if note["warning"]]
    assert len(warned) == len(bad)

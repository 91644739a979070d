"""Rules of scope: what they leave out stays where it is, on every side; and the mass-deletion guard."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.e2e.near import NearPeople, NearWorld
from tests.e2e.oracle import File, Tree, photograph
from tests.e2e.world import Client

pytestmark = pytest.mark.slow

INDEX = {".dsg/index", ".dsg/index.late"}
TREE: Tree = {
    "input/a.csv": File(b"a\n"),
    "input/notes.tmp": File(b"notes\n"),
    "output/b.csv": File(b"b\n"),
    "output/deep/c.csv": File(b"c\n"),
    "frozen/d.csv": File(b"d\n"),
}
ANNOUNCED = "rules have changed since the last sync"


@pytest.fixture(scope="module")
def started(near_people: NearPeople, tmp_path_factory: pytest.TempPathFactory) -> NearWorld:
    """Ann and bob in step, with the default rules."""
    world = NearWorld(near_people, tmp_path_factory.mktemp("rules"))
    ann = world.init("ann")
    ann.put_all(TREE)
    ann.must("sync")
    world.clone("bob")
    return world


@pytest.fixture
def world(started: NearWorld, tmp_path: Path) -> NearWorld:
    return started.copy(tmp_path)


def set_rules(client: Client, *, data_dirs: list[str] | None = None, ignore: list[str] | None = None) -> None:
    path = client.path(".dsgconfig.yml")
    settings = yaml.safe_load(path.read_text())
    if data_dirs is not None:
        settings["data_dirs"] = data_dirs
    if ignore is not None:
        settings["ignore"] = ignore
    path.write_text(yaml.safe_dump(settings))


RULES = {
    "a folder is dropped": ({"data_dirs": ["input", "frozen"]}, {"output/b.csv", "output/deep/c.csv"}),
    "a pattern is added": ({"ignore": ["*.tmp", "output/deep/"]}, {"input/notes.tmp", "output/deep/c.csv"}),
    "everything is dropped": ({"data_dirs": ["nothing"]}, set(TREE)),
}


@pytest.mark.parametrize("name", RULES)
def test_a_narrower_rule_deletes_nothing_and_is_announced(world: NearWorld, name: str) -> None:
    rules, out = RULES[name]
    ann = world.clients["ann"]
    head = world.remote().head
    set_rules(ann, **rules)
    for command in (("status",), ("sync", "--dry-run"), ("sync",)):
        ended = ann.dsg(*command, "--json")
        assert ended.status == 0, ended
        assert [n for n in ended.document["notes"] if ANNOUNCED in n["text"]], command
        assert not any(ended.document["changes"].values())
    assert ann.local() == world.remote().check().live == TREE
    assert world.remote().head == head
    assert set(ann.cache().tree) == set(TREE) - out
    again = ann.sync().document
    assert again["state"] == "nothing" and not again["notes"], "announced once"


def test_what_is_out_of_scope_moves_no_more_in_either_direction(world: NearWorld) -> None:
    ann, bob = world.clients["ann"], world.clients["bob"]
    set_rules(ann, data_dirs=["input", "frozen"])
    ann.must("sync")
    ann.put("output/b.csv", File(b"ann's own\n"))
    ann.put("output/deep", None)
    bob.put("output/b.csv", File(b"bob's\n"))
    bob.put("output/new.csv", File(b"bob's\n"))
    bob.must("sync")
    done = ann.sync().document
    assert not any(done["changes"].values())
    assert ann.local()["output/b.csv"] == File(b"ann's own\n")
    assert "output/new.csv" not in ann.local()
    live = world.remote().check().live
    assert live["output/b.csv"] == File(b"bob's\n") and "output/deep/c.csv" in live


def test_a_rule_that_comes_back_takes_up_where_it_was_left(world: NearWorld, tmp_path: Path) -> None:
    ann, bob = world.clients["ann"], world.clients["bob"]
    set_rules(ann, data_dirs=["input", "frozen"])
    ann.must("sync")
    back = world.copy(tmp_path / "unchanged")
    set_rules(back.clients["ann"], data_dirs=["input", "output", "frozen"])
    assert not any(back.clients["ann"].sync().document["changes"].values())
    assert set(back.clients["ann"].cache().tree) == set(TREE)

    # Changed on both sides meanwhile: nobody knows what was last agreed, so it is a conflict.
    ann.put("output/b.csv", File(b"ann's\n"))
    ann.put("output/deep", None)
    bob.put("output/b.csv", File(b"bob's\n"))
    bob.must("sync")
    set_rules(ann, data_dirs=["input", "output", "frozen"])
    ended = ann.sync()
    assert ended.status == 3
    assert [c["path"] for c in ended.document["error"]["facts"]["conflicts"]] == ["output/b.csv"]
    # Gone here while it was out of scope is no deletion: the server's comes back.
    ann.put("output/b.csv", File(b"bob's\n"))
    ann.must("sync")
    assert ann.local()["output/deep/c.csv"] == File(b"c\n")
    assert set(world.remote().check().live) == set(TREE)


def test_a_wider_rule_uploads_and_downloads(world: NearWorld) -> None:
    ann, bob = world.clients["ann"], world.clients["bob"]
    for client in (ann, bob):
        client.put("extra/mine.csv", File(b"extra\n"))
        client.put("top.csv", File(b"top\n"))
        client.put(".hidden/x", File(b"never\n"))
    set_rules(ann, data_dirs=["*"])
    done = ann.sync().document
    assert done["changes"]["upload"] == ["extra/mine.csv", "top.csv"]
    # Bob's narrower rules leave them alone, in his folder and on the server.
    bob.put("input/a.csv", File(b"changed\n"))
    bob.must("sync")
    assert {"extra/mine.csv", "top.csv"} <= set(world.remote().check().live)
    assert set(bob.cache().tree) == set(TREE)
    ann.must("sync")
    assert ann.local()["input/a.csv"] == File(b"changed\n")


def test_two_clients_with_other_rules_share_what_both_select(world: NearWorld) -> None:
    ann, bob = world.clients["ann"], world.clients["bob"]
    set_rules(ann, data_dirs=["input", "frozen"])
    set_rules(bob, data_dirs=["output", "frozen"])
    ann.must("sync")
    bob.must("sync")
    ann.put_all({"input/a.csv": File(b"ann\n"), "frozen/d.csv": File(b"ann\n"), "output/b.csv": None})
    bob.put_all({"output/deep/c.csv": File(b"bob\n"), "frozen/e.csv": File(b"bob\n"), "input/a.csv": None})
    ann.must("sync")
    bob.must("sync")
    ann.must("sync")
    assert world.remote().check().live == TREE | {
        "input/a.csv": File(b"ann\n"),
        "frozen/d.csv": File(b"ann\n"),
        "frozen/e.csv": File(b"bob\n"),
        "output/deep/c.csv": File(b"bob\n"),
    }
    assert set(ann.cache().tree) == {"input/a.csv", "input/notes.tmp", "frozen/d.csv", "frozen/e.csv"}
    assert "output/b.csv" not in ann.local() and "input/a.csv" not in bob.local()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data_dir: [input]\n", "data_dirs"),
        ("ignore: ['!']\n", "ignore"),
        ("ignore: {a: b}\n", "ignore"),
        ("data_dirs: [a/b]\n", "data_dirs"),
        ("data_dirs: [input\n", "line"),
        ("- input\n", "line 1"),
    ],
)
def test_a_broken_rule_is_an_error_and_no_rule(world: NearWorld, text: str, says: str) -> None:
    ann = world.clients["ann"]
    path = ann.path(".dsgconfig.yml")
    path.write_text(f"repository: {world.repository}\n{text}" if text[0] != "-" else text)
    before = photograph(ann.folder, without=INDEX)
    for command in ("sync", "status", "validate-config"):
        ended = ann.dsg(command)
        assert ended.status == 4, ended
        assert says in ended.err and ".dsgconfig.yml" in ended.err
    assert photograph(ann.folder, without=INDEX) == before


# The guard


def test_a_vanished_data_folder_stops_the_sync(world: NearWorld) -> None:
    ann = world.clients["ann"]
    shutil.rmtree(ann.path("output"))
    before, head = photograph(ann.folder, without=INDEX), world.remote().head
    ended = ann.sync()
    assert ended.status == 13, ended
    reasons = ended.document["error"]["facts"]["reasons"]
    assert [(r["why"], r["folder"], r["deleted"]) for r in reasons] == [
        ("a data folder vanished", "output", 2)
    ]
    ann.path("output").mkdir()  # an empty one is no better
    assert ann.dsg("sync", "--dry-run").status == 13
    ann.path("output").rmdir()
    assert (photograph(ann.folder, without=INDEX), world.remote().head) == (before, head)
    assert "--allow-mass-delete" in ann.dsg("sync").err
    ann.must("sync", "--allow-mass-delete")
    assert set(world.remote().check().live) == {path for path in TREE if not path.startswith("output/")}


def test_one_file_of_a_data_folder_may_go(world: NearWorld) -> None:
    ann = world.clients["ann"]
    ann.put("output/b.csv", None)
    ann.must("sync")
    assert "output/b.csv" not in world.remote().check().live


@pytest.mark.parametrize("side", ["here", "on the server"])
def test_most_of_a_side_is_not_deleted_unasked(world: NearWorld, side: str) -> None:
    ann, bob = world.clients["ann"], world.clients["bob"]
    many = {f"input/{n:02}": File(b"%d" % n) for n in range(40)}
    ann.put_all(many)
    ann.must("sync")
    bob.must("sync")
    for path in list(many)[:23]:
        ann.put(path, None)
    asked = ann
    if side == "here":
        assert ann.sync().status == 13
        ann.must("sync", "--allow-mass-delete")
        asked = bob
    before = photograph(asked.folder, without=INDEX), world.remote().head
    ended = asked.sync()
    assert ended.status == 13, ended
    (reason,) = ended.document["error"]["facts"]["reasons"]
    assert (reason["deleted"], reason["entries"]) == (23, 45)
    assert reason["side"] == ("local" if side == "here" else "remote")
    assert (photograph(asked.folder, without=INDEX), world.remote().head) == before
    status = asked.dsg("status")
    assert status.status == 0 and "--allow-mass-delete" in status.out, "status tells it beforehand"
    asked.must("sync", "--allow-mass-delete")
    assert len(world.remote().check().live) == len(asked.local()) == 22


def test_half_of_a_side_may_go(world: NearWorld) -> None:
    ann = world.clients["ann"]
    ann.put_all({f"input/{n:02}": File(b"%d" % n) for n in range(35)})
    ann.must("sync")
    for n in range(20):
        ann.put(f"input/{n:02}", None)
    ann.must("sync")


def test_everything_gone_from_one_side_stops(world: NearWorld) -> None:
    ann = world.clients["ann"]
    for path in TREE:
        ann.put(path, None)
    ended = ann.sync()
    assert ended.status == 13
    whys = {r["why"] for r in ended.document["error"]["facts"]["reasons"]}
    assert whys == {"everything", "a data folder vanished"}


def test_without_the_guard_the_deletions_are_lost_on_the_server(world: NearWorld) -> None:
    """The negative control: it is the guard, and nothing else, that kept the server's files above."""
    ann = world.clients["ann"]
    for path in TREE:
        ann.put(path, None)
    ann.must("sync", "--allow-mass-delete")
    assert not world.remote().check().live

"""Clones: fresh, in a git checkout, over files that are there, interrupted, by the repository's rules."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.e2e.near import NearPeople, NearWorld
from tests.e2e.oracle import File, Link, Tree, photograph
from tests.e2e.world import Client, Ended, People, World

pytestmark = pytest.mark.slow

TREE: Tree = {
    "data/a.csv": File(b"a\n"),
    "data/deep/b.csv": File(b"b\n" * 1000),
    "data/run.sh": File(b"#!/bin/sh\n", executable=True),
    "data/empty": File(b""),
    "data/link": Link("a.csv"),
}


@pytest.fixture(scope="module")
def started(near_people: NearPeople, tmp_path_factory: pytest.TempPathFactory) -> NearWorld:
    """A repository whose rules are not the default ones, with TREE in it."""
    world = NearWorld(near_people, tmp_path_factory.mktemp("clone"))
    ann = world.init("ann", "--name", "Survey", "--data-dir", "data", "--ignore", "*.tmp")
    ann.put_all(TREE)
    ann.must("sync")
    return world


@pytest.fixture
def world(started: NearWorld, tmp_path: Path) -> NearWorld:
    return started.copy(tmp_path)


@pytest.fixture
def bob(world: NearWorld) -> Client:
    """Bob, with an empty folder."""
    return world.client("bob")


def settings_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((folder / ".dsgconfig.yml").read_text())
    return found


def in_step(world: World, client: Client) -> None:
    """The folder is a finished clone with nothing left over."""
    assert set(client.cache().tree) == set(TREE)
    assert client.sync().document["state"] == "nothing"
    left = [p for area in ("staging", "tmp", "trash") for p in (client.folder / ".dsg" / area).glob("*")]
    assert not left
    assert world.remote().head.seq == 1


def test_a_clone_makes_its_folder_and_takes_the_repositorys_settings(world: NearWorld, bob: Client) -> None:
    ended = bob.must("clone", world.address, "work/survey", "--json")
    folder = bob.path("work/survey")
    document = ended.document
    assert document["directory"] == str(folder)
    assert (document["seq"], document["downloaded"], document["taken_over"]) == (1, 5, 0)
    clone = Client("bob", folder, bob.machine, bob.program)
    assert clone.local() == TREE
    found = settings_of(folder)
    assert (found["name"], found["data_dirs"], found["ignore"]) == ("Survey", ["data"], ["*.tmp"])
    assert found["repository"] == world.address
    in_step(world, clone)


def test_without_a_folder_it_is_named_after_the_repository(world: NearWorld, bob: Client) -> None:
    bob.must("clone", world.address)
    assert (bob.folder / "repo" / "data" / "a.csv").read_bytes() == b"a\n"


def test_an_address_with_a_slash_at_the_end(world: NearWorld, bob: Client) -> None:
    bob.must("clone", world.address + "/")
    assert (bob.folder / "repo" / "data" / "a.csv").read_bytes() == b"a\n"


def test_a_relative_address_and_folder(world: NearWorld, bob: Client) -> None:
    bob.must("clone", "../server/repo", "here")
    clone = Client("bob", bob.path("here"), bob.machine, bob.program)
    assert settings_of(clone.folder)["repository"] == world.address
    in_step(world, clone)


@pytest.mark.needs("git")
def test_a_fresh_git_checkout_is_filled_by_a_bare_clone(world: NearWorld, bob: Client) -> None:
    ann = world.clients["ann"]

    def git(folder: Path, *words: str) -> None:
        name = ["-c", "user.name=x", "-c", "user.email=x@y.example"]
        subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True)

    git(ann.folder, "init", "-q")
    ann.path("code.py").write_text("print()\n")
    ann.path(".gitignore").write_text(".dsg/\ndata/\n")
    git(ann.folder, "add", ".")
    git(ann.folder, "commit", "-q", "-m", "code")
    git(bob.folder.parent, "clone", "-q", str(ann.folder), "checkout")
    clone = Client("bob", bob.folder.parent / "checkout", bob.machine, bob.program)
    assert not (clone.folder / "data").exists()
    settings = (clone.folder / ".dsgconfig.yml").read_bytes()
    clone.must("clone")
    assert {p: v for p, v in clone.local().items() if p.startswith("data/")} == TREE
    assert (clone.folder / ".dsgconfig.yml").read_bytes() == settings
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone.folder, check=True, capture_output=True, text=True
    )
    assert status.stdout == "", "git sees nothing of the data"
    in_step(world, clone)


def test_files_that_match_are_taken_over(world: NearWorld, bob: Client) -> None:
    bob.put_all({path: TREE[path] for path in ("data/a.csv", "data/run.sh", "data/link")})
    bob.put("code.py", File(b"not data\n"))
    bob.put("data/own.csv", File(b"only bob has it\n"))
    inode = bob.path("data/a.csv").stat().st_ino
    document = bob.must("clone", world.address, ".", "--json").document
    assert (document["downloaded"], document["taken_over"]) == (2, 3)
    assert bob.path("data/a.csv").stat().st_ino == inode, "not fetched again"
    assert bob.local() == TREE | {
        "code.py": File(b"not data\n"),
        "data/own.csv": File(b"only bob has it\n"),
    }
    status = bob.dsg("status", "--json").document
    assert status["changes"]["upload"] == ["data/own.csv"]
    bob.must("sync")
    assert "data/own.csv" in world.remote().check().live


def test_everything_there_already(world: NearWorld, bob: Client) -> None:
    bob.put_all(TREE)
    document = bob.must("clone", world.address, ".", "--json").document
    assert (document["downloaded"], document["taken_over"]) == (0, 5)
    in_step(world, bob)


def differing(bob: Client) -> list[str]:
    """Make bob's folder differ from the repository in every way; the paths that do."""
    bob.put_all(
        {
            "data/a.csv": File(b"another\n"),
            "data/run.sh": File(b"#!/bin/sh\n", executable=False),
            "data/link": File(b"no link\n"),
            "data/deep": File(b"no folder\n"),
            "data/empty": File(b""),
            "data/own.csv": File(b"only bob has it\n"),
        }
    )
    return ["data/a.csv", "data/deep", "data/link", "data/run.sh"]


def test_files_that_differ_are_listed_and_nothing_is_changed(world: NearWorld, bob: Client) -> None:
    expected = differing(bob)
    before = photograph(bob.folder, folder_times=True)
    ended = bob.dsg("clone", world.address, ".", "--json")
    assert ended.status == 3, ended
    assert photograph(bob.folder, folder_times=True) == before, "not even a .dsg or a .dsgconfig.yml"
    found = {path if path != "data/deep/b.csv" else "data/deep" for path in facts(ended)["paths"]}
    assert sorted(found) == expected
    told = bob.dsg("clone", world.address, ".").err
    assert all(path in told for path in expected)
    assert "dsg clone" in told, "it says how to go on"
    for path in expected:
        bob.put(path, None)
    bob.must("clone", world.address, ".")
    assert bob.local() == TREE | {"data/own.csv": File(b"only bob has it\n")}


def facts(ended: Ended) -> dict[str, list[str]]:
    found: dict[str, list[str]] = ended.document["error"]["facts"]
    return found


def test_something_that_is_not_synced_in_the_way(world: NearWorld, bob: Client) -> None:
    bob.put("data/a.csv/mine.tmp", File(b"ignored\n"))
    before = bob.local()
    ended = bob.dsg("clone", world.address, ".")
    assert ended.status == 12, ended
    assert "data/a.csv" in ended.err
    assert bob.local() == before


def test_a_clone_over_a_finished_one_is_refused(world: NearWorld) -> None:
    ann = world.clients["ann"]
    for arguments in (["clone"], ["clone", world.address, "."]):
        ended = ann.dsg(*arguments)
        assert ended.status == 4
        assert "dsg sync" in ended.err


@pytest.mark.parametrize("step", ["local-flushed", "local-prepared", "local-decided", "local-trashed"])
def test_an_interrupted_clone_is_continued(world: NearWorld, bob: Client, step: str) -> None:
    killed = bob.dsg("clone", world.address, ".", variables={"DSG_FAILPOINTS": f"{step}=kill"})
    assert killed.status == -9, killed
    document = bob.must("clone", "--json").document
    assert document["seq"] == 1
    assert bob.local() == TREE
    in_step(world, bob)


def test_an_interrupted_clone_may_be_synced_as_well(world: NearWorld, bob: Client) -> None:
    killed = bob.dsg("clone", world.address, ".", variables={"DSG_FAILPOINTS": "local-flushed=kill"})
    assert killed.status == -9, killed
    assert bob.must("sync", "--json").document["changes"]["download"] == sorted(TREE)
    assert bob.local() == TREE


def test_a_clone_of_an_empty_repository(near: NearWorld) -> None:
    near.init("ann")
    bob = near.clone("bob")
    assert bob.cache().seq == 0
    bob.put("input/x", File(b"x"))
    bob.must("sync")
    assert bob.must("sync", "--json").document["state"] == "nothing"


@pytest.mark.parametrize("address", ["/nowhere/at/all", "{home}"])
def test_no_repository_there(world: NearWorld, bob: Client, address: str) -> None:
    other = bob.folder.parent / "empty"
    other.mkdir()
    ended = bob.dsg("clone", address.format(home=other), "copy")
    assert ended.status in (4, 8, 9), ended
    assert "repository" in ended.err
    assert not bob.path("copy").exists()


def test_a_working_folder_is_no_repository(world: NearWorld, bob: Client) -> None:
    ended = bob.dsg("clone", str(world.clients["ann"].folder), "copy")
    assert ended.status in (4, 9), ended
    assert "working folder" in ended.err
    assert not bob.path("copy").exists()


def test_a_folder_that_cannot_be_made_is_no_bug(world: NearWorld, bob: Client) -> None:
    ended = bob.dsg("clone", world.address, "x" * 300)
    assert ended.status == 10 and "too long" in ended.err, ended


def test_a_bare_clone_needs_a_configuration(bob: Client) -> None:
    ended = bob.dsg("clone")
    assert ended.status == 2
    assert ".dsgconfig.yml" in ended.err and "dsg clone [user@]host:/path" in ended.err


def test_the_configuration_of_another_repository_is_refused(world: NearWorld, bob: Client) -> None:
    bob.path(".dsgconfig.yml").write_text("repository: /some/where/else\n")
    before = photograph(bob.folder)
    ended = bob.dsg("clone", world.address, ".")
    assert ended.status == 4
    assert "/some/where/else" in ended.err and world.address in ended.err
    assert photograph(bob.folder) == before


def test_a_clone_into_the_repository_itself_is_refused(world: NearWorld, bob: Client) -> None:
    for folder in (world.repository, world.repository / "inside", world.repository.parent):
        ended = bob.dsg("clone", world.address, str(folder))
        assert ended.status == 4, ended
        assert "repository" in ended.err
    assert not (world.repository / "inside").exists()
    world.remote().check()


def test_a_clone_into_a_folder_that_is_a_file(world: NearWorld, bob: Client) -> None:
    bob.path("file").write_text("x")
    ended = bob.dsg("clone", world.address, "file")
    assert ended.status == 2
    assert bob.path("file").read_text() == "x"


@pytest.mark.parametrize("settings", ['{"data_dirs": [".."]}', '{"ignore": 7}', "not JSON", "[]"])
def test_hostile_settings_of_a_repository(world: NearWorld, bob: Client, settings: str) -> None:
    (world.repository / ".dsg" / "settings").write_text(settings)
    ended = bob.dsg("clone", world.address, ".")
    if ended.status:
        assert ended.status in (4, 8), ended
        assert not bob.path(".dsgconfig.yml").exists() and not bob.path("data").exists()
    else:  # settings that say nothing: the defaults
        assert settings_of(bob.folder)["data_dirs"] == ["input", "output", "frozen"]


def test_a_copied_working_folder_goes_on_by_itself(world: NearWorld) -> None:
    ann = world.clients["ann"]
    shutil.copytree(ann.folder, ann.folder.parent / "copy", symlinks=True)
    copy = Client("ann", ann.folder.parent / "copy", ann.machine, ann.program)
    assert copy.sync().document["state"] == "nothing"
    copy.put("data/new", File(b"from the copy\n"))
    copy.must("sync")
    ann.must("sync")
    assert ann.local() == copy.local()


@pytest.mark.needs("sshd", "ssh-keygen")
def test_an_interrupted_clone_over_ssh_is_continued(people: People, tmp_path: Path) -> None:
    far = World(people, tmp_path / "far")
    ann = far.init("ann", "--data-dir", "data")
    ann.put_all(TREE)
    ann.must("sync")
    bob = far.client("bob")
    killed = bob.dsg("clone", far.address, ".", variables={"DSG_FAILPOINTS": "downloaded=kill"})
    assert killed.status == -9, killed
    assert os.listdir(bob.folder / ".dsg" / "staging")
    bob.must("clone")
    assert bob.local() == TREE
    in_step(far, bob)

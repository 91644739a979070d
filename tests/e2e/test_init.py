"""A new repository: what is written where, what is refused, and what an interrupted init leaves."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.near import NearWorld, ordinary
from tests.e2e.oracle import File, photograph
from tests.e2e.world import Client, World

pytestmark = pytest.mark.slow


@pytest.fixture
def ann(near: NearWorld) -> Client:
    """Ann, with an empty folder and no repository."""
    return near.client("ann")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def modes(folder: Path) -> set[int]:
    """The modes of everything below, and of the folder itself."""
    return {stat.S_IMODE(p.lstat().st_mode) for p in [folder, *folder.rglob("*")] if not p.is_symlink()}


def test_an_empty_repository_and_a_configuration(near: NearWorld, ann: Client) -> None:
    ann.put("input/x.csv", File(b"x\n"))
    document = ann.must("init", near.address, "--json").document
    remote = near.remote().check()
    assert (document["repo_id"], document["seq"]) == (remote.head.repo_id, 0)
    assert (document["remote"], document["directory"]) == (near.address, str(ann.folder))
    assert (remote.head.seq, remote.live) == (0, {})
    settings = yaml.safe_load(ann.path(".dsgconfig.yml").read_text())
    assert settings == {
        "name": "repo",
        "repository": near.address,
        "data_dirs": ["input", "output", "frozen"],
        "ignore": [],
    }
    assert not ann.path(".gitignore").exists(), "there is no git here"
    assert stat.S_IMODE(ann.path(".dsg").stat().st_mode) == 0o700
    assert ann.must("status", "--json").document["changes"]["upload"] == ["input/x.csv"]


def test_the_options_are_written_down(near: NearWorld, ann: Client) -> None:
    ann.must("init", near.address, "--name", "Long: name # of it", "--data-dir", "data", "--data-dir", "*",
             "--ignore", "*.tmp", "--ignore", "!keep.tmp")  # fmt: skip
    settings = yaml.safe_load(ann.path(".dsgconfig.yml").read_text())
    assert settings["name"] == "Long: name # of it"
    assert (settings["data_dirs"], settings["ignore"]) == (["data", "*"], ["*.tmp", "!keep.tmp"])


def test_a_repository_is_private_unless_it_has_a_group(near: NearWorld, ann: Client) -> None:
    ann.must("init", near.address)
    assert stat.S_IMODE(near.repository.stat().st_mode) == 0o700
    ann.put("input/x", File(b"x"))
    ann.must("sync")
    assert stat.S_IMODE(near.repository.stat().st_mode) == 0o700


def test_a_folder_that_was_made_beforehand_keeps_its_mode(near: NearWorld, ann: Client) -> None:
    near.repository.mkdir()
    near.repository.chmod(0o755)
    ann.must("init", near.address)
    assert stat.S_IMODE(near.repository.stat().st_mode) == 0o755


def test_a_group_shares_the_repository(near: NearWorld, ann: Client) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    ann.must("init", near.address, "--group", group)
    assert stat.S_IMODE(near.repository.stat().st_mode) == 0o2770
    ann.put("input/deep/x", File(b"x"))
    ann.put("input/run.sh", File(b"x", executable=True))
    ann.must("sync")
    assert stat.S_IMODE((near.repository / "input/deep").stat().st_mode) == 0o2775
    found = modes(near.repository / "input")
    assert all(mode & 0o060 == 0o060 for mode in found), [oct(m) for m in found]


def test_a_group_that_is_not_there(near: NearWorld, ann: Client) -> None:
    before = photograph(ann.folder)
    ended = ann.dsg("init", near.address, "--group", "no-such-group")
    assert ended.status == 2, ended
    assert "no-such-group" in ended.err and "getent group" in ended.err
    assert not (near.repository / ".dsg").exists()
    assert photograph(ann.folder) == before


@pytest.mark.needs("git")
def test_inside_git_the_data_stays_out_of_it(near: NearWorld, ann: Client) -> None:
    git(ann.folder, "init", "-q")
    ann.path(".gitignore").write_text("*.pyc\n/input/\n")
    ann.put("study/input/x.csv", File(b"x\n"))
    ann.put("study/output/y.csv", File(b"y\n"))
    ended = ann.must("init", near.address)
    lines = ann.path(".gitignore").read_text().splitlines()
    assert lines[:2] == ["*.pyc", "/input/"], "what was there stays"
    assert ".gitignore" in ended.err
    assert git(ann.folder, "status", "--porcelain", "-uall").splitlines() == [
        "?? .dsgconfig.yml",
        "?? .gitignore",
    ]


@pytest.mark.needs("git")
def test_inside_a_subfolder_of_a_git_work_tree(near: NearWorld, ann: Client) -> None:
    git(ann.folder, "init", "-q")
    ann.put("project/input/x.csv", File(b"x\n"))
    inner = Client("ann", ann.path("project"), ann.machine, ann.program)
    inner.must("init", near.address)
    assert sorted(git(ann.folder, "status", "--porcelain", "-uall").splitlines()) == [
        "?? project/.dsgconfig.yml",
        "?? project/.gitignore",
    ]


def test_in_a_folder_with_a_configuration(near: NearWorld, ann: Client) -> None:
    text = "# ours\ndata_dirs: [data]\nname: mine\n"
    ann.path(".dsgconfig.yml").write_text(text)
    ann.must("init", near.address)
    written = ann.path(".dsgconfig.yml").read_text()
    assert written.startswith(text)
    assert yaml.safe_load(written)["repository"] == near.address
    bob = near.clone("bob")
    assert yaml.safe_load(bob.path(".dsgconfig.yml").read_text())["data_dirs"] == ["data"]


def test_in_a_folder_that_names_another_repository(near: NearWorld, ann: Client) -> None:
    ann.path(".dsgconfig.yml").write_text("repository: server:/srv/other\n")
    before = photograph(ann.folder)
    ended = ann.dsg("init", near.address)
    assert ended.status == 4, ended
    assert "server:/srv/other" in ended.err and "repository" in ended.err
    assert photograph(ann.folder) == before
    assert not near.repository.exists()


def test_in_a_working_folder_or_below_one(near: NearWorld, ann: Client) -> None:
    ann.must("init", near.address)
    ended = ann.dsg("init", str(near.folder / "server" / "second"))
    assert ended.status == 4
    assert not (near.folder / "server" / "second").exists()
    ann.path("input").mkdir()
    below = Client("ann", ann.path("input"), ann.machine, ann.program)
    ended = below.dsg("init", str(near.folder / "server" / "second"))
    assert ended.status == 4, ended
    assert str(ann.folder) in ended.err, "it names the folder that is in the way"
    assert not (near.folder / "server" / "second").exists()


def test_an_existing_repository_is_not_touched(near: NearWorld, ann: Client) -> None:
    ann.must("init", near.address)
    ann.put("input/x", File(b"x"))
    ann.must("sync")
    before = photograph(near.repository, folder_times=True)
    bob = near.client("bob")
    ended = bob.dsg("init", near.address)
    assert ended.status == 4, ended
    assert "dsg clone" in ended.err
    assert photograph(near.repository, folder_times=True) == before
    assert not list(bob.folder.iterdir())


def test_a_folder_with_something_in_it_is_no_place(near: NearWorld, ann: Client) -> None:
    near.repository.mkdir()
    (near.repository / "thesis.tex").write_text("years of work")
    ended = ann.dsg("init", near.address)
    assert ended.status == 4, ended
    assert "thesis.tex" in ended.err
    assert [p.name for p in near.repository.iterdir()] == ["thesis.tex"]
    assert not list(ann.folder.iterdir())


def test_a_place_that_cannot_be_made(near: NearWorld, ann: Client) -> None:
    closed = near.folder / "server" / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    try:
        ended = ordinary(ann).dsg("init", str(closed / "repo"))
    finally:
        closed.chmod(0o700)
    assert ended.status in (9, 14), ended
    assert str(closed) in ended.err
    assert not list(ann.folder.iterdir())


OVERLAPS: dict[str, Callable[[Path], Path]] = {
    "the same": lambda folder: folder,
    "inside": lambda folder: folder / "store",
    "deep inside": lambda folder: folder / "input" / "a" / "b",
    "around": lambda folder: folder.parent,
    "through a link": lambda folder: folder.parent / "link" / "store",
}


@pytest.mark.parametrize("how", OVERLAPS)
def test_local_and_remote_must_not_overlap(near: NearWorld, ann: Client, how: str) -> None:
    (ann.folder.parent / "link").symlink_to(ann.folder)
    before = photograph(near.folder)
    ended = ann.dsg("init", str(OVERLAPS[how](ann.folder)))
    assert ended.status == 4, ended
    assert "outside" in ended.err
    assert photograph(near.folder) == before


def test_an_init_that_was_interrupted_goes_on(near: NearWorld, ann: Client) -> None:
    ann.must("init", near.address)
    repo_id = near.remote().head.repo_id
    # What a kill leaves: the repository made, of the folder nothing, or a .dsg without its last file.
    for leave in ("nothing", "settings", "half"):
        for path in (".dsg/format", *(() if leave == "half" else (".dsg/cache",))):
            ann.path(path).unlink(missing_ok=True)
        if leave == "nothing":
            subprocess.run(["rm", "-r", str(ann.path(".dsg"))], check=True)
            ann.path(".dsgconfig.yml").unlink()
        told = ann.must("init", near.address).err
        assert "was there already, empty: made by ann" in told
        assert near.remote().head.repo_id == repo_id == ann.cache().repo_id
        assert ann.must("sync", "--json").document["state"] == "nothing"


@pytest.mark.parametrize(
    "remote", ["", "host:", "user@:/x", "host:relative/path", "a b:/x", "zfs:", "-oProxyCommand=x:/y"]
)
def test_an_address_that_is_none(ann: Client, remote: str) -> None:
    ended = ann.dsg("init", "--", remote)
    assert ended.status == 2, ended
    assert "Traceback" not in ended.err
    assert "is not an address of a repository" in ended.err
    assert not list(ann.folder.iterdir())


def test_a_server_without_such_a_dataset(ann: Client) -> None:
    """Whether it has no ZFS at all, or no pool of that name: a refusal that says so, and nothing changed."""
    ended = ann.dsg("init", "zfs:no-such-pool/data")
    assert ended.status in (4, 9, 14), ended
    assert "zfs" in ended.err and "Traceback" not in ended.err
    assert not list(ann.folder.iterdir())


@pytest.mark.needs("sshd", "ssh-keygen")
def test_a_private_repository_over_ssh(world: World) -> None:
    ann = world.init("ann", "--data-dir", "data")
    assert stat.S_IMODE(world.repository.stat().st_mode) == 0o700
    settings = yaml.safe_load(ann.path(".dsgconfig.yml").read_text())
    assert settings["repository"] == world.address

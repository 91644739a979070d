"""Two ordinary accounts of one group, umask 022, share a repository; others read at most."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import DsgError, NotPermittedError
from protocol.messages import Doctor, Recover
from tests.agent.client import AgentGone, Client, changes_of, tree_of
from tests.hosts.accounts import shared_python

# Numbers that no system hands out; nobody needs a name to own files.
GROUP = 61234
ANN, BOB, EVE = 61201, 61202, 61203

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("root"),
]
FIRST = {"a": b"1", "d/b": b"2", "d/c": b"3"}
SECOND = {"a": b"one", "new/e": b"5"}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that all accounts can reach, with the source of DSG and what it needs."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="dsg-accounts-", dir="/tmp"))
    folder.chmod(0o755)
    source = folder / "source"
    root = Path(__file__).resolve().parents[2]
    for package in ("protocol", "dsg_remote_agent"):
        shutil.copytree(root / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("attr", "attrs", "msgpack", "structlog"):
        found = __import__(name).__path__[0]
        shutil.copytree(found, source / name)
    subprocess.run(["chmod", "-R", "go+rX", str(source)], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def data(place: Path) -> Iterator[Path]:
    """A folder that belongs to the group, as an administrator makes it."""
    folder = place / "data"
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def agent(place: Path, uid: int, *options: str, groups: tuple[int, ...] = (GROUP,), **more: Any) -> Client:
    """An agent that runs as ``uid``, its own group first, with the umask of a plain login."""
    environment = {"PYTHONPATH": str(place / "source"), "HOME": str(place)}
    return Client(
        *options,
        python=shared_python(),
        environment=environment,
        cwd="/",
        user=uid,
        group=uid,
        extra_groups=list(groups),
        umask=0o022,
        **more,
    )


def test_each_syncs_after_the_other(place: Path, data: Path) -> None:
    repo = data / "repo"
    with agent(place, ANN) as ann:
        ann.init(repo, group=str(GROUP))
        ann.open(repo)
        ann.sync("tx-ann-000001", {"d/a.csv": b"ann's", "d/e/b.csv": b"too", "x": b"x"}, links={"l": "x"})
    with agent(place, BOB) as bob:
        bob.open(repo)
        bob.sync("tx-bob-000001", {"d/a.csv": b"bob's now", "d/e/c": b"new"}, ["d/e/b.csv", "l"])
        # What Ann had written is in the history, and Bob can read it.
        assert bob.get(1, changes_of({"d/a.csv": b"ann's"}, [], {}, 1)) == {"d/a.csv": b"ann's"}  # type: ignore[arg-type]
    with agent(place, ANN) as ann:
        ann.open(repo)
        ann.sync("tx-ann-000002", {"d/a.csv": b"ann again"}, ["d/e/c", "x"])
    assert tree_of(repo) == {"d/a.csv": b"ann again"}
    assert not (repo / "d" / "e").exists(), "a folder that another made goes when it is empty"


def test_what_is_made_belongs_to_the_group(place: Path, data: Path) -> None:
    repo = data / "repo"
    with agent(place, ANN) as ann:
        ann.init(repo, group=str(GROUP))
        ann.open(repo)
        ann.sync("tx-ann-000001", {"d/a.csv": b"1"})
        ann.sync("tx-ann-000002", {"d/a.csv": b"2"})
    for path in [repo, *repo.rglob("*")]:
        found = path.lstat()
        assert found.st_gid == GROUP, path
        assert found.st_uid == ANN, path
        if path == repo:
            assert stat.S_IMODE(found.st_mode) == 0o2770, "nobody else gets in"
        elif path.is_dir():
            assert stat.S_IMODE(found.st_mode) == 0o2775, path
        else:
            assert stat.S_IMODE(found.st_mode) == 0o664, path


@pytest.mark.parametrize("step", ["uploaded", "remote-prepared", "remote-decided", "remote-applied"])
def test_another_account_recovers(place: Path, data: Path, step: str) -> None:
    repo = data / "repo"
    with agent(place, ANN) as ann:
        ann.init(repo, group=str(GROUP))
        ann.open(repo)
        ann.sync("tx-ann-000001", FIRST)
    killed = agent(place, ANN, failpoints=f"{step}=kill")
    killed.open(repo)
    with pytest.raises(AgentGone):
        killed.sync("tx-ann-000002", SECOND, ["d/b", "d/c"])
    killed.process.wait(10)
    with agent(place, BOB) as bob:
        bob.open(repo)
        bob.call(Recover(repo=1))
        committed = step in ("remote-decided", "remote-applied")
        assert tree_of(repo) == (SECOND if committed else FIRST)
        assert os.listdir(repo / ".dsg" / "staging") == []
        bob.sync("tx-bob-000001", {"a": b"bob's"})
    assert tree_of(repo)["a"] == b"bob's"


def test_without_the_setgid_group_the_second_is_told(place: Path, data: Path) -> None:
    """The negative control: without setgid folders of the group, the second account cannot write."""
    repo = data / "repo"
    data.chmod(0o777)
    with agent(place, ANN) as ann:
        ann.init(repo)  # no --group, and the folder hands no group down
        ann.open(repo)
        ann.sync("tx-ann-000001", {"a": b"1"})
    with agent(place, BOB) as bob, pytest.raises(NotPermittedError):
        bob.open(repo)
    repo.chmod(0o755)
    with agent(place, BOB) as bob:
        bob.open(repo)
        assert bob.get(1, bob.manifest()) == {"a": b"1"}, "reading is allowed to all here"
        with pytest.raises(NotPermittedError) as caught:
            bob.sync("tx-bob-000001", {"a": b"2"})
        assert "group" in caught.value.hint
        checks = {check.name: check for check in bob.call(Doctor(path=str(repo))).checks}
        assert not checks["folder"].ok and not checks["sharing"].ok
        assert "chmod" in checks["sharing"].cure
    assert tree_of(repo) == {"a": b"1"}


def test_one_who_is_not_in_the_group(place: Path, data: Path) -> None:
    repo = data / "repo"
    with agent(place, ANN) as ann:
        ann.init(repo, group=str(GROUP))
        ann.open(repo)
        ann.sync("tx-ann-000001", {"a": b"1"})
    repo.chmod(0o2775)
    with agent(place, EVE, groups=()) as eve:
        eve.open(repo)
        with pytest.raises(DsgError) as caught:
            eve.sync("tx-eve-000001", {"a": b"2"})
        assert caught.value.code == "not_permitted"
    repo.chmod(0o2770)
    with agent(place, EVE, groups=()) as eve:
        with pytest.raises(NotPermittedError):
            eve.open(repo)
        with pytest.raises(NotPermittedError):
            eve.init(repo / "mine")
    assert tree_of(repo) == {"a": b"1"}


def test_a_group_that_does_not_exist_or_is_not_mine(place: Path, data: Path) -> None:
    data.chmod(0o777)
    with agent(place, ANN) as ann:
        with pytest.raises(DsgError, match="no group"):
            ann.init(data / "one", group="no-such-group-here")
        with pytest.raises(NotPermittedError, match="cannot be given"):
            ann.init(data / "two", group="0")


def test_a_file_of_the_other_that_is_closed_to_the_group(place: Path, data: Path) -> None:
    """Replacing needs rights on the folder only; so does keeping the old content."""
    repo = data / "repo"
    with agent(place, ANN) as ann:
        ann.init(repo, group=str(GROUP))
        ann.open(repo)
        base = ann.sync("tx-ann-000001", {"d/a": b"1"})
    (repo / "d" / "a").chmod(0o600)
    with agent(place, BOB) as bob:
        bob.open(repo)
        # Its mode changed outside DSG, and its content cannot be read to be sure: that is said, not guessed.
        with pytest.raises(NotPermittedError, match="a"):
            bob.begin("tx-bob-000001", base)
    (repo / "d" / "a").chmod(0o664)
    with agent(place, BOB) as bob:
        bob.open(repo)
        bob.sync("tx-bob-000002", {"d/a": b"2"})
    assert tree_of(repo) == {"d/a": b"2"}

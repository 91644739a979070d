"""A ZFS that is full, limited, unmounted or not there: a clear refusal, and nothing changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

import pytest

from dsg_remote_agent.storage.zfs.command import Zfs
from protocol.errors import DsgError, RemoteStorageError
from tests.agent.client import Client, tree_of
from tests.agent.spots import ZfsSpot
from tests.conftest import find_program

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root")]

BEFORE = {"a": b"one"}


@pytest.fixture
def repo(zfs_spot: ZfsSpot) -> ZfsSpot:
    with Client() as client:
        client.init(zfs_spot.address)
        client.open(zfs_spot.address)
        client.sync("tx-start-0001", BEFORE)
    return zfs_spot


@pytest.fixture(params=["quota", "pool"])
def full(request: pytest.FixtureRequest, repo: ZfsSpot) -> Iterator[Callable[[], None]]:
    """A repository without room; what is yielded makes room again."""
    host, dataset = repo.host, repo.address.removeprefix("zfs:")
    hog = f"{host.pool}/hog"

    def quota_gone() -> None:
        host.zfs("set", "quota=none", dataset)

    def hog_gone() -> None:
        host.zfs("destroy", hog)

    if request.param == "quota":
        host.zfs("set", "quota=24M", dataset)
        yield quota_gone
        quota_gone()
    else:
        free = int(host.zfs("get", "-H", "-p", "-o", "value", "available", host.pool))
        host.zfs("create", "-o", "mountpoint=none", "-o", f"reservation={free - (24 << 20)}", hog)
        yield hog_gone
        if hog in host.zfs("list", "-H", "-o", "name"):
            hog_gone()


def test_no_room(repo: ZfsSpot, full: Callable[[], None]) -> None:
    content = os.urandom(40 << 20)
    with Client() as client:
        client.open(repo.address)
        with pytest.raises(DsgError) as caught:
            client.sync("tx-large-0001", {"large": content})
        assert caught.value.code == "remote_storage" and "free" in caught.value.hint
    assert tree_of(repo.folder) == BEFORE
    # What is small still fits, and the large one when there is room.
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-small-0001", {"b": b"two"})
    full()
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-large-0002", {"large": content})
    assert tree_of(repo.folder) == {**BEFORE, "b": b"two", "large": content}
    repo.check_clean()


def test_it_fills_up_while_the_files_arrive(repo: ZfsSpot) -> None:
    """The look before it is passed: the file system itself says no."""
    from tests.agent.client import changes_of, upload_body

    host, dataset = repo.host, repo.address.removeprefix("zfs:")
    content = os.urandom(40 << 20)
    with Client() as client:
        base = client.open(repo.address)
        client.begin("tx-fills-0001", base)
        changes = changes_of({"large": content}, [], {}, base.seq + 1)
        from protocol.messages import Changes, Upload
        from tests.agent.client import change_body

        client.call(Changes(repo=client.handle, txid="tx-fills-0001"), change_body(changes))
        host.zfs("set", "quota=24M", dataset)
        with pytest.raises(DsgError) as caught:
            client.call(
                Upload(repo=client.handle, txid="tx-fills-0001"), upload_body(changes, {"large": content})
            )
        assert caught.value.code == "remote_storage", caught.value
    host.zfs("set", "quota=none", dataset)
    assert tree_of(repo.folder) == BEFORE
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-after-0001", {"b": b"two"})
    repo.check_clean()


def test_the_folder_of_the_root_is_gone(repo: ZfsSpot) -> None:
    """As when what it lies in is not mounted."""
    outer = repo.root.folder / ".gen"
    repo.host.zfs("unmount", f"{repo.address.removeprefix('zfs:')}/g1")
    outer.rename(repo.root.folder / "away")
    with Client() as client, pytest.raises(DsgError, match="cannot be opened") as caught:
        client.open(repo.address)
    assert caught.value.code == "config" and "mounted" in caught.value.hint
    (repo.root.folder / "away").rename(outer)
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-after-0001", {"b": b"two"})
    assert tree_of(repo.folder) == {**BEFORE, "b": b"two"}


def test_the_daemon_does_not_answer(repo: ZfsSpot) -> None:
    from tests.hosts.zfs_fuse import zfs_fuse

    with zfs_fuse() as host, host.entered():
        host.kill()
        with Client() as client, pytest.raises(DsgError) as caught:
            client.open(f"zfs:{host.pool}/dsg/x")
        assert caught.value.code == "remote_storage" and caught.value.hint


def test_zfs_is_not_there_any_more(repo: ZfsSpot) -> None:
    """As after an upgrade that removed it: the folders are there, and the program is not."""
    program = os.path.realpath(find_program("zfs") or "")
    repo.host.run("mount", "--bind", "/dev/null", program)
    try:
        with Client() as client, pytest.raises(DsgError, match="no program zfs") as caught:
            client.open(repo.address)
        assert caught.value.code == "remote_storage" and "install ZFS" in caught.value.hint
    finally:
        repo.host.run("umount", program)
    assert tree_of(repo.folder) == BEFORE
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-after-0001", {"b": b"two"})
    repo.check_clean()


def test_a_server_without_zfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(RemoteStorageError, match="no program zfs"):
        Zfs.find()


def test_a_group_shares_what_is_made(zfs_spot: ZfsSpot) -> None:
    import grp

    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, os.getegid()))
    with Client() as client:
        client.init(zfs_spot.address, group=group.gr_name)
        client.open(zfs_spot.address)
        client.sync("tx-group-0001", {"d/a": b"1"})
    for path in (zfs_spot.folder, zfs_spot.folder / "d", zfs_spot.folder / ".dsg"):
        found = os.stat(path)
        assert found.st_gid == group.gr_gid and found.st_mode & stat.S_ISGID, path
        assert found.st_mode & stat.S_IWGRP, path
    assert os.stat(zfs_spot.folder / "d" / "a").st_gid == group.gr_gid

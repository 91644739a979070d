"""The agent as an account with delegated rights: it works, or tells an administrator what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import DsgError, NotPermittedError
from protocol.messages import Doctor, Recover
from tests.agent.client import Client, tree_of
from tests.agent.spots import ZfsSpot
from tests.conftest import find_program
from tests.hosts.accounts import Account, shared_python, unix_accounts
from tests.hosts.delegation import CONFIG, PROGRAM, RIGHTS, SUDOERS, Delegation, delegation
from tests.hosts.zfs_fuse import ZfsFuse, ZfsRoot
from tests.hosts.zfs_wrapper import forbidden

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root"), pytest.mark.timeout(300)]

FIRST = {"a": b"1", "d/b": b"2"}


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with unix_accounts(1) as (one,):
        yield one


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    """DSG and what it needs, where every account can read it."""
    folder = Path(tempfile.mkdtemp(prefix="dsg-delegated-", dir="/tmp"))
    folder.chmod(0o755)
    root = Path(__file__).resolve().parents[2]
    for package in ("protocol", "dsg_remote_agent"):
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("msgpack", "structlog"):
        shutil.copytree(__import__(name).__path__[0], folder / name)
    subprocess.run(["chmod", "-R", "go+rX", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def server(zfs_host: ZfsFuse, account: Account, source: Path) -> Iterator[Delegation]:
    with zfs_host.entered():
        root = zfs_host.make_root(f"l{os.urandom(3).hex()}")
        folder = Path(tempfile.mkdtemp(prefix="dsg-delegated-", dir="/tmp"))
        with delegation(account, root, folder) as made:
            yield made
        zfs_host.discard(root)
        shutil.rmtree(folder)


@pytest.fixture
def agent(server: Delegation, source: Path) -> Callable[..., Client]:
    """Starts an agent as the account."""

    def start(**more: Any) -> Client:
        return Client(
            python=shared_python(),
            environment={**server.environment, "PYTHONPATH": str(source)},
            cwd="/",
            user=server.account.uid,
            group=server.account.gid,
            extra_groups=[],
            umask=0o022,
            **more,
        )

    return start


def spot(host: ZfsFuse, root: ZfsRoot) -> ZfsSpot:
    return ZfsSpot(f"zfs:{root.dataset}/repo", root.folder / "repo", host, root)


def test_an_account_syncs(server: Delegation, agent: Callable[..., Client], zfs_host: ZfsFuse) -> None:
    """Made, synced, read back, recovered, with nothing mounted but by the program."""
    place = spot(zfs_host, server.root)
    with agent() as client:
        client.init(place.address)
        client.open(place.address)
        for n in range(3):
            client.sync(f"tx-delegated-{n}", {**FIRST, "n": b"%d" % n})
    assert tree_of(place.folder) == {**FIRST, "n": b"2"}
    place.check_clean()
    with agent() as client:
        record = client.open(place.address)
        assert client.get(record.seq, client.manifest()) == {**FIRST, "n": b"2"}
        client.call(Recover(repo=client.handle))
    folder = place.root.folder / ".gen" / "repo"
    assert folder.stat().st_uid == 0 and folder.stat().st_mode & 0o1000
    assert (place.folder / "a").stat().st_uid == server.account.uid
    assert not [words for words in server.commands() if forbidden(words) or words[0] in ("mount", "unmount")]


@pytest.mark.parametrize(
    "step",
    ["uploaded", "remote-prepared", "remote-checked", "remote-decided", "remote-replied"],
)
def test_an_account_recovers(
    step: str, server: Delegation, agent: Callable[..., Client], zfs_host: ZfsFuse
) -> None:
    place = spot(zfs_host, server.root)
    with agent() as client:
        client.init(place.address)
        client.open(place.address)
        client.sync("tx-first-0001", FIRST)
    killed = agent(failpoints=f"{step}=kill")
    with pytest.raises(Exception):  # noqa: B017  it is gone, or tells that it goes
        killed.open(place.address)
        killed.sync("tx-killed-001", {"a": b"2"})
        killed.next_event()
    killed.process.wait(30)
    with agent() as client:
        record = client.open(place.address)
        client.call(Recover(repo=client.handle))
        assert tree_of(place.folder) == {**FIRST, **({"a": b"2"} if record.seq == 2 else {})}
        place.check_clean()
        client.open(place.address)
        client.sync("tx-after-0001", {"a": b"3"})
    assert (place.folder / "a").read_bytes() == b"3"
    place.check_clean()


def test_what_root_renamed_is_taken_over(
    server: Delegation, agent: Callable[..., Client], zfs_host: ZfsFuse
) -> None:
    """An account that may not rename gets root's commands, and goes on when they have been run."""
    place = spot(zfs_host, server.root)
    folder = server.root.folder.with_name(f"{server.root.folder.name}-data")
    old = f"{zfs_host.pool}/{folder.name}"
    zfs_host.zfs("create", "-o", f"mountpoint={folder}", "-o", "canmount=noauto", old)
    zfs_host.attempt("zfs", "mount", old)
    (folder / "d").mkdir()
    for path, content in FIRST.items():
        (folder / path).write_bytes(content)
    before = zfs_host.zfs("list", "-H", "-r", "-t", "all", "-o", "name", zfs_host.pool)
    with agent() as client, pytest.raises(NotPermittedError, match="cannot rename") as caught:
        client.take(place.address, old)
    assert zfs_host.zfs("list", "-H", "-r", "-t", "all", "-o", "name", zfs_host.pool) == before
    assert f"zfs rename {old} {server.root.dataset}/repo/g0" in caught.value.hint
    # zfs-fuse calls a file system busy for a moment after it was unmounted.
    patient = 'zfs() { for n in 1 2 3 4 5; do command zfs "$@" && return; sleep 1; done; return 1; }'
    zfs_host.run("sh", "-ec", f"PATH=$PATH:/usr/sbin:/sbin\n{patient}\n{caught.value.hint}")
    with agent() as client:
        assert client.take(place.address, old).entries == len(FIRST)
        client.open(place.address)
        client.sync("tx-taken-0001", {"a": b"changed"})
    assert tree_of(folder) == {**FIRST, "a": b"changed"}
    assert os.readlink(folder) == str(place.folder)
    place.check_clean()
    folder.unlink()


# What is missing


def no_program(server: Delegation) -> str:
    PROGRAM.unlink()
    return f"install -o root -g root -m 0755 SOURCE/dsg_remote_agent/zfs_mount.py {PROGRAM}"


def no_configuration(server: Delegation) -> str:
    CONFIG.unlink()
    return f"echo 'root = {server.root.dataset}' > {CONFIG}"


def no_rule(server: Delegation) -> str:
    (SUDOERS / "dsg-zfs-mount").unlink()
    return f"echo '{server.account.name} ALL=(root) NOPASSWD: {PROGRAM} \"\"' > {SUDOERS}/dsg-zfs-mount"


def lacking_folders(server: Delegation) -> str:
    folders = [str(server.root.folder), str(server.root.folder / ".gen")]
    for folder in folders:
        os.chmod(folder, 0o755)
    return f"install -d -o root -g {server.account.group} -m 3775 {' '.join(folders)}"


def no_delegation(server: Delegation) -> str:
    server.allow("clone,create,mount")
    missing = [right for right in RIGHTS.split(",") if right not in ("clone", "create", "mount")]
    return f"zfs allow -u {server.account.name} {','.join(missing)} {server.root.dataset}"


def too_much(server: Delegation) -> str:
    server.allow(f"{RIGHTS},mountpoint")
    return f"zfs unallow -u {server.account.name} mountpoint {server.root.dataset}"


MISSING = [no_program, no_configuration, no_rule, lacking_folders, no_delegation, too_much]


@pytest.mark.parametrize("take", MISSING)
def test_the_doctor_prints_the_administrators_commands(
    take: Callable[[Delegation], str],
    server: Delegation,
    agent: Callable[..., Client],
    zfs_host: ZfsFuse,
    source: Path,
) -> None:
    """And when they were carried out as printed, it finds all well."""
    place = spot(zfs_host, server.root)
    with agent() as client:
        assert [c for c in client.call(Doctor(path=place.address)).checks if not c.ok] == []
    expected = take(server).replace("SOURCE", str(source))
    with agent() as client:
        (bad,) = [c for c in client.call(Doctor(path=place.address)).checks if not c.ok]
    assert expected in bad.cure.splitlines()
    if "zfs " not in expected:  # zfs-fuse has no 'allow'
        for line in bad.cure.splitlines():
            subprocess.run(["sh", "-c", line], check=True)
        with agent() as client:
            client.init(place.address)
            client.open(place.address)
            client.sync("tx-cured-0001", FIRST)
        place.check_clean()


@pytest.mark.parametrize("take", [no_program, no_configuration, no_rule, too_much])
def test_a_sync_without_the_means_changes_nothing(
    take: Callable[[Delegation], str],
    server: Delegation,
    agent: Callable[..., Client],
    zfs_host: ZfsFuse,
    source: Path,
) -> None:
    place = spot(zfs_host, server.root)
    with agent() as client:
        client.init(place.address)
        client.open(place.address)
        client.sync("tx-first-0001", FIRST)
    expected = take(server).replace("SOURCE", str(source))
    if take is too_much:
        # The program of this ZFS cannot tell what is delegated; the one that it finds first does.
        front = PROGRAM.parent / "zfs"
        tells = f'[ "$1" != allow ] || exec cat {server.folder}/allow'
        front.write_text(f'#!/bin/sh\n{tells}\nexec {find_program("zfs")} "$@"\n')
        front.chmod(0o755)
    before = place.generations()
    with agent() as client:
        client.open(place.address)
        with pytest.raises(NotPermittedError) as caught:
            client.sync("tx-without-01", {"a": b"2"})
    assert caught.value.exit_status == 14
    assert expected in caught.value.hint.splitlines(), caught.value.hint
    assert tree_of(place.folder) == FIRST and place.generations() == before
    (PROGRAM.parent / "zfs").unlink(missing_ok=True)
    with agent() as client:  # whoever only reads needs none of it
        record = client.open(place.address)
        assert record.seq == 1 and client.get(1, client.manifest()) == FIRST
    with Client() as root:
        root.open(place.address)
        root.sync("tx-root-00001", {"a": b"3"})
    place.check_clean()


def test_nothing_is_made_without_the_means(
    server: Delegation, agent: Callable[..., Client], zfs_host: ZfsFuse
) -> None:
    place = spot(zfs_host, server.root)
    no_program(server)
    with agent() as client, pytest.raises(DsgError) as caught:
        client.init(place.address)
    assert caught.value.exit_status == 14 and "install -o root" in caught.value.hint
    assert zfs_host.datasets(server.root) == []

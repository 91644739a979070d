"""The agent dies around each single ``zfs`` command; and what commands it never gives."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import DsgError, LockedError
from protocol.errors import Outcome as DsgOutcome
from protocol.messages import GetOutcome, Recover
from protocol.records import SnapshotRecord
from tests.agent.client import AgentGone, Client, changes_of, merged, tree_of
from tests.agent.spots import ZfsSpot
from tests.hosts.zfs_wrapper import ZfsWrapper, forbidden

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root"), pytest.mark.timeout(600)]

BEFORE = {"a.csv": b"one", "d/old.csv": b"two", "gone.csv": b"three", "swap": b"a file"}
PUTS = {"a.csv": b"one, changed", "d/new/deep.csv": b"four" * 5000, "swap/inner": b"now a folder"}
DELETES = ["gone.csv", "swap"]
AFTER = {**{p: c for p, c in BEFORE.items() if p not in DELETES}, **PUTS}
OLDER = {"a.csv": b"zero"}


@pytest.fixture
def wrapper(tmp_path: Path) -> ZfsWrapper:
    return ZfsWrapper(tmp_path / "wrapper")


@pytest.fixture
def repo(zfs_spot: ZfsSpot) -> ZfsSpot:
    with Client() as client:
        client.init(zfs_spot.address)
        client.open(zfs_spot.address)
        client.sync("tx-older-0001", OLDER)
        client.sync("tx-start-0001", BEFORE)
    return zfs_spot


def drive(client: Client, repo: ZfsSpot, txid: str) -> SnapshotRecord:
    base = client.open(repo.address)
    manifest = client.manifest()
    changes: list[Any] = changes_of(PUTS, DELETES, {}, base.seq + 1)
    client.begin(txid, base)
    client.stage(txid, changes, PUTS)
    record = client.prepare(txid, merged(manifest, changes))
    client.commit(txid, record)
    return record


def put_back(client: Client, repo: ZfsSpot, txid: str) -> None:
    """The tree as it was before :func:`drive`."""
    client.open(repo.address)
    back = {path: content for path, content in BEFORE.items() if AFTER.get(path) != content}
    client.sync(txid, back, [path for path in AFTER if path not in BEFORE])


def test_what_a_sync_asks_of_zfs(repo: ZfsSpot, wrapper: ZfsWrapper) -> None:
    with Client(environment=wrapper.environment) as client:
        drive(client, repo, "tx-asks-0001")
    commands = wrapper.commands()
    changing = [words[0] for words in commands if words[0] not in ("get", "list")]
    while changing[-2:] == ["destroy", "destroy"]:
        changing.pop()  # zfs-fuse lets go of a file system a moment after its unmounting
    assert changing == [
        *("clone", "set", "snapshot"),  # the transaction
        *("set", "set"),  # the old head stands still; the decision
        # After the reply; the old head may be written before it goes; the set is where 'written' is lacking.
        *("promote", "inherit", "unmount", "set", "destroy"),
    ]
    assert not [words for words in commands if forbidden(words)]
    # Each look at the datasets is a process, and the opening's is one and the question for what ZFS lacks.
    assert [words[0] for words in commands].count("get") <= 8, commands
    assert len(commands) < 30, commands
    repo.check_clean()


def test_the_log_has_every_command_with_its_time_and_request(
    repo: ZfsSpot, wrapper: ZfsWrapper, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ("--log-level", "debug", "--log-file", str(log))
    with Client(*options, environment=wrapper.environment) as client:
        drive(client, repo, "tx-logged-0001")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    noted = [line for line in lines if line["event"] == "zfs"]
    assert [line["command"] for line in noted] == wrapper.commands()
    assert all(0 < line["seconds"] < 30 for line in noted)
    (decision,) = [line for line in noted if line["command"][1].startswith("dsg:head=")]
    assert (decision["method"], decision["replied"], decision["status"]) == ("tx.commit", False, 0)
    (promote,) = [line for line in noted if line["command"][0] == "promote"]
    assert (promote["method"], promote["replied"]) == ("tx.commit", True)
    (commit,) = [line for line in lines if line["event"] == "request" and line["method"] == "tx.commit"]
    assert decision["seconds"] < commit["until_reply"] < commit["seconds"]
    assert promote["seconds"] < commit["seconds"] - commit["until_reply"]


def test_killed_around_every_command(repo: ZfsSpot, wrapper: ZfsWrapper) -> None:
    """All old or all new, the outcome is told truly, the link leads to a mounted whole tree, life goes on."""
    seq, number, seen = 2, 0, {"committed": 0, "aborted": 0}
    while True:
        number += 1
        txid = f"tx-killed-{number:04d}"
        wrapper.reset(after=(number, ""))
        killed = Client(environment=wrapper.environment)
        try:
            drive(killed, repo, txid)
            killed.close()
        except AgentGone:
            killed.process.wait(30)
        commands = wrapper.commands()
        assert not [words for words in commands if forbidden(words)]
        what = f"killed after command {number}, zfs {' '.join(commands[-1])}"
        died = len(commands) == number and killed.process.returncode == -9
        with Client() as reader:
            # Nobody has recovered yet: what was decided, and nothing else, is what readers see.
            record = reader.open(repo.address)
            committed = record.txid == txid
            expected = AFTER if committed else BEFORE
            assert record.seq == seq + committed, what
            assert reader.get(record.seq, reader.manifest()) == expected, what
        with Client() as client:
            client.open(repo.address)
            found = client.call(GetOutcome(repo=client.handle, txid=txid, seq=seq + 1))
            assert found.outcome == ("committed" if committed else "aborted"), what
            seen[found.outcome] += 1
            client.call(Recover(repo=client.handle))
            assert tree_of(repo.folder) == expected, what
            repo.check_clean()
            assert client.get(1, _older(client)) == OLDER, what
            if committed:
                put_back(client, repo, f"tx-back-{number:04d}")
            else:
                drive(client, repo, f"tx-again-{number:04d}")
                put_back(client, repo, f"tx-back-{number:04d}")
            seq = client.open(repo.address).seq
        assert tree_of(repo.folder) == BEFORE, what
        repo.check_clean()
        if not died:
            break
    assert seen["committed"] >= 4 and seen["aborted"] >= 8, seen


def _older(client: Client) -> Any:
    from protocol.manifest import Manifest
    from protocol.messages import GetSnapshot

    client.call(GetSnapshot(repo=client.handle, seq=1))
    return Manifest.from_bytes(b"".join(client.payloads))


def number_of(commands: list[list[str]], *beginning: str) -> int:
    """The number, from 1, of the first command that begins so."""
    return next(n for n, words in enumerate(commands, 1) if " ".join(words).startswith(" ".join(beginning)))


@pytest.fixture
def numbers(repo: ZfsSpot, wrapper: ZfsWrapper) -> list[list[str]]:
    """The commands of one whole sync; the repository is as before."""
    wrapper.reset()
    with Client(environment=wrapper.environment) as client:
        drive(client, repo, "tx-counts-001")
        commands = wrapper.commands()
    with Client() as client:
        put_back(client, repo, "tx-counts-002")
    return commands


def test_a_decision_that_only_seems_to_fail(
    repo: ZfsSpot, wrapper: ZfsWrapper, numbers: list[list[str]]
) -> None:
    """It is read back: what is decided is told to be committed."""
    wrapper.reset(lies=(number_of(numbers, "set", "dsg:head="), "internal error"))
    with Client(environment=wrapper.environment) as client:
        drive(client, repo, "tx-lies-0001")
    assert tree_of(repo.folder) == AFTER
    repo.check_clean()


@pytest.mark.parametrize(
    ("beginning", "said", "code"),
    [
        (("clone",), "cannot create 'x': out of space", "remote_storage"),
        (("clone",), "cannot create 'x': permission denied", "not_permitted"),
        (("snapshot",), "cannot create snapshot 'x': out of space", "remote_storage"),
        (("set", "canmount"), "cannot set property for 'x': pool is read-only", "remote_storage"),
        (("set", "dsg:head="), "cannot set property for 'x': out of space", "remote_storage"),
    ],
)
def test_a_command_that_fails_changes_nothing(
    repo: ZfsSpot,
    wrapper: ZfsWrapper,
    numbers: list[list[str]],
    beginning: tuple[str, ...],
    said: str,
    code: str,
) -> None:
    wrapper.reset(fails=(number_of(numbers, *beginning), said))
    with Client(environment=wrapper.environment) as client:
        with pytest.raises(DsgError) as caught:
            drive(client, repo, "tx-fails-001")
        assert caught.value.code == code and caught.value.hint
        assert caught.value.outcome is DsgOutcome.ABORTED
    assert tree_of(repo.folder) == BEFORE
    (repo.folder / "writable").write_bytes(b"")
    (repo.folder / "writable").unlink()
    with Client() as client:
        drive(client, repo, "tx-after-001")
    assert tree_of(repo.folder) == AFTER
    repo.check_clean()


def recover(repo: ZfsSpot) -> None:
    deadline = time.monotonic() + 10
    with Client() as client:
        client.open(repo.address)
        while True:
            try:
                client.call(Recover(repo=client.handle))
                return
            except LockedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_the_deciding_command_holds_the_lock(repo: ZfsSpot, wrapper: ZfsWrapper) -> None:
    """An agent dies while ``zfs set`` still runs: nobody begins, or says "aborted", before that ended."""
    program = wrapper.folder / "bin" / "zfs"
    go = wrapper.folder / "go"
    text = program.read_text()
    hang = f'case "$*" in set\\ dsg:head=*) kill -9 $PPID; while [ ! -e {go} ]; do sleep 0.05; done;; esac\n'
    lines = text.splitlines(keepends=True)
    program.write_text("".join([lines[0], hang, *lines[1:]]))
    killed = Client(environment=wrapper.environment)
    with pytest.raises(AgentGone):
        drive(killed, repo, "tx-holds-001")
    killed.process.wait(30)
    with Client() as client:
        client.open(repo.address)
        with pytest.raises(LockedError):
            client.begin("tx-other-001", client.head_and_manifest()[0])
        found = client.call(GetOutcome(repo=client.handle, txid="tx-holds-001", seq=3))
        assert found.outcome == "running"
        go.touch()
        for _ in range(100):
            try:
                found = client.call(GetOutcome(repo=client.handle, txid="tx-holds-001", seq=3))
            except LockedError:
                continue
            if found.outcome != "running":
                break
        assert found.outcome == "committed"
    # That is read without the lock, which the command may still hold for a moment.
    recover(repo)
    assert tree_of(repo.folder) == AFTER
    repo.check_clean()


def test_the_daemon_is_killed(tmp_path: Path) -> None:
    """As a power cut: what the agent was told to be done is there after the restart, whole."""
    from tests.hosts.zfs_fuse import zfs_fuse

    with zfs_fuse() as host, host.entered():
        root = host.make_root("cut")
        spot = ZfsSpot(f"zfs:{root.dataset}/repo", root.folder / "repo", host, root)
        with Client() as client:
            client.init(spot.address)
            client.open(spot.address)
            client.sync("tx-start-0001", BEFORE)
        for step, committed in (
            ("uploaded", False),
            ("remote-prepared", False),
            ("remote-checked", False),
            ("remote-decided", True),
            ("remote-replied", True),
        ):
            killed = Client(failpoints=f"{step}=kill")
            with pytest.raises(AgentGone):
                drive(killed, spot, f"tx-{step}")
                killed.next_event()
            killed.process.wait(30)
            host.kill()
            host.start()
            with Client() as client:
                record = client.open(spot.address)
                found = client.call(
                    GetOutcome(repo=client.handle, txid=f"tx-{step}", seq=record.seq + (not committed))
                )
                assert found.outcome == ("committed" if committed else "aborted"), step
                client.call(Recover(repo=client.handle))
                assert tree_of(spot.folder) == (AFTER if committed else BEFORE), step
                spot.check_clean()
                if committed:
                    put_back(client, spot, f"tx-back-{step}")
            assert os.path.ismount(os.path.realpath(spot.folder))

"""SIGKILL at every remote step, then a new agent: all as before or all as after, and the outcome is true."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from protocol.errors import DsgError
from protocol.manifest import Entry
from protocol.messages import GetOutcome, Recover
from protocol.records import SnapshotRecord
from protocol.transaction import STEPS, Side, StepRow
from tests.agent.client import AgentGone, Client, changes_of, merged, tree_of
from tests.agent.spots import Spot

pytestmark = pytest.mark.slow

BEFORE = {
    "a.csv": b"one",
    "d/old.csv": b"two",
    "gone.csv": b"three",
    "swap": b"a file",
    "tree/x": b"in a folder",
}
LINKS = {"link": "a.csv"}
PUTS = {
    "a.csv": b"one, changed",
    "d/new/deep.csv": b"four" * 5000,
    "swap/inner": b"now a folder",
    "tree": b"now a file",
}
DELETES = ["gone.csv", "swap", "tree/x", "link"]
TXID = "tx-crash-0001"

REMOTE = [row for row in STEPS if row.side is Side.REMOTE]


def before_tree() -> dict[str, bytes | str]:
    return {**BEFORE, **{path: f"-> {target}" for path, target in LINKS.items()}}


def after_tree() -> dict[str, bytes | str]:
    tree = {path: content for path, content in before_tree().items() if path not in DELETES}
    return {**tree, **PUTS}


@pytest.fixture
def repo(spot: Spot) -> Iterator[Spot]:
    with Client() as client:
        client.init(spot.address)
        client.open(spot.address)
        client.sync("tx-start-0001", BEFORE, links=LINKS)
    assert tree_of(spot.folder) == before_tree()
    yield spot
    check_clean(spot)


def check_clean(spot: Spot) -> None:
    """Nothing of any transaction is left."""
    spot.check_clean()
    area = spot.folder / ".dsg"
    for name in ("staging", "trash", "tmp"):
        left = [p.name for p in (area / name).iterdir()] if (area / name).exists() else []
        assert left == [], name
    assert not (area / "journal.prepared").exists()
    assert not (area / "journal.decided").exists()
    assert not (area / "rescued").exists()


def drive(client: Client, repo: Spot) -> None:
    """The transaction that is killed on the way."""
    base = client.open(repo.address)
    manifest = client.manifest()
    changes: list[Entry | str] = changes_of(PUTS, DELETES, {}, base.seq + 1)
    client.begin(TXID, base)
    client.stage(TXID, changes, PUTS)
    record = client.prepare(TXID, merged(manifest, changes))
    client.commit(TXID, record)


@pytest.mark.parametrize("row", REMOTE, ids=lambda row: row.step.value)
def test_killed_at_a_step(repo: Spot, row: StepRow) -> None:
    killed = Client(failpoints=f"{row.step.value}=kill")
    with pytest.raises(AgentGone):
        drive(killed, repo)
        killed.next_event()
    assert killed.process.wait(10) == -signal.SIGKILL, "the step was not reached"

    with Client() as reader:
        # A reader takes no lock, never recovers, and sees the last decided state.
        record = reader.open(repo.address)
        assert record.seq == (2 if row.committed else 1)
        expected = after_tree() if row.committed else before_tree()
        contents = reader.get(record.seq, reader.manifest())
        assert contents == {p: c for p, c in expected.items() if isinstance(c, bytes)}

    with Client() as client:
        client.open(repo.address)
        found = client.call(GetOutcome(repo=client.handle, txid=TXID, seq=2))
        assert found.outcome == ("committed" if row.committed else "aborted")
        if row.committed:
            assert SnapshotRecord.from_bytes(found.record).txid == TXID
        client.call(Recover(repo=client.handle))
        assert tree_of(repo.folder) == (after_tree() if row.committed else before_tree())
        # Life goes on: the same change again, or one on top of it.
        if row.committed:
            client.sync("tx-after-0001", {"more": b"m"})
        else:
            drive(client, repo)
            assert tree_of(repo.folder) == after_tree()
        old = client.get(1, [entry for entry in _entries(1) if isinstance(entry, Entry)])
        assert old == BEFORE


def _entries(seq: int) -> list[Entry | str]:
    return changes_of(BEFORE, [], {}, seq)


@pytest.mark.parametrize("row", [r for r in REMOTE if r.committed], ids=lambda row: row.step.value)
def test_the_next_sync_recovers_too(repo: Spot, row: StepRow) -> None:
    """Without asking for the outcome or a recovery: begin does it under its lock."""
    killed = Client(failpoints=f"{row.step.value}=kill")
    with pytest.raises(AgentGone):
        drive(killed, repo)
        killed.next_event()
    killed.process.wait(10)
    with Client() as client:
        client.open(repo.address)
        client.sync("tx-after-0001", {"more": b"m"})
    assert tree_of(repo.folder) == {**after_tree(), "more": b"m"}


@pytest.mark.parametrize("second", [r for r in REMOTE if r.row == 8], ids=lambda row: row.step.value)
def test_killed_again_while_recovering(repo: Spot, second: StepRow) -> None:
    killed = Client(failpoints="remote-decided=kill")
    with pytest.raises(AgentGone):
        drive(killed, repo)
    killed.process.wait(10)
    if second.step.value != "remote-replied":
        again = Client(failpoints=f"{second.step.value}=kill")
        again.open(repo.address)
        with pytest.raises(AgentGone):
            again.call(Recover(repo=again.handle))
        assert again.process.wait(10) == -signal.SIGKILL
    with Client() as client:
        client.open(repo.address)
        notes = client.call(Recover(repo=client.handle)).notes
        # On ZFS the link was all that was left to finish, and that had been done.
        assert any(TXID in note for note in notes) or repo.address.startswith("zfs:")
    assert tree_of(repo.folder) == after_tree()


@pytest.mark.parametrize(
    "row", [r for r in REMOTE if 3 < r.row < 8 and not r.committed], ids=lambda r: r.step.value
)
def test_an_error_at_a_step_leaves_all_as_before(repo: Spot, row: StepRow) -> None:
    """ENOSPC instead of death: the client hears what is full, aborts, and the same agent goes on."""
    with Client(failpoints=f"{row.step.value}=error:ENOSPC") as client:
        with pytest.raises(DsgError) as caught:
            drive(client, repo)
        assert caught.value.code == "remote_storage"
        assert "full" in caught.value.message and "free space" in caught.value.hint
    assert tree_of(repo.folder) == before_tree()
    with Client() as client:
        drive(client, repo)
    assert tree_of(repo.folder) == after_tree()


@pytest.mark.parametrize("step", ["remote-applied", "remote-published"])
def test_an_error_after_the_decision_is_a_commit_with_a_note(repo: Spot, step: str) -> None:
    with Client(failpoints=f"{step}=error:EIO") as client:
        drive(client, repo)
    with Client() as client:
        assert client.open(repo.address).seq == 2
        client.call(Recover(repo=client.handle))
    assert tree_of(repo.folder) == after_tree()


def test_every_remote_step_is_visited() -> None:
    assert {row.step.value for row in REMOTE} == {
        "remote-locked",
        "remote-begun",
        "upload-started",
        "uploaded",
        "remote-flushed",
        "remote-prepared",
        "remote-checked",
        "remote-decided",
        "remote-applied",
        "remote-published",
        "remote-replied",
    }

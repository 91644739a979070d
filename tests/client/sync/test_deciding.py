"""What is said of the server's decision is true, whatever became of its answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from dsg_client.remote import link
from dsg_client.remote.child import agent_command
from dsg_client.sync.adopt import adopt
from dsg_client.sync.deciding import commit_there
from dsg_client.sync.events import Event, Note, ignore
from dsg_client.sync.run import SyncOptions, sync
from dsg_client.sync.site import Site
from protocol.errors import (
    InterruptedSyncError,
    LinkLostError,
    LocalStorageError,
    Outcome,
    RemoteProtocolError,
)
from protocol.failpoints import parse_failpoints
from protocol.records import SnapshotRecord
from tests.client.sync.conftest import Ground

PROGRAM = Path(__file__).with_name("garbling_agent.py")


class Lines:
    """The first agent has a bad line, the later ones a good one."""

    def __init__(self, patch: pytest.MonkeyPatch, step: str, action: str = "hang:0.5") -> None:
        self.started = 0
        patch.setenv("DSG_FAILPOINTS", f"{step}={action}")
        patch.setattr(link, "agent_command", self.command)
        self._patch = patch

    def command(self, options: tuple[str, ...] = ()) -> list[str]:
        self.started += 1
        if self.started == 1:
            return [sys.executable, str(PROGRAM), *agent_command(options)]
        self._patch.delenv("DSG_FAILPOINTS", raising=False)
        return agent_command(options)


async def head(site: Site) -> SnapshotRecord:
    async with site.link.repository() as repo:
        return SnapshotRecord.from_bytes(repo.opened.head)


@pytest.fixture
async def ann(ground: Ground) -> Site:
    site = await ground.init("ann")
    (site.root / "input").mkdir()
    (site.root / "input" / "x.csv").write_text("1\n")
    return site


@pytest.mark.parametrize("step", ["remote-decided", "remote-applied", "remote-published"])
async def test_garbage_after_the_decision_does_not_undo_it(
    ann: Site, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lines = Lines(monkeypatch, step)
    result = await sync(ann, SyncOptions(), ignore)
    assert (result.state, result.seq, ann.cache().seq) == ("done", 1, 1)
    assert (await head(ann)).digest == ann.cache().record
    assert lines.started > 1, "nobody asked"


async def test_garbage_before_the_decision_undoes_both_sides(
    ann: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(monkeypatch, "remote-checked")
    with pytest.raises(RemoteProtocolError) as caught:
        await sync(ann, SyncOptions(), ignore)
    assert caught.value.outcome is Outcome.ABORTED
    assert lines.started > 1, "nobody asked"
    assert ann.cache().seq == 0
    assert not list((ann.root / ".dsg").glob("journal.*"))
    assert (await head(ann)).seq == 0


async def test_nothing_is_sent_over_a_connection_that_is_known_to_be_gone(ann: Site) -> None:
    ann.failpoints = parse_failpoints("commit-sent=error:EIO")
    async with ann.connect() as repo:
        record = SnapshotRecord.from_bytes(repo.opened.head)
        repo.agent.session.transport.abort()
        with pytest.raises(LinkLostError):
            await repo.manifest()
        with pytest.raises(LinkLostError) as caught:
            await commit_there(ann, repo, "1" * 32, record)
    assert caught.value.outcome is Outcome.ABORTED


async def test_an_error_of_this_machine_while_the_commit_is_sent_is_told_in_words(ann: Site) -> None:
    ann.failpoints = parse_failpoints("commit-sent=error:ENOSPC")
    told: list[Event] = []
    try:
        result = await sync(ann, SyncOptions(), told.append)
    except LocalStorageError as error:
        # The server had not begun when it was asked.
        assert error.outcome is Outcome.ABORTED
        assert "No space left" in error.message and "Free some space" in error.hint
        assert (await head(ann)).seq == ann.cache().seq == 0
    else:
        assert (result.seq, ann.cache().seq, (await head(ann)).seq) == (1, 1, 1)
    assert any("No space left" in event.text for event in told if isinstance(event, Note))
    assert not list((ann.root / ".dsg").glob("journal.*"))


@pytest.mark.parametrize("step", ["remote-decided", "remote-published"])
async def test_an_adoption_whose_answer_is_garbled_is_done_all_the_same(
    ann: Site, ground: Ground, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await sync(ann, SyncOptions(), ignore)
    (ground.remote / "input" / "x.csv").write_text("changed there\n")
    Lines(monkeypatch, step)
    adopted = await adopt(ground.site("ann"), dry_run=False, message="", emit=ignore)
    assert (adopted.seq, adopted.modified) == (2, ("input/x.csv",))
    assert (await head(ann)).seq == 2


async def test_an_adoption_interrupted_while_it_commits_tells_that_it_holds(
    ann: Site, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sync(ann, SyncOptions(), ignore)
    (ground.remote / "input" / "x.csv").write_text("changed there\n")
    monkeypatch.setenv("DSG_FAILPOINTS", "remote-decided=hang:1")
    task = asyncio.create_task(adopt(ground.site("ann"), dry_run=False, message="", emit=ignore))
    while not (ground.remote / ".dsg" / "journal.decided").exists():
        assert not task.done()
        await asyncio.sleep(0.01)
    monkeypatch.delenv("DSG_FAILPOINTS")
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(InterruptedSyncError) as caught:
        await task
    assert caught.value.outcome is Outcome.COMMITTED
    assert (await head(ann)).seq == 2

"""What an adoption cannot see, it says."""

from __future__ import annotations

from dsg_client.sync.adopt import adopt
from dsg_client.sync.events import Event, Note, ignore
from dsg_client.sync.run import SyncOptions, sync
from tests.client.sync.conftest import Ground


async def test_files_hidden_behind_very_many_that_are_not_synced_are_not_passed_over_in_silence(
    ground: Ground,
) -> None:
    ann = await ground.init("ann")
    (ann.root / "input").mkdir()
    (ann.root / "input" / "x").write_text("1")
    await sync(ann, SyncOptions(), ignore)
    strange = ground.remote / "a folder that nobody syncs"
    strange.mkdir()
    for number in range(1000):
        (strange / f"{number}").touch()
    (ground.remote / "input" / "new").write_text("new")
    events: list[Event] = []
    adopted = await adopt(ground.site("ann"), dry_run=False, message="", emit=events.append)
    assert adopted.seq is None
    assert any(isinstance(event, Note) and event.warning and "1 more" in event.text for event in events)
    (strange / "0").unlink()
    adopted = await adopt(ground.site("ann"), dry_run=False, message="", emit=ignore)
    assert adopted.added == ("input/new",)

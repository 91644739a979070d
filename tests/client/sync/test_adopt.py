"""An adoption looks through everything that lies on the server, however much of it is nobody's."""

from __future__ import annotations

from dsg_client.sync.adopt import adopt
from dsg_client.sync.events import ignore
from dsg_client.sync.run import SyncOptions, sync
from tests.client.sync.conftest import Ground


async def test_a_new_file_behind_a_thousand_that_are_not_synced_is_adopted(ground: Ground) -> None:
    ann = await ground.init("ann")
    (ann.root / "input").mkdir()
    (ann.root / "input" / "x").write_text("1")
    await sync(ann, SyncOptions(), ignore)
    strange = ground.remote / "a folder that nobody syncs"
    strange.mkdir()
    for number in range(1000):
        (strange / f"{number}").touch()
    (ground.remote / "input" / "new").write_text("new")
    for dry_run in (True, False):
        adopted = await adopt(ground.site("ann"), dry_run=dry_run, message="", emit=ignore)
        assert adopted.added == ("input/new",)
        assert (adopted.seq is None) is dry_run
    again = await adopt(ground.site("ann"), dry_run=False, message="", emit=ignore)
    assert again.nothing and again.seq is None

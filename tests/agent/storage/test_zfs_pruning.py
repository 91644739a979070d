"""Pruning on ZFS, closely: what is not DSG's, what is held, and what stands in use."""

from __future__ import annotations

from typing import Any

import pytest

from dsg_remote_agent.storage.zfs.command import Answer, Zfs
from protocol.errors import RemoteStorageError
from tests.agent.client import tree_of
from tests.agent.storage.ground import ZfsGround, claim
from tests.agent.storage.test_pruning import History, verdicts
from tests.hosts.zfs_wrapper import forbidden

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root")]


@pytest.fixture
def life(zfs_ground: ZfsGround) -> History:
    """s0 to s4 in generation g4."""
    made = History(zfs_ground)
    for n in range(1, 5):
        made.sync({"f": b"%d" % n, f"only{n}": b"x"})
    return made


def names(life: History) -> list[str]:
    assert isinstance(life.ground, ZfsGround)
    return life.ground.snapshots()


def zfs(life: History, *words: str) -> str:
    assert isinstance(life.ground, ZfsGround)
    answer: str = life.ground.host.zfs(*words)
    return answer


def test_nothing_of_others_is_touched(life: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their snapshots, holds and clones, and snapshots whose names only look like ours."""
    ground = life.ground
    assert isinstance(ground, ZfsGround)
    head = f"{ground.dataset}/g4"
    foreign = [f"{head}@backup", f"{head}@s99", f"{head}@s01", f"{head}@sX", f"{ground.root.dataset}@s1"]
    for name in foreign:
        zfs(life, "snapshot", name)
    zfs(life, "hold", "nightly", f"{head}@s1")
    clone = f"{ground.root.dataset}/somebodys"
    zfs(life, "clone", "-o", "mountpoint=none", f"{head}@s2", clone)
    seen: list[tuple[str, ...]] = []
    run = Zfs.run

    def noting(self: Zfs, *words: str, **options: Any) -> Answer:
        seen.append(words)
        return run(self, *words, **options)

    monkeypatch.setattr(Zfs, "run", noting)
    fates = life.prune(last=1)
    assert verdicts(fates) == {4: "keep", 3: "prune", 2: "left", 1: "keep", 0: "prune"}
    assert {f.record.seq: f.why for f in fates}[2] == "a clone stands on it"
    assert "held" in {f.record.seq: f.why for f in fates}[1]
    assert not [words for words in seen if forbidden(list(words))]
    destroyed = [words for words in seen if words[0] == "destroy"]
    assert destroyed == [("destroy", f"{head}@s{n}") for n in (0, 2, 3)]
    listed = zfs(life, "list", "-H", "-r", "-t", "snapshot", "-o", "name", ground.root.dataset).split()
    assert sorted(listed) == sorted([*foreign, *(f"{head}@s{n}" for n in (1, 2, 4))])
    life.check({1, 2, 4})
    # They let go: now it is ours to prune.
    zfs(life, "destroy", clone)
    zfs(life, "release", "nightly", f"{head}@s1")
    life.prune(last=1)
    life.check({4})
    monkeypatch.undo()
    assert tree_of(ground.folder) == life.contents[-1]


def test_without_asking_for_holds_zfs_itself_still_refuses(
    life: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold that comes between our look and our destroy: the second line of defence."""
    from dsg_remote_agent.storage.zfs import pruning

    life.protect(2)
    listed = pruning._list
    monkeypatch.setattr(
        pruning,
        "_list",
        lambda *args: {seq: one._replace(holds=0) for seq, one in listed(*args).items()},
    )
    fates = life.prune(last=1)
    assert verdicts(fates)[2] == "left"
    assert {f.record.seq: f.why for f in fates}[2] == "it was held meanwhile"
    monkeypatch.undo()
    life.check({2, 4})


def test_our_protection_goes_and_another_hold_stays(life: History) -> None:
    assert isinstance(life.ground, ZfsGround)
    head = f"{life.ground.dataset}/g4"
    life.protect(1)
    zfs(life, "hold", "nightly", f"{head}@s1")
    with pytest.raises(RemoteStorageError, match="still held by somebody else"):
        life.protect(1, on=False)
    assert life.ground.host.fails("release", "dsg", f"{head}@s1"), "ours is gone"
    life.prune(last=1)
    life.check({1, 4})
    zfs(life, "release", "nightly", f"{head}@s1")
    life.protect(1, on=False)
    life.prune(last=1)
    life.check({4})


def test_protection_moves_along_with_promotions(life: History) -> None:
    life.protect(2)
    for n in range(5, 8):
        life.sync({"f": b"%d" % n})
    assert life.prune(last=1)
    life.check({2, 7})
    assert names(life) == ["g7@s2", "g7@s7"]


def test_what_is_not_promoted_yet_is_pruned_where_it_is(
    life: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin of a generation stays until housekeeping has caught up; the rest can go."""
    run = Zfs.run

    def busy(self: Zfs, *words: str, **options: Any) -> Answer:
        if words[0] == "promote":
            return Answer(words, 1, "", "dataset is busy")
        return run(self, *words, **options)

    monkeypatch.setattr(Zfs, "run", busy)
    life.sync({"f": b"5"})
    life.sync({"f": b"6"})
    assert names(life) == ["g4@s0", "g4@s1", "g4@s2", "g4@s3", "g4@s4", "g5@s5", "g6@s6"]
    fates = life.prune(last=1)
    assert verdicts(fates) == {
        6: "keep", 5: "left", 4: "left", 3: "prune", 2: "prune", 1: "prune", 0: "prune",
    }  # fmt: skip
    life.check({4, 5, 6})
    monkeypatch.undo()
    life.ground.open().recover(claim())
    life.prune(last=1)
    life.check({6})
    assert names(life) == ["g6@s6"]


def test_what_an_administrator_destroyed_counts_as_pruned(life: History) -> None:
    assert isinstance(life.ground, ZfsGround)
    zfs(life, "destroy", f"{life.ground.dataset}/g4@s2")
    life.check({0, 1, 3, 4})
    life.prune(last=2)
    life.check({3, 4})

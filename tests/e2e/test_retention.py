"""Two people prune and protect, over SSH, on both backends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.oracle import File
from tests.e2e.world import Client, World
from tests.e2e.zfs import ZfsWorld


@pytest.fixture(params=["directory", pytest.param("zfs", marks=pytest.mark.needs("zfs-fuse", "root"))])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "directory":
        yield World(request.getfixturevalue("people"), tmp_path)
        return
    people = request.getfixturevalue("zfs_people")
    with people.zfs.entered():
        yield ZfsWorld(people, tmp_path)


def states(client: Client) -> dict[int, str]:
    """What ``dsg log`` says of each snapshot: pruned, protected, or nothing."""
    rows = client.must("log", "--json", "-n", "100").document["snapshots"]
    return {row["seq"]: "pruned" if row["pruned"] else "kept" if row["protected"] else "" for row in rows}


def test_two_people_prune_and_protect(world: World) -> None:
    ann = world.init("ann")
    for n in range(1, 7):
        ann.put_all({"input/a": File(b"%d" % n), f"input/only{n}": File(b"x%d" % n)})
        if n > 1:
            ann.put(f"input/only{n - 1}", None)
        ann.must("sync")
        if n == 2:
            bob = world.clone("bob")
    # Protecting needs the role write, pruning admin; a refusal changes nothing.
    for role, command in (("read", ("protect", "s2")), ("write", ("prune", "--keep-last", "1"))):
        bob.variables["DSG_AGENT_COMMAND"] = f"dsg-remote-agent --role {role}"
        assert bob.dsg(*command).status == 14
    bob.must("protect", "s2")
    assert states(ann) == {0: "", 1: "", 2: "kept", 3: "", 4: "", 5: "", 6: ""}

    assert ann.dsg("prune").status == 2 and ann.dsg("prune", "--keep-last", "0").status == 2
    told = ann.must("prune", "--keep-last", "2", "--dry-run").out
    assert "prune  s1 " in told and "4 snapshots would be pruned, 3 kept; nothing was changed" in told
    assert states(ann) == {0: "", 1: "", 2: "kept", 3: "", 4: "", 5: "", 6: ""}
    found = ann.must("prune", "--keep-last", "2", "--json").document
    assert (found["pruned"], found["kept"], found["left"]) == (4, 3, 0)
    assert {row["seq"]: row["verdict"] for row in found["snapshots"]} == {
        6: "keep", 5: "keep", 4: "prune", 3: "prune", 2: "keep", 1: "prune", 0: "prune",
    }  # fmt: skip
    expected = {0: "pruned", 1: "pruned", 2: "kept", 3: "pruned", 4: "pruned", 5: "", 6: ""}
    assert states(bob) == states(ann) == expected
    assert "pruned: only its record is left" in ann.must("log").out
    ended = ann.dsg("protect", "s3")
    assert ended.status == 2 and "s2 and s5" in ended.err, ended
    assert ann.dsg("protect", "s77").status == 2 and ann.dsg("protect", "nonsense").status == 2

    # Bob is in step with s2, and everything goes on.
    del bob.variables["DSG_AGENT_COMMAND"]
    bob.put("input/bobs", File(b"bob"))
    bob.must("sync")
    ann.must("sync")
    assert ann.local() == bob.local()
    cat = world.clone("cat")
    assert cat.local() == ann.local()
    bob.must("protect", "s2", "--remove")
    bob.must("prune", "--keep-last", "1")
    assert {seq for seq, state in states(cat).items() if state != "pruned"} == {7}
    assert ann.must("prune", "--keep-last", "1").out.startswith("0 snapshots pruned, 1 kept")
    assert ann.must("doctor").status == 0
    cat.put("input/a", File(b"last"))
    cat.must("sync")
    ann.must("sync")
    assert ann.local() == cat.local()
    if isinstance(world, ZfsWorld):
        world.settled()


def test_a_folder_whose_last_snapshot_was_pruned_syncs_as_ever(world: World) -> None:
    ann = world.init("ann")
    ann.put_all({"input/a": File(b"1"), "input/b": File(b"1")})
    ann.must("sync")
    bob = world.clone("bob")
    for n in range(2, 5):
        ann.put("input/a", File(b"%d" % n))
        ann.must("sync")
    ann.must("prune", "--keep-last", "1")
    # A conflict, and a change of its own, judged by the C that only this folder has.
    bob.put("input/a", File(b"bob's"))
    assert bob.sync().status == 3
    bob.put("input/a", File(b"1"))
    bob.put("input/b", File(b"bob's"))
    bob.must("sync")
    assert bob.local() == {"input/a": File(b"4"), "input/b": File(b"bob's")}


def test_another_repository_at_the_address_is_not_pruned(world: World) -> None:
    ann = world.init("ann")
    ann.put("input/a", File(b"1"))
    ann.must("sync")
    settings = ann.folder / ".dsgconfig.yml"
    other = world.address + "-other"
    eve = world.client("eve")
    eve.must("init", other)
    settings.write_text(settings.read_text().replace(world.address, other))
    for command in (("prune", "--keep-last", "1"), ("protect", "s0")):
        ended = ann.dsg(*command)
        assert ended.status == 8 and "another repository" in ended.err, ended

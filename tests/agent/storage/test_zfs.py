"""The ZFS backend, closely; and each of its safety mechanisms taken away, to see that it is missed."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from dsg_remote_agent.storage.base import Outcome
from dsg_remote_agent.storage.zfs import cleaning, clone, deciding, repository, standing
from dsg_remote_agent.storage.zfs.advising import judge
from dsg_remote_agent.storage.zfs.clone import Clone
from dsg_remote_agent.storage.zfs.command import Answer, Trouble, Zfs
from dsg_remote_agent.storage.zfs.names import HeadValue, generation_number, parse_dataset
from dsg_remote_agent.storage.zfs.privileges import held_rights
from dsg_remote_agent.storage.zfs.site import Site
from dsg_remote_agent.storage.zfs.standing import Standing
from protocol.errors import DsgError, IntegrityError, LockedError, RemoteStorageError, UsageError
from protocol.transaction import Step
from tests.agent.client import tree_of
from tests.agent.storage.ground import CallAt, ZfsGround, claim

zfs = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root")]


def on_zfs(test: Any) -> Any:
    for mark in zfs:
        test = mark(test)
    return test


@pytest.fixture
def filled(zfs_ground: ZfsGround) -> ZfsGround:
    zfs_ground.sync({"a": b"one", "d/b": b"two"})
    return zfs_ground


# Names and answers; these need no ZFS.


def test_the_heads_value_reads_back() -> None:
    value = HeadValue(124, 131, "tx-0123456789", "sha256:" + "0" * 64)
    assert str(value) == f"g124@s131:tx-0123456789:sha256:{'0' * 64}"
    assert HeadValue.parse(str(value), "x") == value
    first = HeadValue(0, 0, "", "sha256:" + "0" * 64)
    assert HeadValue.parse(str(first), "x") == first


@pytest.mark.parametrize(
    "text",
    ["", "-", "g1", "g1@s1", "g1@s1:tx:", "g01@s1:tx:sha256:00", "g1@s1:t x:sha256:00", "g1@s-1:t:x:y"],
)
def test_a_damaged_value_is_no_head(text: str) -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        HeadValue.parse(text, "tank/x")


@pytest.mark.parametrize(
    "name",
    [
        *("tank", "", "/tank/x", "tank/x/", "tank//x", "tank/x@s", "tank/x#b", "tank/-r", "-r/x", "tank/.."),
        *("tank/x y", "tank/x\ny", "tank/x%", "tank/ü", "tank/" + "x" * 65, "tank/" + "x/" * 120 + "y"),
    ],
)
def test_what_is_no_dataset(name: str) -> None:
    with pytest.raises(UsageError):
        parse_dataset(name)


@pytest.mark.parametrize(
    ("name", "number"), [("p/r/g0", 0), ("p/r/g12", 12), ("p/r/g", None), ("p/g01", None)]
)
def test_the_number_of_a_generation(name: str, number: int | None) -> None:
    assert generation_number(name) == number


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ("cannot unmount '/x': pool or dataset is busy", Trouble.BUSY),
        ("umount: /x: target is busy.", Trouble.BUSY),
        ("cannot create 'x': permission denied", Trouble.DENIED),
        ("filesystem successfully created, but it may only be mounted by root", Trouble.DENIED),
        ("cannot promote 'x': not a cloned filesystem", Trouble.NO_ORIGIN),
        ("cannot open 'x': dataset does not exist", Trouble.MISSING),
        ("cannot create snapshot 'x': out of space", Trouble.FULL),
        ("cannot mount 'x': encryption key not loaded", Trouble.KEY),
        ("bad property list: invalid property 'written'", Trouble.LACKING),
        ("cannot destroy 'x': filesystem has children", Trouble.HAS_CHILDREN),
        ("The ZFS modules are not loaded.", Trouble.ABSENT),
        ("something new", Trouble.OTHER),
    ],
)
def test_what_a_command_complains_of(said: str, trouble: Trouble) -> None:
    assert Answer(("x",), 1, "", said).trouble is trouble
    assert Answer(("x",), 0, "", said).trouble is Trouble.NONE
    assert Answer(("x",), None, "", said).trouble is Trouble.TIMEOUT


TOLD = """\
---- Permissions on tank/dsg/deep ------------------------------------
Local permissions:
\tuser agent destroy
Local+Descendent permissions:
\tuser agent clone,create
\tuser other mountpoint
\tgroup research @basic
---- Permissions on tank/dsg -----------------------------------------
Permission sets:
\t@basic mount,snapshot,@more
\t@more userprop
Create time permissions:
\trollback
Descendent permissions:
\teveryone hold
---- Permissions on tank/dsg/deep ------------------------------------
Descendent permissions:
\tuser agent promote
"""


def test_what_an_account_holds() -> None:
    """By name, by group, by set, from above; not what is another's, or holds on the root alone."""
    held = held_rights(TOLD, "tank/dsg/deep", "agent", {"research"})
    assert held == {"clone", "create", "mount", "snapshot", "userprop", "hold"}
    assert held_rights(TOLD, "tank/dsg/deep", "other", set()) == {"mountpoint", "hold"}
    assert held_rights("", "tank/dsg", "agent", set()) == set()


@pytest.mark.parametrize(
    "said",
    [
        "cannot mount 'x': Insufficient privileges",
        "dsg-zfs-mount: refused: others may write to it",
        "dsg-zfs-mount: not configured: /etc/dsg/zfs-mount.conf: No such file or directory",
        "sudo: a password is required",
        "umount: /x: must be superuser to unmount.",
    ],
)
def test_what_is_denied(said: str) -> None:
    assert Answer(("mount",), 1, "", said).trouble is Trouble.DENIED


USUAL = {
    "atime": "off",
    "compression": "lz4",
    "recordsize": "131072",
    "dedup": "off",
    "sync": "standard",
    "copies": "1",
    "casesensitivity": "sensitive",
    "normalization": "none",
    "utf8only": "off",
    "snapdir": "hidden",
    "xattr": "sa",
    "acltype": "posixacl",
    "exec": "on",
    "setuid": "off",
    "devices": "off",
    "quota": "0",
    "refquota": "0",
    "reservation": "0",
    "refreservation": "0",
    "encryption": "off",
    "keystatus": "-",
    "available": "1099511627776",
}


def test_what_is_usual_needs_no_advice() -> None:
    assert list(judge(USUAL, "tank/dsg/x")) == []
    assert list(judge({}, "tank/dsg/x")) == []
    assert list(judge(dict.fromkeys(USUAL, "-"), "tank/dsg/x")) == []
    assert list(judge({**USUAL, "recordsize": str(1 << 20), "sync": "always"}, "tank/dsg/x")) == []


@pytest.mark.parametrize(
    ("prop", "value", "command", "grave"),
    [
        ("atime", "on", "zfs set atime=off tank/dsg/x", False),
        ("compression", "off", "zfs set compression=on tank/dsg/x", False),
        ("recordsize", "4096", "zfs set recordsize=128K tank/dsg/x", False),
        ("recordsize", str(16 << 20), "zfs set recordsize=128K tank/dsg/x", False),
        ("dedup", "on", "zfs set dedup=off tank/dsg/x", False),
        ("dedup", "verify", "zfs set dedup=off tank/dsg/x", False),
        ("sync", "disabled", "zfs set sync=standard tank/dsg/x", True),
        ("copies", "2", "zfs set copies=1 tank/dsg/x", False),
        ("casesensitivity", "insensitive", "", False),
        ("normalization", "formD", "", False),
        ("utf8only", "on", "", False),
        ("snapdir", "visible", "zfs set snapdir=hidden tank/dsg/x", False),
        ("xattr", "on", "zfs set xattr=sa tank/dsg/x", False),
        ("exec", "off", "zfs set exec=on tank/dsg/x", False),
        ("setuid", "on", "zfs set setuid=off tank/dsg/x", False),
        ("devices", "on", "zfs set devices=off tank/dsg/x", False),
        ("quota", str(100 << 20), "zfs set quota=SIZE tank/dsg/x", False),
        ("refquota", str(100 << 20), "zfs set refquota=SIZE tank/dsg/x", False),
        ("reservation", str(1 << 30), "zfs set reservation=none tank/dsg/x", False),
        ("keystatus", "unavailable", "", True),
        ("available", str(5 << 20), "zfs list -o space tank/dsg/x", False),
    ],
)
def test_what_is_unusual_is_explained(prop: str, value: str, command: str, grave: bool) -> None:
    (one,) = judge({**USUAL, prop: value}, "tank/dsg/x")
    assert (one.prop, one.command, one.grave) == (prop, command, grave)
    assert len(one.text) > len(prop) + 20


def test_a_command_that_hangs_is_given_up(tmp_path: Path) -> None:
    program = tmp_path / "zfs"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    began = time.monotonic()
    assert Zfs(str(program)).run("get", limit=0.2).trouble is Trouble.TIMEOUT
    assert time.monotonic() - began < 5


# One sync


@on_zfs
def test_syncs_leave_one_generation(zfs_ground: ZfsGround) -> None:
    for n in range(6):
        zfs_ground.sync({"a": b"%d" % n, f"d/{n}": b"x"}, ["d/0"] if n == 3 else [])
    assert tree_of(zfs_ground.folder) == {"a": b"5", **{f"d/{n}": b"x" for n in (1, 2, 3, 4, 5)}}
    assert zfs_ground.generations() == ["g6"]
    assert zfs_ground.snapshots() == [f"g6@s{n}" for n in range(7)]
    assert os.readlink(zfs_ground.folder) == ".gen/repo/g6"


@on_zfs
def test_nobody_sees_the_change_before_the_decision(filled: ZfsGround) -> None:
    seen: list[Any] = []
    filled.failpoints = CallAt(Step.REMOTE_CHECKED, lambda: seen.append(tree_of(filled.folder)))
    filled.sync({"a": b"new"}, ["d/b"])
    assert seen == [{"a": b"one", "d/b": b"two"}]
    assert tree_of(filled.folder) == {"a": b"new"}


GROUP = 54321
MOMENTS = (Step.REMOTE_BEGUN, Step.UPLOADED, Step.REMOTE_FLUSHED)


@pytest.fixture
def shared(filled: ZfsGround) -> ZfsGround:
    """A repository whose folders a group may write to."""
    for folder in (filled.folder, filled.folder / "d"):
        os.chown(folder, -1, GROUP)
        os.chmod(folder, 0o2775)
    (filled.folder / "notes.txt").write_bytes(b"so that all of it is taken over")
    filled.sync({"a": b"two"})
    return filled


def written_by_a_member(ground: ZfsGround, step: Step) -> bool:
    """Whether somebody else of that group could write to the clone of a sync, at this step."""
    written: list[bool] = []

    def write() -> None:
        clone = ground.area.parent / f"g{max(int(name[1:]) for name in ground.generations())}"
        word = f"echo x > {clone}/d/of-a-member"
        done = subprocess.run(["sh", "-c", word], user=12345, group=GROUP, extra_groups=[], check=False)
        written.append(done.returncode == 0)

    ground.failpoints = CallAt(step, write)
    ground.sync({"a": step.value.encode()})
    return written == [True]


@on_zfs
def test_nobody_else_writes_to_the_clone(shared: ZfsGround) -> None:
    """And its folder's mode is what it was, in the tree and in the snapshot."""
    for step in MOMENTS:
        assert not written_by_a_member(shared, step), step
        assert stat.S_IMODE(os.stat(shared.folder).st_mode) == 0o2775
    assert not (shared.folder / "d" / "of-a-member").exists()
    shared.host.zfs("rollback", f"{shared.dataset}/{shared.generations()[0]}@s{len(MOMENTS) + 2}")
    assert stat.S_IMODE(os.stat(shared.folder).st_mode) == 0o2775
    # Of what is written once the snapshot is there it is told that it was not synced.
    assert written_by_a_member(shared, Step.REMOTE_PREPARED)
    assert shared.open().find_outside(lambda _: None).added == ("d/of-a-member", "notes.txt")


@on_zfs
@pytest.mark.parametrize("step", MOMENTS, ids=lambda step: step.value)
def test_with_an_open_clone_it_would_be_in_the_snapshot(
    shared: ZfsGround, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """The control."""
    monkeypatch.setattr(clone, "shut", lambda _: None)
    assert written_by_a_member(shared, step)
    newest = len(shared.snapshots()) - 1
    shared.host.zfs("rollback", f"{shared.dataset}/{shared.generations()[0]}@s{newest}")
    assert (shared.folder / "d" / "of-a-member").read_bytes() == b"x\n"


@on_zfs
def test_strays_go_along(filled: ZfsGround) -> None:
    (filled.folder / "notes.txt").write_bytes(b"somebody's")
    filled.sync({"a": b"new"})
    assert tree_of(filled.folder) == {"a": b"new", "d/b": b"two", "notes.txt": b"somebody's"}
    filled.sync({"a": b"newer"})
    assert (filled.folder / "notes.txt").read_bytes() == b"somebody's"
    assert not [name for name in filled.snapshots() if "base" in name]
    assert filled.generations() == ["g3"]


def bases(ground: ZfsGround) -> list[str]:
    """The snapshots of heads that were written to, which transactions take for themselves."""
    return [name for name in ground.snapshots() if "@base-" in name]


@on_zfs
def test_what_a_busy_generation_stands_on_goes_when_it_does(filled: ZfsGround) -> None:
    (filled.folder / "notes.txt").write_bytes(b"somebody's")
    inside = os.open(filled.folder, os.O_RDONLY)
    try:
        filled.sync({"a": b"new"})
        assert filled.generations() == ["g1", "g2"] and len(bases(filled)) == 1
        filled.sync({"a": b"newer"})
        assert "g1" in filled.generations() and bases(filled)
    finally:
        os.close(inside)
    filled.sync({"a": b"newest"})
    assert filled.generations() == ["g4"] and not bases(filled)


@on_zfs
def test_what_a_running_transaction_is_about_to_clone_is_left_alone(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Housekeeping has no part in the transactions' lock: it may come between the snapshot and its clone."""
    (filled.folder / "notes.txt").write_bytes(b"somebody's")
    inside = os.open(filled.folder, os.O_RDONLY)
    try:
        filled.sync({"a": b"new"})
        original, seen = Clone.make, []

        def cleaned_before(site: Site, *given: Any) -> Clone:
            cleaning.clean(site)
            seen.extend(bases(filled))
            return original(site, *given)

        monkeypatch.setattr(Clone, "make", cleaned_before)
        filled.sync({"a": b"newer"})
        assert len(seen) == 2
    finally:
        os.close(inside)
    assert tree_of(filled.folder)["a"] == b"newer"


@on_zfs
@pytest.mark.parametrize("command", ["list", "destroy"])
def test_an_abort_that_fails_half_way_lets_people_write_again(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (filled.folder / "notes.txt").write_bytes(b"somebody's")
    transaction = filled.begin(filled.open())
    with pytest.raises(OSError, match="Read-only"):
        (filled.folder / "notes.txt").write_bytes(b"while it is frozen")
    original = Zfs.run

    def fails(self: Zfs, *words: str, **options: Any) -> Answer:
        if words[0] == command:
            raise BlockingIOError(11, "no more processes")
        return original(self, *words, **options)

    monkeypatch.setattr(Zfs, "run", fails)
    with pytest.raises(BlockingIOError):
        transaction.abort()
    monkeypatch.undo()
    (filled.folder / "notes.txt").write_bytes(b"and on")
    filled.sync({"a": b"new"})
    assert filled.generations() == ["g2"] and not bases(filled)


@on_zfs
def test_somebody_elses_snapshot_of_an_unfinished_clone_is_told_for_what_it_is(filled: ZfsGround) -> None:
    """As an administrator's 'zfs snapshot -r' makes it: the clone stays, and why, and what to do, is said."""
    transaction = filled.begin(filled.open())
    name = f"{filled.dataset}/g2@of-tuesday"
    filled.host.zfs("snapshot", name)
    filled.die(transaction)
    (note,) = filled.open().recover(claim())
    assert name in note and "not DSG's" in note and "in use" not in note and "dsg recover" in note
    filled.sync({"a": b"new"})
    assert name.rpartition("/")[2] in filled.snapshots()
    filled.host.zfs("destroy", name)
    filled.open().recover(claim())
    assert filled.generations() == ["g3"]


@on_zfs
def test_a_transaction_called_as_a_committed_one_is_undone(filled: ZfsGround) -> None:
    txid = filled.open().head()[1].txid
    for _ in range(2):  # and the next that is called so
        filled.die(filled.begin(filled.open(), txid))
    notes = filled.open().recover(claim())
    assert f"undid the unfinished transaction {txid}" in notes
    assert filled.generations() == ["g1"]


@on_zfs
def test_what_cleaning_had_to_tell_is_told_also_when_it_breaks_off(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.host.zfs("snapshot", f"{filled.dataset}/g1@of-tuesday")

    def fails(*_: Any) -> None:
        raise RemoteStorageError("the pool does not answer", hint="")

    monkeypatch.setattr(cleaning, "_destroy_old_bases", fails)
    repository = filled.open()
    transaction, record = filled.prepare(repository, {"a": b"new"})
    transaction.commit(record.digest, lambda: None)
    (note,) = transaction.tidy()
    repository.close()
    assert "g1 is kept" in note and "of-tuesday" in note


@on_zfs
def test_an_unfinished_clone_that_is_in_use_is_told_to_be(filled: ZfsGround) -> None:
    transaction = filled.begin(filled.open())
    filled.die(transaction)
    inside = os.open(filled.area.parent / "g2", os.O_RDONLY)
    try:
        (note,) = filled.open().recover(claim())
    finally:
        os.close(inside)
    assert "g2" in note and "it is in use" in note


@on_zfs
def test_without_a_snapshot_of_its_own_they_are_left_behind(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: cloned from the head's snapshot, the new tree lacks what was added since."""
    monkeypatch.setattr(
        Standing, "origin", lambda self, *_: f"{self._view.generation.name}@s{self._head.seq}"
    )
    monkeypatch.setattr(Standing, "check", lambda *_: None)
    (filled.folder / "notes.txt").write_bytes(b"somebody's")
    filled.sync({"a": b"new"})
    assert not (filled.folder / "notes.txt").exists()
    # And that is where the next mechanism holds: the old tree, which has it, is not destroyed.
    assert (filled.area.parent / "g1" / "notes.txt").read_bytes() == b"somebody's"


@on_zfs
def test_without_that_either_they_are_gone(filled: ZfsGround, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Standing, "origin", lambda self, *_: f"{self._view.generation.name}@s{self._head.seq}"
    )
    monkeypatch.setattr(Standing, "check", lambda *_: None)
    monkeypatch.setattr(cleaning, "_differs", lambda *_: False)
    (filled.folder / "notes.txt").write_bytes(b"somebody's")
    filled.sync({"a": b"new"})
    assert not list(filled.area.parent.rglob("notes.txt"))


@on_zfs
def test_while_the_link_is_behind_nothing_is_cleaned_away(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link cannot be swapped: people stay with the old tree, and it stays with them."""

    def full() -> None:
        raise OSError(28, "No space left on device")

    filled.failpoints = CallAt(Step.REMOTE_DECIDED, full)
    filled.sync({"a": b"new"})
    assert tree_of(filled.folder)["a"] == b"one"
    assert filled.generations() == ["g1", "g2"]
    opened = filled.open()
    _, record, unapplied = opened.head()
    assert (record.seq, unapplied) == (2, True)
    opened.recover(claim())
    assert tree_of(filled.folder)["a"] == b"new" and not opened.head()[2]
    assert filled.generations() == ["g2"]


# The old head stands still.


@on_zfs
def test_nobody_writes_to_the_old_head_at_the_decision(filled: ZfsGround) -> None:
    refused: list[OSError] = []

    def write() -> None:
        try:
            (filled.folder / "a").write_bytes(b"a moment too late")
        except OSError as error:
            refused.append(error)

    filled.failpoints = CallAt(Step.REMOTE_CHECKED, write)
    filled.sync({"d/b": b"new"})
    assert len(refused) == 1 and "Read-only" in str(refused[0])
    assert tree_of(filled.folder) == {"a": b"one", "d/b": b"new"}


@on_zfs
def test_without_the_freeze_an_edit_vanishes_from_sight(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: it succeeds, and the head that people are then led to does not have it."""
    monkeypatch.setattr(standing, "freeze", lambda *_: None)
    filled.failpoints = CallAt(
        Step.REMOTE_CHECKED, lambda: (filled.folder / "a").write_bytes(b"a moment too late")
    )
    filled.sync({"d/b": b"new"})
    assert tree_of(filled.folder)["a"] == b"one"
    assert (filled.area.parent / "g1" / "a").read_bytes() == b"a moment too late"


@on_zfs
def test_a_freeze_that_does_nothing_is_noticed(filled: ZfsGround, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Zfs.run

    def no_read_only(self: Zfs, *words: str, **options: Any) -> Answer:
        if words[:2] == ("set", "readonly=on"):
            return Answer(words, 0, "", "")
        return original(self, *words, **options)

    monkeypatch.setattr(Zfs, "run", no_read_only)
    transaction, record = filled.prepare(filled.open(), {"a": b"new"})
    with pytest.raises(RemoteStorageError, match="read-only"):
        transaction.commit(record.digest, lambda: None)
    transaction.abort()
    assert tree_of(filled.folder)["a"] == b"one" and filled.generations() == ["g1"]


# The fence, and the decision.


@on_zfs
def test_without_the_fence_an_aborted_transaction_can_commit(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: an outcome that does not settle first says "aborted", and then it commits after all."""
    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-asked-001")
    fcntl.flock(transaction._held.fileno(), fcntl.LOCK_UN)
    monkeypatch.setattr(repository, "settle", lambda *_: ([], None))
    assert filled.open().outcome(claim("tx-asked-001"), 2)[0] is Outcome.ABORTED
    transaction.commit(record.digest, lambda: None)
    assert tree_of(filled.folder)["a"] == b"new", "aborted was a lie: this is what the fence prevents"


@on_zfs
def test_with_the_fence_it_cannot_even_while_somebody_looks_into_it(filled: ZfsGround) -> None:
    """The clone is in use and cannot be destroyed; its snapshot can, and without that nothing commits."""
    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-asked-001")
    fcntl.flock(transaction._held.fileno(), fcntl.LOCK_UN)
    inside = os.open(filled.area.parent / "g2", os.O_RDONLY)
    try:
        assert filled.open().outcome(claim("tx-asked-001"), 2)[0] is Outcome.ABORTED
        with pytest.raises(IntegrityError, match="gone"):
            transaction.commit(record.digest, lambda: None)
    finally:
        os.close(inside)
        transaction.abort()
    assert tree_of(filled.folder)["a"] == b"one"
    filled.sync({"a": b"later"})
    assert len(filled.generations()) == 1 and tree_of(filled.folder)["a"] == b"later"


@on_zfs
def test_a_decision_that_cannot_be_told_is_in_doubt(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command hangs: neither committed nor aborted may be said, and nothing is undone."""
    original = Zfs.run

    def hangs(self: Zfs, *words: str, **options: Any) -> Answer:
        if words[0] == "set" and words[1].startswith("dsg:head"):
            return Answer(words, None, "", "")
        return original(self, *words, **options)

    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-doubt-001")
    monkeypatch.setattr(Zfs, "run", hangs)
    with pytest.raises(DsgError) as caught:
        transaction.commit(record.digest, lambda: None)
    assert caught.value.outcome.value == "in_doubt"
    monkeypatch.undo()
    assert "g2" in filled.generations()
    # It never came to it: whoever has the lock next says so.
    assert filled.open().outcome(claim("tx-doubt-001"), 2)[0] is Outcome.ABORTED
    assert filled.generations() == ["g1"]


@on_zfs
def test_committed_is_said_of_what_is_on_the_disk(filled: ZfsGround, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another agent decided can be seen before it is: a command that succeeds must come after it."""
    transaction, record = filled.prepare(filled.open(), {"a": b"new"}, txid="tx-asked-001")
    transaction.commit(record.digest, lambda: None)
    original = Zfs.run

    def fails(self: Zfs, *words: str, **options: Any) -> Answer:
        return Answer(words, 1, "", "I/O error") if words[0] == "set" else original(self, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Zfs, "run", fails)
        with pytest.raises(DsgError) as caught:
            filled.open().outcome(claim("tx-asked-001"), 2)
    assert caught.value.outcome.value == "in_doubt"
    assert filled.open().outcome(claim("tx-asked-001"), 2)[0] is Outcome.COMMITTED
    told = filled.host.zfs("get", "-H", "-o", "value", "dsg:asked", filled.dataset)
    assert told == "tx-asked-001\n"
    transaction.tidy()


@on_zfs
def test_without_the_lock_in_the_deciding_child_others_begin(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control for the child that inherits it, in one process: what was passed on decides."""
    passed: list[int | None] = []
    original = Zfs.run

    def noting(self: Zfs, *words: str, **options: Any) -> Answer:
        if words[0] in ("clone", "snapshot", "set"):
            passed.append(options.get("lock"))
        return original(self, *words, **options)

    monkeypatch.setattr(Zfs, "run", noting)
    transaction, record = filled.prepare(filled.open(), {"a": b"new"})
    lock = transaction._held.fileno()
    transaction.commit(record.digest, lambda: None)
    assert passed and set(passed) == {lock}


# What is found broken.


@on_zfs
def test_a_rolled_back_head_is_noticed(filled: ZfsGround) -> None:
    filled.sync({"a": b"two"})
    filled.host.zfs("set", "dsg:head=g2@s1:tx-ground-001:sha256:" + "0" * 64, filled.dataset)
    with pytest.raises(IntegrityError, match="holds snapshot s2"):
        filled.open()


@on_zfs
def test_an_unmounted_head_is_mounted_by_the_next(filled: ZfsGround) -> None:
    filled.host.zfs("unmount", f"{filled.dataset}/g1")
    assert tree_of(filled.folder) == {}
    filled.sync({"e": b"three"})
    assert tree_of(filled.folder) == {"a": b"one", "d/b": b"two", "e": b"three"}


@on_zfs
def test_what_else_is_mounted_there_is_not_taken_for_the_head(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.host.zfs("unmount", f"{filled.dataset}/g1")
    filled.host.zfs("create", "-o", f"mountpoint={filled.area.parent}/g1", f"{filled.root.dataset}/elsewhere")
    original = Zfs.run

    def mounts_nothing(self: Zfs, *words: str, **options: Any) -> Answer:
        return Answer(words, 0, "", "") if words[0] == "mount" else original(self, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Zfs, "run", mounts_nothing)
        with pytest.raises(RemoteStorageError, match="elsewhere mounted, and not"):
            filled.open()
    # zfs-fuse mounts one over the other: then it is the right one again.
    filled.open().close()
    assert tree_of(filled.folder) == {"a": b"one", "d/b": b"two"}


@on_zfs
def test_the_lock_in_another_process_excludes(filled: ZfsGround) -> None:
    with open(filled.area / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockedError):
            filled.begin(filled.open())
    filled.begin(filled.open()).abort()
    assert filled.generations() == ["g1"]


@pytest.mark.parametrize("unseen", [RemoteStorageError("it cannot be seen"), OSError("no more processes")])
def test_nothing_decides_without_reading_back(unseen: Exception) -> None:
    """What decide() does with each answer, whatever ZFS says and then shows."""
    before = HeadValue(1, 1, "tx-before-001", "sha256:" + "0" * 64)
    value = HeadValue(2, 2, "tx-after-0001", "sha256:" + "1" * 64)

    class Shown:
        def __init__(self, head: HeadValue | None) -> None:
            self.head = head

    class Place:
        dataset, shown = "tank/x", "zfs:tank/x"

        def __init__(self, status: int | None, now: HeadValue | None, then: int) -> None:
            self.zfs = self
            self._status, self._now, self._then = status, now, then

        def run(self, *words: str, **_: Any) -> Answer:
            status = self._status if words[1].startswith("dsg:head=") else self._then
            return Answer(words, status, "", "I/O error")

        def survey(self) -> Shown:
            if self._now is None:
                raise unseen
            return Shown(self._now)

    # The answer to the decision, what is seen then, and the answer to the command that confirms that.
    for status, now, then, outcome in (
        (0, None, 1, None),
        (1, value, 0, None),
        (1, value, 1, "in_doubt"),
        (1, before, 0, "aborted"),
        (1, None, 0, "in_doubt"),
        (None, value, 0, None),
        (None, value, 1, "in_doubt"),
        (None, before, 0, "in_doubt"),
        (None, None, 0, "in_doubt"),
    ):
        place: Any = Place(status, now, then)
        try:
            deciding.decide(place, value, before, 0)
            told = None
        except DsgError as error:
            told = error.outcome.value
        assert told == outcome, (status, now, then)

"""Every row of the table of steps: whoever dies or fails there, all is as before or all as after.

The steps come from ``protocol.transaction.STEPS`` itself. Every test shows
that its step was reached; a step that the sync does not come to fails here.
Then the next command settles what is open (``sync``, ``recover``) or looks at
it (``status``), the verdict is read from L, C and R on disk, and what the
broken command itself had said must have been true.

``DSG_FULL=1`` runs every combination of step, fault, next command and way to
the server. Without it a side is killed at each step, and the rest is dealt
out, or takes turns from run to run.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from protocol.transaction import STEPS, Side, Step, StepRow
from tests.crash.scene import FULL, Scene, Verdict, everything, files_of, only_downloads, pending
from tests.e2e.oracle import photograph
from tests.e2e.world import Ended, World

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

NEXT = ("recover", "sync", "status")
LOCAL = [row for row in STEPS if row.side is Side.LOCAL]
REMOTE = [row for row in STEPS if row.side is Side.REMOTE]


def name_of(value: object) -> str | None:
    return value.step.value if isinstance(value, StepRow) else None


def dealt() -> list[tuple[StepRow, str, bool]]:
    """Step, next command, and whether the agent is near; in short runs each step is met once.

    What a child process says is the client's to show or not: the agent's own steps are met over SSH.
    """
    ways = {Side.LOCAL: (False, True), Side.REMOTE: (False,)}
    if FULL:
        return [(row, then, near) for row in STEPS for then in NEXT for near in ways[row.side]]
    turns = [(row, NEXT[number % len(NEXT)], number % 2) for number, row in enumerate(STEPS)]
    return [(row, then, ways[row.side][turn % len(ways[row.side])]) for row, then, turn in turns]


def stop_at(scene: Scene, row: StepRow, action: str, *command: str) -> Ended:
    """Run a command of which one side meets ``action`` at a step; it must come there."""
    armed = f"{row.step.value}={action}"
    local = row.side is Side.LOCAL
    ended = scene.run(*command, here=armed if local else "", there="" if local else armed)
    assert came_to(scene, row, ended), f"{row.step.value} was not reached: {ended}"
    return ended


def came_to(scene: Scene, row: StepRow, ended: Ended) -> bool:
    """Whether the side of a step came to it."""
    if row.side is Side.LOCAL:
        return f"failpoint {row.step.value}" in ended.err
    return scene.agent_said(row.step.value)


def settled(scene: Scene, then: str, said: set[Verdict], expected: bool | None) -> None:
    """As :func:`settles`; then all goes on from there."""
    scene.goes_on(settles(scene, then, said, expected))


def settles(scene: Scene, then: str, said: set[Verdict], expected: bool | None) -> Verdict:
    """Run the next command, and hold what was said, what is said and what the table says to the verdict.

    Returns what there is now.
    """
    waiting = pending(scene.who.folder)
    if then == "status":
        looks_only(scene, waiting)
        then = "recover"
    ended = scene.settle(then, "--json")
    assert ended.status == 0, ended
    notes = ended.document.get("settled") or [n["text"] for n in ended.document["notes"]]
    verdict = scene.verdict()
    records = scene.world.remote().records[len(scene.before.records) :]
    if then == "sync":
        assert verdict == "after"
        if waiting is not None and scene.snapshots:
            # Finished, or undone and done anew: the snapshot's transaction tells.
            verdict = "after" if records[0].txid == waiting[1] else "before"
        elif waiting is not None:
            verdict = "after" if ended.document["state"] == "nothing" else "before"
        elif ended.document["made_snapshot"] or ended.document["changes"]["download"]:
            verdict = "before"
    if waiting is not None:
        about = [note for note in notes if "interrupted sync" in note]
        assert len(about) == 1, f"it does not say what became of the interrupted sync: {ended}"
        assert ("was finished" in about[0], "was undone" in about[0]) == (
            verdict == "after",
            verdict == "before",
        ), ended
    assert verdict in said, f"the broken command said {said}, and it is {verdict}"
    if expected is not None:
        assert (verdict == "after") == expected, "the table says otherwise"
    return "after" if then == "sync" else verdict


def looks_only(scene: Scene, waiting: tuple[str, str] | None) -> None:
    """``dsg status`` changes nothing, and says that something waits to be settled."""
    folder = scene.who.folder
    passing = {".dsg/index", ".dsg/index.late", ".dsg/lock.holder"}
    was = photograph(folder, without=passing)
    seen = scene.who.dsg("status", "--json")
    assert seen.status == 0, seen
    assert photograph(folder, without=passing) == was
    assert (seen.document["pending"] is not None) == (waiting is not None)
    if waiting is not None:
        assert ("after it was committed" in seen.document["pending"]) == (waiting[0] == "decided")


def scene_at(near: bool, base: World, near_base: World, folder: Path) -> Scene:
    return everything(near_base if near else base, folder)


# Death


@pytest.mark.parametrize(("row", "then", "near"), dealt(), ids=name_of)
def test_killed(row: StepRow, then: str, near: bool, base: World, near_base: World, folder: Path) -> None:
    kill_at(scene_at(near, base, near_base, folder), row, then)


def kill_at(scene: Scene, row: StepRow, then: str) -> None:
    """One side dies at a step; then the next command settles it."""
    settled(scene, then, die_at(scene, row), row.committed)


def die_at(scene: Scene, row: StepRow) -> set[Verdict]:
    """One side dies at a step, to which it must come; what was said has become of the sync."""
    ended = stop_at(scene, row, "kill", "sync", "--json")
    if row.side is Side.LOCAL:
        assert ended.status == -signal.SIGKILL
        said: set[Verdict] = {"before", "after"}  # it said nothing
    else:
        said = scene.claim(ended)
        assert ended.status == (0 if row.committed else 6), ended
    if row.row <= 7 and row.side is Side.LOCAL:
        assert scene.untouched_here(), "L or C changed before the decision"
    return said


# Errors


#: In short runs the steps take turns with the errors.
ERRORS = ("ENOSPC", "EIO")
FAILED = [
    (row, error) for number, row in enumerate(STEPS) for error in (ERRORS if FULL else [ERRORS[number % 2]])
]


@pytest.mark.turns(2)
@pytest.mark.parametrize(("row", "error"), FAILED, ids=name_of)
def test_error(row: StepRow, error: str, base: World, near_base: World, folder: Path) -> None:
    """An operation of the system fails: in plain words or in JSON, over SSH or near."""
    near = not FULL and row.row % 2 == 1 and row.side is Side.LOCAL
    scene = scene_at(near, base, near_base, folder)
    json = ["--json"] if error == "ENOSPC" else []
    ended = stop_at(scene, row, f"error:{error}", "sync", *json)
    said = scene.claim(ended)
    if row.side is Side.REMOTE and row.committed:
        assert ended.status == 0, "what fails after the decision does not undo it"
    else:
        # The commit was perhaps heard: the server is asked, and may have committed.
        perhaps = [0] if row.step is Step.COMMIT_SENT else []
        assert ended.status in [10 if row.side is Side.LOCAL else 9, *perhaps], ended
        words = {"ENOSPC": ("space", "full"), "EIO": ("disk", "Input/output error")}[error]
        assert any(word in ended.out + ended.err for word in words), ended
    if said == {"before"}:
        assert scene.untouched_here()
    settled(scene, NEXT[row.row % 3], said, row.committed)


# Twice


@pytest.mark.parametrize("second", [r for r in LOCAL if r.row == 9], ids=name_of)
def test_killed_again_while_settling(second: StepRow, near_base: World, folder: Path) -> None:
    scene = everything(near_base, folder)
    stop_at(scene, row_of(Step.LOCAL_DECIDED), "kill", "sync")
    again = stop_at(scene, second, "kill", "recover")
    assert again.status == -signal.SIGKILL
    waiting = pending(scene.who.folder)
    ended = scene.settle("recover", "--json")
    assert ended.status == 0, ended
    assert any("was finished" in note for note in ended.document["settled"]) == (waiting is not None)
    assert scene.verdict() == "after"
    scene.goes_on("after")


@pytest.mark.parametrize(
    "second", [r for r in REMOTE if r.row == 8 and r.step is not Step.REMOTE_REPLIED], ids=name_of
)
def test_agent_killed_again_while_settling(second: StepRow, base: World, folder: Path) -> None:
    """The agent that the client asks for the outcome has the commit to carry out, and dies as well."""
    scene = everything(base, folder)
    ended = scene.run("sync", "--json", there=f"remote-decided=kill,{second.step.value}=kill")
    assert ended.status == 0, ended
    assert scene.agent_said("remote-decided") and scene.agent_said(second.step.value)
    warnings = [note["text"] for note in ended.document["notes"] if note["warning"]]
    assert len(warnings) == 1 and "has yet to finish" in warnings[0], ended
    ended = scene.settle("recover", "--json")
    assert any("finished the committed transaction" in note for note in ended.document["settled"]), ended
    assert scene.verdict() == "after"
    scene.goes_on("after")


def row_of(step: Step) -> StepRow:
    return next(row for row in STEPS if row.step is step)


# In doubt


def test_in_doubt_until_the_server_is_back(base: World, line: object, folder: Path) -> None:
    """The client dies when the commit is sent, and then there is no server: nothing here changes."""
    scene = everything(base, folder)
    stop_at(scene, row_of(Step.COMMIT_SENT), "kill", "sync")
    proxy = line.proxy  # type: ignore[attr-defined]
    proxy.cut()
    was = files_of(scene.who.folder)
    for command in ("sync", "recover"):
        for options in ((), ("--json",)):
            ended = scene.who.dsg(command, *options)
            assert ended.status == 11, ended
            assert scene.claim(ended) == {"before", "after"}
            assert "recover --abandon" in ended.out + ended.err
        assert files_of(scene.who.folder) == was
        assert scene.untouched_here()
        assert pending(scene.who.folder) is not None
    seen = scene.who.dsg("status", "--offline", "--json")
    assert seen.status == 0 and "settles it" in seen.document["pending"], seen
    proxy.mend()
    settled(scene, "sync", {"before", "after"}, None)


@pytest.mark.parametrize("row", [row_of(Step.LOCAL_PREPARED), row_of(Step.COMMIT_SENT)], ids=name_of)
def test_abandoned(row: StepRow, near_base: World, folder: Path) -> None:
    """``dsg recover --abandon`` asks nobody, and changes nothing in L and C, whatever the server did."""
    scene = everything(near_base, folder)
    stop_at(scene, row, "kill", "sync")
    hidden = scene.world.repository.rename(scene.world.repository.with_name("hidden"))
    ended = scene.who.dsg("recover", "--abandon", "--json")
    assert ended.status == 0 and "given up" in ended.document["settled"][0], ended
    assert scene.untouched_here()
    assert pending(scene.who.folder) is None
    hidden.rename(scene.world.repository)
    ended = scene.settle("sync", "--json")
    assert ended.status == 0, ended
    assert scene.verdict() == "after"


def test_what_is_decided_is_not_abandoned(near_base: World, folder: Path) -> None:
    scene = everything(near_base, folder)
    stop_at(scene, row_of(Step.LOCAL_DECIDED), "kill", "sync")
    ended = scene.who.dsg("recover", "--abandon", "--json")
    assert ended.status == 0 and "was finished" in ended.document["settled"][0], ended
    assert scene.verdict() == "after"


# Where the local journal decides

#: What a sync that changes nothing on the server does not come to.
NO_SERVER = {Step.COMMIT_SENT}


ONLY_DOWNLOADING = [
    (row, then)
    for number, row in enumerate(LOCAL)
    for then in (NEXT if FULL else [("recover", "sync")[number % 2]])
]


@pytest.mark.turns(2)
@pytest.mark.parametrize(("row", "then"), ONLY_DOWNLOADING, ids=name_of)
def test_killed_while_only_downloading(row: StepRow, then: str, near_base: World, folder: Path) -> None:
    scene = only_downloads(near_base, folder)
    ended = scene.run("sync", "--json", here=f"{row.step.value}=kill")
    if row.step in NO_SERVER:
        assert ended.status == 0 and not came_to(scene, row, ended), ended
        assert scene.verdict() == "after"
        return
    assert ended.status == -signal.SIGKILL and came_to(scene, row, ended), ended
    settled(scene, then, {"before", "after"}, row.row >= 8)


@pytest.mark.turns(2)
@pytest.mark.parametrize("row", [r for r in LOCAL if r.step not in NO_SERVER], ids=name_of)
def test_error_while_only_downloading(row: StepRow, near_base: World, folder: Path) -> None:
    scene = only_downloads(near_base, folder)
    ended = stop_at(scene, row, "error:ENOSPC", "sync", "--json")
    assert ended.status == 10, ended
    settled(scene, "recover", scene.claim(ended), row.row >= 8)


# Clone

#: Where a clone comes to: it takes what is there over, downloads the rest, and its own journal decides.
CLONED = {row.step for row in LOCAL} - NO_SERVER - {Step.LOCAL_LOCKED, Step.SCANNED, Step.PLANNED}


@pytest.mark.turns(2)
@pytest.mark.parametrize("row", LOCAL, ids=name_of)
def test_killed_while_cloning(row: StepRow, near_base: World, folder: Path) -> None:
    """A clone that died is gone on with by ``dsg clone``, and by ``dsg sync``; what was there stays."""
    world = near_base.copy(folder)
    head = world.remote().check()
    for then in (("clone",), ("sync", "--json")):
        cat = world.client("cat", working=f"cat {then[0]}")
        cat.write("input/same.csv", b"nobody touches this\n")
        taken_over = files_of(cat.folder)
        ended = cat.dsg("clone", world.address, ".", variables={"DSG_FAILPOINTS": f"{row.step.value}=kill"})
        if row.step not in CLONED:
            assert ended.status == 0 and "failpoint" not in ended.err, ended
        else:
            assert ended.status == -signal.SIGKILL and f"failpoint {row.step.value}" in ended.err, ended
            if row.row <= 7:
                here = {p: t for p, t in files_of(cat.folder).items() if not p.startswith(".dsgconfig")}
                assert here == taken_over
            again = cat.dsg(*then)
            if row.step is Step.LOCAL_FINISHED and then[0] == "clone":
                # Nothing was left to do but to say so: it is a working folder.
                assert again.status == 4 and "last in step with s2" in again.err, again
            else:
                assert again.status == 0, again
                assert then[0] == "sync" or "in step with s2" in again.out, again
        assert cat.local() == head.live
        assert cat.cache().tree == head.tree and cat.cache().record == head.head.digest
        assert pending(cat.folder) is None
    assert world.remote().check() == head

"""The everyday behaviour of the commands: what they say, what they leave alone, and how they end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsg_client.local.index import IndexChanges
from dsg_client.sync.site import open_site
from tests.conftest import find_program
from tests.e2e.near import NearPeople, NearWorld, on_terminal, ordinary
from tests.e2e.oracle import File, Tree, photograph
from tests.e2e.world import Client, Ended, People, World

pytestmark = pytest.mark.slow

INDEX = {".dsg/index", ".dsg/index.late"}
TREE: Tree = {
    "input/a.csv": File(b"a\n"),
    "input/deep/b.csv": File(b"b\n"),
    "output/c.csv": File(b"c\n"),
}


@pytest.fixture(scope="module")
def started(near_people: NearPeople, tmp_path_factory: pytest.TempPathFactory) -> NearWorld:
    """Ann and bob in step at s1."""
    world = NearWorld(near_people, tmp_path_factory.mktemp("commands"))
    ann = world.init("ann", "--ignore", "*.tmp")
    ann.put_all(TREE)
    ann.must("sync", "-m", "the beginning")
    world.clone("bob")
    return world


@pytest.fixture
def world(started: NearWorld, tmp_path: Path) -> NearWorld:
    return started.copy(tmp_path)


@pytest.fixture
def ann(world: NearWorld) -> Client:
    return world.clients["ann"]


@pytest.fixture
def bob(world: NearWorld) -> Client:
    return world.clients["bob"]


# status


def test_status_offline_asks_nobody(world: NearWorld, ann: Client, bob: Client) -> None:
    bob.put("input/his", File(b"bob's\n"))
    bob.must("sync")
    ann.put("input/hers", File(b"ann's\n"))
    world.repository.rename(world.repository.with_name("away"))
    ended = ann.must("status", "--offline", "--json").document
    assert (ended["changes"]["upload"], ended["changes"]["download"]) == (["input/hers"], [])
    assert (ended["seq"], ended["head"], ended["offline"]) == (1, None, True)
    asked = ann.dsg("status")
    assert asked.status in (4, 9), asked
    world.repository.with_name("away").rename(world.repository)
    told = ann.must("status").out
    assert "input/hers (new)" in told and "input/his (new)" in told and "server at s2" in told


def test_status_check_has_an_exit_status_for_each_answer(ann: Client, bob: Client) -> None:
    assert ann.dsg("status", "--check").status == 0
    ann.put("input/a.csv", File(b"ann's\n"))
    assert ann.dsg("status").status == 0
    for arguments in (["--check"], ["--check", "--offline"], ["--check", "-q"]):
        assert ann.dsg("status", *arguments).status == 20
    assert ann.dsg("status", "--check", "-q").out == ""
    assert bob.dsg("status", "--check").status == 0
    ann.must("sync")
    assert bob.dsg("status", "--check").status == 20, "a download waits as well"
    bob.put("input/a.csv", File(b"bob's\n"))
    ended = bob.dsg("status", "--check")
    assert ended.status == 3
    assert "input/a.csv" in ended.out and "ann" in ended.out
    assert bob.dsg("status").status == 0


def test_status_verify_finds_what_a_disk_changed(ann: Client) -> None:
    good = hashlib.sha256(TREE["input/a.csv"].content).digest()  # type: ignore[union-attr]
    target = ann.path("input/a.csv")
    target.write_bytes(b"X\n")
    # A disk that rots touches no times: to the index, the file must look as it was read last.
    seen = target.stat()
    rotted = IndexChanges()
    rotted.put("input/a.csv", (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino), good)
    open_site(ann.folder).save_index(rotted, "sha256")

    assert ann.dsg("status", "--check").status == 0, "times and sizes tell nothing"
    found = ann.dsg("status", "--verify", "--check", "--json")
    assert found.status == 20, found
    assert found.document["rotten"] == ["input/a.csv"]
    assert found.document["changes"]["upload"] == ["input/a.csv"]
    assert any("input/a.csv" in n["text"] and n["warning"] for n in found.document["notes"])


def test_status_changes_nothing_but_the_index(world: NearWorld, ann: Client) -> None:
    ann.put("input/new", File(b"n\n"))
    before = photograph(ann.folder, without=INDEX), photograph(world.repository, folder_times=True)
    for arguments in ([], ["--offline"], ["--verify"], ["--check"], ["--json"]):
        ann.dsg("status", *arguments)
    assert (photograph(ann.folder, without=INDEX), photograph(world.repository, folder_times=True)) == before


# sync


def test_a_dry_run_says_what_the_sync_then_does(world: NearWorld, ann: Client, bob: Client) -> None:
    bob.put_all({"input/his": File(b"bob's\n"), "input/deep/b.csv": None, "output/c.csv": File(b"C\n")})
    bob.must("sync")
    ann.put_all({"input/hers": File(b"ann's\n"), "input/a.csv": None})
    before = photograph(ann.folder, without=INDEX), photograph(world.repository, folder_times=True)
    dry = ann.dsg("sync", "--dry-run", "--json").document
    told = ann.must("sync", "-n")
    assert (photograph(ann.folder, without=INDEX), photograph(world.repository, folder_times=True)) == before
    status = ann.dsg("status", "--json").document
    done = ann.sync().document
    assert dry["state"] == "dry-run" and done["state"] == "done"
    assert dry["changes"] == done["changes"] == status["changes"]
    assert dry["plan"] == done["plan"]
    assert (dry["seq"], done["seq"]) == (2, 3)
    for group in ("upload", "download", "delete_local", "delete_remote"):
        assert done["changes"][group], "each of the four happened"
        assert all(path in told.out for path in done["changes"][group])
    assert "Dry run, nothing was changed." in told.out


def test_a_dry_run_stops_where_the_sync_would(ann: Client, bob: Client) -> None:
    ann.put("input/a.csv", File(b"ann's\n"))
    ann.must("sync")
    bob.put("input/a.csv", File(b"bob's\n"))
    dry, done = bob.dsg("sync", "-n", "--json"), bob.sync()
    assert dry.status == done.status == 3
    assert dry.document["error"] == done.document["error"]
    chosen = bob.dsg("sync", "-n", "--prefer", "local", "--json").document
    assert chosen["changes"]["upload"] == ["input/a.csv"]


def test_quiet_prints_nothing_when_nothing_is_wrong(ann: Client, bob: Client) -> None:
    for arguments in (
        ["sync"],
        ["status"],
        ["log"],
        ["list-files"],
        ["doctor"],
        ["clean"],
        ["recover"],
        ["adopt"],
    ):
        ended = ann.dsg(*arguments, "--quiet")
        assert (ended.status, ended.out, ended.err) == (0, "", ""), arguments
    bob.put("input/a.csv", File(b"bob's\n"))
    assert bob.dsg("sync", "-q") == Ended(0, "", "")
    assert ann.dsg("sync", "-q") == Ended(0, "", "")
    ann.put("input/x\ny", File(b""))
    assert "x\\ny" in ann.dsg("sync", "-q").err, "errors are never quiet"


def test_verbose_says_more_on_stderr_alone(ann: Client) -> None:
    ann.put_all({f"input/{n:03}": File(b"x%d" % n) for n in range(30)})
    plain, more, most = (ann.dsg("sync", "-n", *v) for v in ([], ["-v"], ["-vv"]))
    assert plain.out == more.out == most.out
    assert plain.err == ""
    assert "[plan]" in more.err and "30 up" in more.err
    assert "agent" in most.err and "protocol" in most.err
    short, long = ann.dsg("status"), ann.dsg("status", "-v")
    assert "... and 10 more" in short.out and "input/029" in long.out


def test_preferring_the_server_keeps_what_was_here(world: NearWorld, ann: Client, bob: Client) -> None:
    ann.put("input/a.csv", File(b"ann's\n"))
    ann.must("sync")
    bob.put("input/a.csv", File(b"bob's\n"))
    ended = bob.must("sync", "--prefer", "remote")
    assert ".dsg/replaced" in ended.err
    assert bob.replaced() == {"input/a.csv": File(b"bob's\n")}
    listed = bob.dsg("clean", "-n", "--replaced", "--json").document["removed"]
    assert [row["path"].rpartition("/")[2] for row in listed] == ["a.csv"]
    assert bob.must("clean").out == "Clean.\n", "only when asked for"
    bob.must("clean", "--replaced")
    assert bob.replaced() == {}
    assert bob.must("sync", "--json").document["state"] == "nothing"


def test_commands_work_from_every_folder_of_the_tree(ann: Client) -> None:
    below = Client("ann", ann.path("input/deep"), ann.machine, ann.program)
    ann.put("output/new", File(b"n\n"))
    for arguments in (["status"], ["sync", "-n"], ["log"], ["list-files"], ["remote"], ["validate-config"]):
        assert below.must(*arguments).out == ann.must(*arguments).out, arguments
    assert below.sync().document["changes"]["upload"] == ["output/new"]
    for arguments in (["doctor"], ["recover"], ["clean"], ["adopt"]):
        below.must(*arguments)


def test_outside_of_every_tree_the_error_says_what_to_do(world: NearWorld) -> None:
    outside = world.client("carol")
    for name in ("status", "sync", "log", "list-files", "remote", "adopt", "recover", "clean"):
        ended = outside.dsg(name)
        assert ended.status == 4, name
        assert "dsg clone" in ended.err and "dsg init" in ended.err
    assert not list(outside.folder.iterdir())
    (outside.folder / ".dsgconfig.yml").write_text("repository: /somewhere\n")
    ended = outside.dsg("sync")
    assert ended.status == 4 and "dsg clone" in ended.err


def test_who_is_syncing(world: NearWorld, ann: Client) -> None:
    ann.variables.clear()
    subprocess.run(["git", "init", "-q"], cwd=ann.folder, check=True)
    for key, value in (("user.name", "Ann\x1b[31m Example"), ("user.email", "ann@example.org")):
        subprocess.run(["git", "config", key, value], cwd=ann.folder, check=True)
    ann.put("input/x", File(b"x"))
    ann.must("sync")
    assert world.remote().head.user == "Ann [31m Example <ann@example.org>"
    ann.put("input/x", File(b"y"))
    assert ann.dsg("sync", variables={"DSG_USER_NAME": "Someone", "DSG_USER_ID": "else"}).status == 0
    assert world.remote().head.user == "Someone <else>"


def test_a_message_with_control_characters_reaches_no_terminal(ann: Client) -> None:
    ann.put("input/x", File(b"x"))
    ended = ann.dsg("sync", "-m", "red \x1b[31m and\nmore")
    if ended.status == 0:
        log = ann.must("log").out
        assert "\x1b" not in log and "red" in log
    else:
        assert ended.status == 2, ended


# log, list-files, remote


def test_log_shows_who_when_and_why(ann: Client, bob: Client) -> None:
    bob.put_all({"input/his": File(b"bob's\n"), "input/deep/b.csv": None})
    bob.must("sync", "-m", "second")
    told = ann.must("log").out
    s2, s1, s0 = re.split(r"^(?=s\d)", told, flags=re.MULTILINE)[1:]
    assert s2.startswith("s2  ") and "bob <bob@lab.example>" in s2 and "second" in s2
    assert "1 added, 1 deleted; 3 files in all" in s2
    assert "the beginning" in s1 and "(this folder)" in s1 and "(this folder)" not in s2
    assert s0.startswith("s0  ") and s0.rstrip().endswith("the repository was made, empty")
    assert [s["seq"] for s in ann.dsg("log", "-n", "2", "--json").document["snapshots"]] == [2, 1]
    assert ann.dsg("log", "-n", "0").status == 2


def test_list_files_by_path_folder_and_pattern(ann: Client, bob: Client) -> None:
    def listed(*patterns: str) -> list[str]:
        return ann.must("list-files", *patterns).out.splitlines()

    assert listed() == sorted(TREE)
    assert listed("input") == listed("input/") == listed("./input") == ["input/a.csv", "input/deep/b.csv"]
    assert listed("*.csv") == sorted(TREE)
    assert listed("input/*.csv", "output/c.csv") == ["input/a.csv", "input/deep/b.csv", "output/c.csv"]
    assert listed("nothing") == []
    bob.put("output/his", File(b"bob's\n", executable=True))
    bob.must("sync")
    assert listed() == sorted(TREE)
    assert "output/his" in listed("--remote")
    (row,) = listed("--remote", "-l", "output/his")
    assert "6 B" in row and " s2 " in row and "*output/his" in row and "bob" in row


def test_remote_set_takes_only_the_same_repository(world: NearWorld, ann: Client) -> None:
    moved = world.repository.with_name("moved")
    world.repository.rename(moved)
    settings = ann.path(".dsgconfig.yml")
    text = settings.read_text()
    settings.write_text(text.replace("data_dirs", "# a note of ours\ndata_dirs"))
    assert ann.dsg("sync").status in (4, 9)
    ended = ann.must("remote", "set", str(moved), "--json").document
    assert (ended["remote"], ended["set"]) == (str(moved), True)
    assert "# a note of ours" in settings.read_text()
    assert ann.must("remote").out.splitlines()[0] == str(moved)
    assert ann.must("sync", "--json").document["state"] == "nothing"

    other = world.client("carol")
    other.must("init", str(world.folder / "server" / "other"))
    before = photograph(ann.folder, without=INDEX)
    ended2 = ann.dsg("remote", "set", str(world.folder / "server" / "other"))
    assert ended2.status == 8
    assert "another repository" in ended2.err
    assert ann.dsg("remote", "set", "/nowhere").status in (4, 9)
    assert ann.dsg("remote", "set", str(ann.folder / "inside")).status == 4
    assert ann.dsg("remote", "set").status == 2
    assert ann.dsg("remote", "show", "/x").status == 2
    assert photograph(ann.folder, without=INDEX) == before


def test_remote_set_refuses_an_older_copy(world: NearWorld, ann: Client) -> None:
    older = world.folder / "server" / "older"
    shutil.copytree(world.repository, older, symlinks=True)
    ann.put("input/a.csv", File(b"newer\n"))
    ann.must("sync")
    ended = ann.dsg("remote", "set", str(older))
    assert ended.status == 8, ended
    assert "s2" in ended.err and "s1" in ended.err
    assert ann.must("remote").out.startswith(str(world.repository))


# adopt


def test_adopt_from_the_refused_sync_to_both_folders(world: NearWorld, ann: Client, bob: Client) -> None:
    server = world.repository
    (server / "input/a.csv").write_bytes(b"corrected on the server\n")
    (server / "output/c.csv").unlink()
    (server / "input/new").mkdir()
    (server / "input/new/d.csv").write_bytes(b"d\n")
    (server / "input/new/notes.tmp").write_bytes(b"out of scope\n")
    (server / "elsewhere.txt").write_bytes(b"out of scope\n")
    ann.put("input/deep/b.csv", File(b"ann's\n"))
    before = photograph(ann.folder, without=INDEX)
    ended = ann.dsg("sync")
    assert ended.status == 16, ended
    for path in ("input/a.csv", "output/c.csv", "input/new/d.csv"):
        assert path in ended.err
    assert "dsg adopt" in ended.err and "elsewhere.txt" not in ended.err
    assert photograph(ann.folder, without=INDEX) == before

    dry = ann.dsg("adopt", "-n", "--json").document
    expected = {"modified": ["input/a.csv"], "deleted": ["output/c.csv"], "added": ["input/new/d.csv"]}
    assert dry.items() >= {"seq": None, **expected}.items()
    assert world.remote().head.seq == 1
    done = ann.dsg("adopt", "-m", "by hand", "--json").document
    assert done.items() >= {"seq": 2, **expected}.items()
    assert photograph(ann.folder, without=INDEX) == before, "adopt changes nothing here"
    head = world.remote().head
    assert (head.message, head.who, head.added, head.changed, head.deleted) == ("by hand", "ann", 1, 1, 1)
    assert "Nothing to adopt" in ann.must("adopt").out

    ann.must("sync")
    bob.must("sync")
    expected_tree: Tree = {
        "input/a.csv": File(b"corrected on the server\n"),
        "input/deep/b.csv": File(b"ann's\n"),
        "input/new/d.csv": File(b"d\n"),
    }
    assert ann.local() == bob.local() == expected_tree
    # What nobody syncs still lies where it was put.
    assert (server / "elsewhere.txt").exists() and (server / "input/new/notes.tmp").exists()


def test_out_of_scope_files_on_the_server_do_not_block_a_sync(world: NearWorld, ann: Client) -> None:
    for n in range(1500):  # more than an answer lists
        (world.repository / f"aside-{n:04}.txt").write_bytes(b"")
    ann.put("input/a.csv", File(b"changed\n"))
    ann.must("sync")
    assert "Nothing to adopt" in ann.must("adopt").out
    # One that is in scope is found behind all of them.
    (world.repository / "output" / "new.csv").write_bytes(b"on the server\n")
    for arguments in (["-n"], []):
        assert ann.must("adopt", "--json", *arguments).document["added"] == ["output/new.csv"]
    ann.must("sync")
    assert ann.local()["output/new.csv"] == File(b"on the server\n")


def test_adopt_takes_in_more_than_an_answer_holds(world: NearWorld, ann: Client) -> None:
    many = {f"input/many/{n:04}": File(b"%d\n" % n) for n in range(2300)}
    (world.repository / "input" / "many").mkdir()
    for path, version in many.items():
        (world.repository / path).write_bytes(version.content)
    document = ann.dsg("adopt", "--json").document
    assert sorted(document["added"]) == sorted(many)
    assert document["seq"] == 4, "a snapshot for each thousand"
    ann.must("sync")
    assert ann.local() == TREE | many
    world.remote().check()


def test_a_sync_looks_at_every_stray_file_on_the_server(world: NearWorld, ann: Client) -> None:
    """An answer tells of a thousand; the one that matters comes after them."""
    strays = world.repository / "archive"
    strays.mkdir()
    for number in range(1200):
        (strays / f"{number:04}").write_bytes(b"out of scope\n")
    ann.put("input/mine", File(b"x"))
    ann.must("sync")
    (world.repository / "input" / "zzz").write_bytes(b"nobody synced this\n")
    ann.put("input/mine", File(b"y"))
    ended = ann.dsg("sync")
    assert ended.status == 16 and "input/zzz" in ended.err, ended
    assert world.remote().head.seq == 2


def test_adopt_refuses_what_cannot_be_synced(world: NearWorld, ann: Client) -> None:
    (world.repository / "input" / "out").symlink_to("/etc/passwd")
    (world.repository / "input" / "good").write_bytes(b"g")
    ended = ann.dsg("adopt")
    assert ended.status == 12, ended
    assert "input/out" in ended.err
    assert world.remote().head.seq == 1
    (world.repository / "input" / "out").unlink()
    ann.must("adopt")
    assert world.remote().check().head.seq == 2


# How commands end


def stopped(client: Client, *arguments: str, at: Callable[[], bool], number: int = signal.SIGINT) -> Ended:
    """Run a command and send it a signal as soon as ``at`` holds."""
    running = client.start(*arguments)
    deadline = time.monotonic() + 30
    while not at():
        assert running.process.poll() is None, running.end()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.process.send_signal(number)
    return running.end()


def staged(folder: Path, size: int) -> bool:
    """Whether ``size`` bytes have arrived in the folder's staging."""
    area = folder / ".dsg"
    try:
        files = [p for name in ("staging", "tmp") for p in (area / name).rglob("*") if p.is_file()]
        return sum(p.stat().st_size for p in files) >= size
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("direction", "number"), [("up", signal.SIGINT), ("down", signal.SIGTERM)])
def test_a_signal_during_a_transfer_changes_nothing(near: NearWorld, direction: str, number: int) -> None:
    big = os.urandom(1 << 20) * 150
    ann = near.init("ann")
    ann.put("input/small", File(b"x"))
    ann.must("sync")
    bob = near.clone("bob")
    ann.path("input/big").write_bytes(big)
    if direction == "down":
        ann.must("sync")
    client, there = (ann, near.repository) if direction == "up" else (bob, bob.folder)
    head = near.remote().head
    before = photograph(client.folder, without=INDEX)
    ended = stopped(client, "sync", "--json", at=lambda: staged(there, 4 << 20), number=number)
    assert ended.status == 130, ended
    assert ended.document["error"]["outcome"] == "aborted"
    assert "Traceback" not in ended.err
    assert photograph(client.folder, without=INDEX) == before
    assert near.remote().check().head == head
    assert client.sync().status == 0
    assert client.path("input/big").stat().st_size == len(big)


def test_a_signal_while_the_commit_runs_lets_it_finish(world: NearWorld, ann: Client) -> None:
    ann.put("input/a.csv", File(b"new\n"))
    slow = {"DSG_FAILPOINTS": "local-decided=hang:1"}
    running = ann.start("sync", "--json", variables=slow)
    deadline = time.monotonic() + 30
    while not ann.path(".dsg/journal.decided").exists() and running.process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    running.process.send_signal(signal.SIGINT)
    ended = running.end()
    assert ended.status in (0, 130), ended
    if ended.status == 130:
        assert ended.document["error"]["outcome"] == "committed"
    assert world.remote().check().head.seq == 2
    assert ann.must("sync", "--json").document["state"] == "nothing"


def test_a_reader_that_leaves_early_is_no_error(ann: Client) -> None:
    ann.put_all({f"input/{n:05}": File(b"") for n in range(3000)})
    running = ann.start("sync", "-n")
    assert running.process.stdout is not None
    running.process.stdout.readline()
    running.process.stdout.close()
    assert running.process.stderr is not None
    assert running.process.stderr.read() == ""
    assert running.process.wait() in (0, 141)


# The terminal


def test_progress_and_colour_are_for_terminals(near: NearWorld) -> None:
    ann = near.init("ann")
    ann.path("input").mkdir()
    ann.path("input/big").write_bytes(os.urandom(1 << 20) * 60)
    shown = on_terminal(ann, "sync")
    assert shown.status == 0
    assert re.search(r"transfer: +\d+%", shown.out), shown.out
    assert re.search(r"\d+/1 files", shown.out) or "B/s" in shown.out
    assert shown.out.rstrip().endswith("s1: 1 uploaded (60.0 MiB).")
    ann.put("input/a\nb", File(b""))
    assert "\x1b[31m" in on_terminal(ann, "sync").out, "errors are red"
    ann.variables["NO_COLOR"] = "1"
    assert "\x1b[31m" not in on_terminal(ann, "sync").out
    ann.path("input/a\nb").unlink()
    ann.path("input/big").write_bytes(os.urandom(1 << 20) * 30)
    for option in ("--json", "--quiet"):
        ended = on_terminal(ann, "sync", option)
        assert ended.status == 0 and "%" not in ended.out and "\x1b" not in ended.out
        ann.path("input/big").write_bytes(os.urandom(1 << 20) * 10)
    plain = ann.dsg("sync")
    assert "\r" not in plain.out + plain.err and "%" not in plain.err and "\x1b" not in plain.err


# Completion


SHELLS = {
    "bash": 'source "{script}"; COMP_WORDS=(dsg {words}); COMP_CWORD={count}; _dsg_completion dsg; '
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": 'source "{script}"; complete --do-complete "dsg {words}"',
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "offers"), [("sta", "status"), ("sync --no", "--normalize"), ("sync --prefer rem", "remote")]
)
def test_the_shells_complete(ann: Client, tmp_path: Path, shell: str, words: str, offers: str) -> None:
    if find_program(shell) is None:
        pytest.skip(f"{shell} not found; to have it: sudo apt-get install -y {shell}")
    script = tmp_path / "completion"
    script.write_text(ann.must("completion", shell).out)
    program = tmp_path / "bin" / "dsg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ann.program} "$@"\n')
    program.chmod(0o755)
    told = subprocess.run(
        [shell, "-c", SHELLS[shell].format(script=script, words=words, count=len(words.split()))],
        env=ann.machine.environment | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
        cwd=ann.folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    offered = [line.split(",")[-1].split("\t")[0] for line in told.stdout.splitlines()]
    assert offers in offered, told


def test_zsh_takes_the_script(ann: Client, tmp_path: Path) -> None:
    if find_program("zsh") is None:
        pytest.skip("zsh not found; to have it: sudo apt-get install -y zsh")
    script = tmp_path / "_dsg"
    script.write_text(ann.must("completion", "zsh").out)
    subprocess.run(["zsh", "-n", str(script)], check=True)


# Messages of errors


def test_a_damaged_or_missing_cache_is_an_error_with_its_way_out(world: NearWorld, ann: Client) -> None:
    cache = ann.path(".dsg/cache")
    good = cache.read_bytes()
    for content in (None, b"", good[:-1], good[:40] + b"\0" + good[41:]):
        cache.unlink()
        if content is not None:
            cache.write_bytes(content)
        before = photograph(ann.folder, without=INDEX)
        for name in ("sync", "status", "list-files"):
            ended = ann.dsg(name)
            assert ended.status == 8 and "dsg recover --rebuild-cache" in ended.err, ended
        assert photograph(ann.folder, without=INDEX) == before
        cache.write_bytes(good)
    cache.unlink()
    ann.put("input/a.csv", File(b"ann's\n"))
    ann.put("output/c.csv", None)
    ann.must("recover", "--rebuild-cache")
    ended = ann.sync()
    assert ended.status == 3, "what differs is a conflict, and nothing counts as deleted"
    ann.must("sync", "--prefer", "local")
    assert ann.local()["output/c.csv"] == TREE["output/c.csv"]
    assert world.remote().check().live == ann.local()


def test_a_damaged_index_is_made_anew_without_a_word(ann: Client) -> None:
    index = ann.path(".dsg/index")
    for content in (b"", b"rubbish", index.read_bytes()[:-3]):
        index.write_bytes(content)
        ended = ann.must("sync")
        assert ended.err == "" and "Nothing to do" in ended.out


def test_two_syncs_in_one_folder(ann: Client) -> None:
    ann.put("input/x", File(b"x"))
    running = ann.start("sync", variables={"DSG_FAILPOINTS": "planned=hang"})
    deadline = time.monotonic() + 30
    while not ann.path(".dsg/lock.holder").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        ended = ann.dsg("sync")
        assert ended.status == 5, ended
        assert "dsg sync" in ended.err and str(running.process.pid) in ended.err
        assert re.search(r"since|ago|\d\d:\d\d", ended.err)
        assert ann.dsg("status").status == 0, "looking needs no lock"
    finally:
        running.process.kill()
        running.end()
    ann.must("sync")


def test_a_read_only_folder_is_told(world: NearWorld, ann: Client) -> None:
    me = ordinary(ann)
    area = ann.path(".dsg")
    area.chmod(0o500)
    try:
        ended = me.dsg("sync")
    finally:
        area.chmod(0o700)
    assert ended.status == 10, ended
    assert ".dsg" in ended.err and "ermission" in ended.err
    assert len(ended.err.strip().splitlines()) >= 2, "what to do stands below"


def test_every_error_says_what_to_do(world: NearWorld, ann: Client, bob: Client) -> None:
    """One error of each kind that a user meets: a message, then at least one line of advice."""
    ann.put("input/a.csv", File(b"ann's\n"))
    ann.must("sync")
    bob.put("input/a.csv", File(b"bob's\n"))
    (world.folder / "empty").mkdir()
    cases = {
        3: bob.dsg("sync", "--json"),
        2: bob.dsg("sync", "--prefer", "mine", "--json"),
        4: bob.dsg("remote", "set", str(world.folder / "empty"), "--json"),
        12: _with_file(bob, "input/x\ny"),
        13: _without_folder(bob, "output"),
    }
    for status, ended in cases.items():
        assert ended.status == status, ended
        error = ended.document["error"]
        assert error["message"] and error["hint"], error
        assert error["message"][0] not in " \n" and "Error(" not in error["message"]
        assert error["outcome"] == "aborted"


def _with_file(client: Client, path: str) -> Ended:
    client.put(path, File(b""))
    try:
        return client.sync()
    finally:
        client.put(path, None)


def _without_folder(client: Client, folder: str) -> Ended:
    client.put("input/a.csv", File(b"a\n"))
    client.path(folder).rename(client.path("away"))
    try:
        return client.sync()
    finally:
        client.path("away").rename(client.path(folder))


def test_the_clients_log_has_what_was_done_and_what_failed(world: NearWorld) -> None:
    carol = world.client("carol-log")
    log = carol.machine.home / ".local/state/dsg/client.log"
    carol.must("clone", world.address, ".")
    carol.put("input/new", File(b"n"))
    carol.must("sync")
    carol.must("status")
    carol.must("sync")
    carol.put("input/a\nb", File(b""))
    carol.dsg("sync")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["arguments"][0], line["status"]) for line in lines] == [
        ("clone", 0),
        ("sync", 0),
        ("sync", 12),
    ]
    assert lines[2]["error"]["code"] == "paths_refused"
    assert log.stat().st_mode & 0o077 == 0


@pytest.mark.needs("sshd", "ssh-keygen")
def test_ctrl_c_over_ssh_changes_nothing(people: People, tmp_path: Path) -> None:
    far = World(people, tmp_path / "far")
    ann = far.init("ann")
    ann.put("input/small", File(b"x"))
    ann.must("sync")
    ann.path("input/big").write_bytes(os.urandom(1 << 20) * 150)
    before = photograph(ann.folder, without=INDEX)
    ended = stopped(ann, "sync", at=lambda: staged(far.repository, 4 << 20))
    assert ended.status == 130, ended
    assert "Nothing was changed" in ended.err
    assert photograph(ann.folder, without=INDEX) == before
    deadline = time.monotonic() + 10
    while any((far.repository / ".dsg" / "staging").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)  # the agent undoes it when its input ends
    far.remote().check()
    ann.must("sync")

"""A look at L in a process of its own finds what a look here does, and never outlives or disturbs anybody."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsg_client.local.index import read_index
from dsg_client.sync.ahead import ahead_of
from dsg_client.sync.looking import Look
from dsg_client.sync.site import Site
from protocol.errors import LockedError
from protocol.tree.actions import JOURNAL_PREPARED
from tests.client.sync.conftest import Ground
from tests.processes import alive, gone

# A process with one thread, as a command is when it begins; asyncio and pytest have more.
_BEFORE = """
import json, os, signal, sys, time
from contextlib import contextmanager
from dsg_client.sync.ahead import ahead_of
from dsg_client.sync.looking import Look, Stopped
from protocol.errors import DsgError
def say(**what): print(json.dumps(what), flush=True)
@contextmanager
def begun(command, **more):
    with ahead_of(command, start=sys.argv[1], **more) as ahead:
        ahead.told = ahead.direction()
        yield ahead.open(), ahead
def direction_of(ahead): return ahead.told and ahead.told.address
"""


def program(site: Site, code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs ``code`` with ``site`` opened."""
    return subprocess.Popen(
        [sys.executable, "-c", _BEFORE + textwrap.dedent(code), str(site.root), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(site: Site, code: str, *arguments: str, status: int = 0) -> dict[str, Any]:
    """What ``code`` said in the end."""
    process = program(site, code, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def fill(site: Site, files: int = 3000) -> None:
    """Files, a link, an executable one, and a name that is only a warning."""
    folder = site.root / "input"
    (folder / "below").mkdir(parents=True)
    for number in range(files):
        (folder / "below" / f"f{number:05}.csv").write_text(str(number))
    (folder / "link").symlink_to("below/f00001.csv")
    (folder / "run.sh").write_text("true")
    (folder / "run.sh").chmod(0o755)
    (folder / "con").write_text("no Windows likes it")


def hole(site: Site) -> Path:
    """A file that takes an hour to hash, and no room."""
    path = site.root / "input" / "large"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    return path


def wait_for(what: Callable[[], bool]) -> bool:
    """Whether it comes true within 20 s."""
    end = time.monotonic() + 20
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


def indexed(site: Site) -> set[str]:
    return {row[0] for row in read_index(site.tree, site.binding("sha256"))}


async def test_it_finds_what_a_look_here_finds(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site)
    found = said(
        site,
        """
        def shown(looked):
            paths = [entry.path for entry in looked.local]
            return [repr(list(looked.local)), repr(sorted(looked.local.expected(paths).items())),
                    len(looked.local), repr(list(looked.local.differences())),
                    [str(w) for w in looked.warnings]]
        news = []
        with begun("test") as (site, ahead):
            look = ahead.take_look()
            assert ahead.take_look() is None
            looked = look.run(site.cache().manifest, lambda: news.append(look.differs))
            there = shown(looked)
            differed = look.differs
            since = [d.local.path for d in looked.local.differences() if d.local]
        here = shown(Look(site, "sha256").run(site.cache().manifest, lambda: None))
        say(kind=type(look).__name__, same=there == here, entries=here[0].count("Entry("),
            warnings=len(here[4]), differed=differed, news=any(news), since=len(since))
        """,
    )
    assert found == {
        "kind": "BesideLook",
        "same": True,
        "entries": 3003,
        "warnings": 1,
        "differed": True,
        "news": True,
        "since": 3003,
    }
    assert "input/con" in indexed(site)


async def test_a_refusal_comes_out_as_it_would_here(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site, 3)
    (site.root / "input" / os.fsdecode(b"not-utf8-\xff")).write_text("")
    os.mkfifo(site.root / "input" / "pipe")
    found = said(
        site,
        """
        def refused(look):
            try: look.run(site.cache().manifest, lambda: None)
            except DsgError as error: return [type(error).__name__, error.to_wire()]
        with begun("test") as (site, ahead):
            there = refused(ahead.take_look())
        here = refused(Look(site, "sha256"))
        say(there=there, same=there == here)
        """,
    )
    assert found["same"]
    assert found["there"][0] == "PathsRefusedError"
    assert found["there"][1]["facts"]["count"] == 2


@pytest.mark.parametrize("run", [True, False], ids=["while it runs", "before anybody took it"])
async def test_it_stops_within_a_large_file_and_keeps_what_it_read(ground: Ground, run: bool) -> None:
    site = await ground.init("ann")
    fill(site, 200)
    hole(site)
    await asyncio.sleep(0.1)  # files written this very moment are not trusted
    begun = time.monotonic()
    found = said(
        site,
        """
        import threading
        stopped = False
        with begun("test") as (site, ahead):
            look = ahead.take_look()
            if sys.argv[2] == "True":
                def stop():
                    while look.bytes_read < 1 << 24: time.sleep(0.02)
                    look.stop()
                threading.Thread(target=stop).start()
                try: look.run(site.cache().manifest, lambda: None)
                except Stopped: stopped = True
            else:
                time.sleep(1)
            pid = ahead._other._pid
        say(pid=pid, stopped=stopped)
        """,
        str(run),
    )
    assert found["stopped"] == run
    assert time.monotonic() - begun < 30
    assert not alive(found["pid"])
    assert "input/below/f00000.csv" in indexed(site)
    assert "input/large" not in indexed(site)


@pytest.mark.slow
async def test_nobody_who_reads_what_it_found_does_not_keep_it(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site, 20_000)  # more than the pipe holds
    found = said(
        site,
        """
        with begun("test") as (site, ahead):
            pid = ahead._other._pid
            time.sleep(1.5)
            begun = time.monotonic()
        say(pid=pid, seconds=time.monotonic() - begun)
        """,
    )
    assert found["seconds"] < 10
    assert not alive(found["pid"])


async def test_killed_it_is_done_again_here(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site, 3000)
    found = said(
        site,
        """
        with begun("test") as (site, ahead):
            look = ahead.take_look()
            os.kill(ahead._other._pid, signal.SIGKILL)
            entries = len(look.run(site.cache().manifest, lambda: None).local)
            here = look._here is not None
        say(entries=entries, here=here)
        """,
    )
    assert found == {"entries": 3003, "here": True}


async def test_it_ends_with_the_process_it_works_for_and_never_holds_the_lock(ground: Ground) -> None:
    site = await ground.init("ann")
    hole(site)
    process = program(
        site,
        """
        import threading
        with begun("test") as (site, ahead):
            look = ahead.take_look()
            threading.Thread(target=look.run, args=(site.cache().manifest, lambda: None), daemon=True).start()
            while not look.bytes_read: time.sleep(0.02)
            say(pid=ahead._other._pid)
            time.sleep(600)
        """,
    )
    assert process.stdout is not None
    pid = json.loads(process.stdout.readline())["pid"]
    try:
        with pytest.raises(LockedError):
            site.workdir.lock("other").release()
        os.kill(pid, signal.SIGSTOP)
        process.kill()
        process.wait()
        site.workdir.lock("other").release()  # although that other process is there still
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert gone(pid)
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()


async def test_ctrl_c_is_none_of_its_business(ground: Ground) -> None:
    site = await ground.init("ann")
    hole(site)
    found = said(
        site,
        """
        import threading
        with begun("test") as (site, ahead):
            look = ahead.take_look()
            def signals():
                while look.bytes_read < 1 << 24: time.sleep(0.02)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(ahead._other._pid, number)
                at = look.bytes_read
                while look.bytes_read < at + (1 << 24): time.sleep(0.02)
                look.stop()
            threading.Thread(target=signals).start()
            try: look.run(site.cache().manifest, lambda: None)
            except Stopped: say(here=look._here is not None)
        """,
    )
    assert found == {"here": False}


async def test_ctrl_c_just_before_the_look_here_is_heard(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site)
    found = said(
        site,
        """
        import dsg_client.sync.beside as beside_module
        with begun("test") as (site, ahead):
            look = ahead.take_look()
            os.kill(ahead._other._pid, signal.SIGKILL)
            def late(*given, **named):
                look.stop()
                return Look(*given, **named)
            beside_module.Look = late
            try: look.run(site.cache().manifest, lambda: None)
            except Stopped: say(stopped=True)
            else: say(stopped=False)
        """,
    )
    assert found == {"stopped": True}


async def test_an_unfinished_transaction_is_not_looked_at(ground: Ground) -> None:
    site = await ground.init("ann")
    site.tree.write_bytes(JOURNAL_PREPARED, b"whatever it says")
    found = said(
        site,
        """
        with begun("test") as (site, ahead):
            say(look=ahead.take_look() is not None, lock=ahead.take_lock() is not None)
        """,
    )
    assert found == {"look": False, "lock": True}


async def test_who_finds_the_folder_locked_begins_nothing(ground: Ground) -> None:
    site = await ground.init("ann")
    code = """
        with begun("test") as (site, ahead):
            say(look=ahead.take_look() is not None, lock=ahead.take_lock() is not None)
        """
    with site.workdir.lock("other"):
        assert said(site, code) == {"look": False, "lock": False}
    assert said(site, code) == {"look": True, "lock": True}


async def test_a_process_with_threads_is_not_forked(ground: Ground) -> None:
    site = await ground.init("ann")
    await asyncio.to_thread(int)  # the executor's thread stays
    with ahead_of(None, start=site.root) as ahead:
        assert ahead.direction() is None
        assert ahead.open().root == site.root
        assert ahead.take_look() is None


async def test_leftovers_are_swept_before_it_begins(ground: Ground) -> None:
    site = await ground.init("ann")
    site.tree.make_folders(".dsg/staging/abc")
    site.tree.write_bytes(".dsg/staging/abc/1", b"half of a file")
    said(
        site,
        """
        with begun("test") as (site, ahead):
            assert ahead.take_look() is not None
            say()
        """,
    )
    assert not (site.root / ".dsg/staging/abc").exists()


async def test_compared_with_another_cache_it_is_made_here(ground: Ground) -> None:
    """A status takes no lock: C may be replaced between the two who read it."""
    site = await ground.init("ann")
    fill(site, 10)
    found = said(
        site,
        """
        from protocol.manifest import Entry, Manifest
        known = Entry("input/below/f00003.csv", 1, b"elsewhere", False, 0, 0, "bob", 2)
        with begun("test") as (site, ahead):
            looked = ahead.take_look().run(Manifest.from_entries([known]), lambda: None)
            gone = [d.cache.path for d in looked.local.differences() if d.cache]
            say(entries=len(looked.local), since=gone)
        """,
    )
    assert found == {"entries": 13, "since": ["input/below/f00003.csv"]}


async def test_two_who_save_the_index_do_so_in_turn(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site, 5000)
    await asyncio.sleep(0.1)
    said(
        site,
        """
        from dsg_client.local.index import IndexChanges
        with begun("test") as (site, ahead):
            ahead.take_look().run(site.cache().manifest, lambda: None)
            changes = IndexChanges()
            changes.put("input/zzz", (1, 2, 3, 4), b"d" * 32)
            site.save_index(changes, "sha256")
        say()
        """,
    )
    assert {"input/zzz", "input/below/f00000.csv", "input/below/f04999.csv"} <= indexed(site)


async def test_what_it_learnt_is_saved_when_it_is_let(ground: Ground) -> None:
    """Not before: it would take a core from the sync."""
    site = await ground.init("ann")
    fill(site, 50)
    await asyncio.sleep(0.1)
    found = said(
        site,
        """
        def rows(): return (site.root / ".dsg/index").exists()
        with begun("test") as (site, ahead):
            ahead.take_look().run(site.cache().manifest, lambda: None)
            time.sleep(0.3)
            before = rows()
            ahead.save()
            end = time.monotonic() + 20
            while not rows() and time.monotonic() < end: time.sleep(0.01)
        say(before=before, after=rows())
        """,
    )
    assert found == {"before": False, "after": True}


async def test_what_it_learnt_is_saved_at_the_end_in_any_case(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site, 50)
    await asyncio.sleep(0.1)
    found = said(
        site,
        """
        with begun("test") as (site, ahead):
            ahead.take_look().run(site.cache().manifest, lambda: None)
        say(there=(site.root / ".dsg/index").exists())
        """,
    )
    assert found == {"there": True}
    assert len(indexed(site)) > 50


async def test_when_a_command_is_over_nobody_is_left(ground: Ground) -> None:
    """Also when it fails early: whoever waited for it may remove the folder."""
    site = await ground.init("ann")
    hole(site)
    shutil.rmtree(ground.remote)
    for _ in range(5):
        assert fails("status", site.root)
        assert not at_work_in(site.root)


def fails(command: str, folder: Path) -> bool:
    words = [sys.executable, "-m", "dsg_client.cli.start", command]
    return subprocess.run(words, cwd=folder, capture_output=True, check=False).returncode != 0


def at_work_in(folder: Path) -> list[str]:
    """The other processes whose current folder it is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name != str(os.getpid()) and (process / "cwd").readlink() == folder:
                found.append(process.name)
        except OSError:
            continue  # it has ended
    return found


async def test_for_a_dead_one_nothing_is_written(ground: Ground) -> None:
    """Whoever killed it may be about to copy the folder, or to remove it."""
    site = await ground.init("ann")
    fill(site, 50)
    await asyncio.sleep(0.1)
    found = said(
        site,
        """
        with begun("test") as (site, ahead):
            ahead.take_look().run(site.cache().manifest, lambda: None)
            say(pid=ahead._other._pid)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        status=-signal.SIGKILL,
    )
    assert wait_for(lambda: gone(found["pid"]))
    assert indexed(site) == set()


async def test_it_tells_where_to_connect_and_hands_the_lock_over(ground: Ground) -> None:
    site = await ground.init("ann")
    found = said(
        site,
        """
        with begun("dsg test") as (site, ahead):
            holder = json.loads((site.root / ".dsg/lock.holder").read_text())
            ahead.take_look().run(site.cache().manifest, lambda: None)
            lock = ahead.take_lock()
            ahead.over()
            try: site.workdir.lock("other")
            except DsgError as error: held = str(error)
            lock.release()
            site.workdir.lock("other").release()
        say(direction=str(direction_of(ahead)), pid=holder["pid"] == os.getpid(), command=holder["command"],
            held="in use by 'dsg test'" in held, holder=(site.root / ".dsg/lock.holder").exists())
        """,
    )
    assert found == {
        "direction": str(site.address),
        "pid": True,
        "command": "dsg test",
        "held": True,
        "holder": False,
    }


async def test_what_nobody_took_is_let_go(ground: Ground) -> None:
    site = await ground.init("ann")
    said(site, 'with begun("test"): pass\nsay()')
    assert not (site.root / ".dsg/lock.holder").exists()
    site.workdir.lock("other").release()


# Where the other process may end, and what it has told by then.
ENDS = {
    "before a word": "lookout._tell_configuration = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "after the first": "lookout._prepare = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "with the lock": "lookout.sweep = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "with an error": "lookout._unfinished = lambda *_: 1 / 0",
}


@pytest.mark.parametrize("end", ENDS)
async def test_whatever_it_does_not_come_to_is_done_here(ground: Ground, end: str) -> None:
    site = await ground.init("ann")
    fill(site, 10)
    found = said(
        site,
        f"""
        from dsg_client.sync import lookout
        {ENDS[end]}
        with begun("test") as (site, ahead):
            none = [ahead.take_look(), ahead.take_lock()]
            with site.lock("test"):
                entries = len(Look(site, "sha256").run(site.cache().manifest, lambda: None).local)
        say(none=none, entries=entries)
        """,
    )
    assert found == {"none": [None, None], "entries": 13}


async def test_what_is_wrong_with_the_folder_is_said_here(ground: Ground) -> None:
    site = await ground.init("ann")
    config = site.root / ".dsgconfig.yml"
    config.write_text("repositry: host:/x\n")
    code = """
        try:
            with begun("test"): pass
        except DsgError as error: say(error=str(error))
        """
    assert "repositry" in said(site, code)["error"]
    config.unlink()
    code = """
        with begun("test") as (site, ahead):
            try: site.address
            except DsgError as error: say(error=str(error), direction=direction_of(ahead) is not None,
                                          lock=ahead.take_lock() is not None)
        """
    found = said(site, code)
    assert found == {"error": "no repository is configured", "direction": False, "lock": True}


async def test_closed_standard_descriptors_are_nobody_elses(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site, 100)
    code = """
        for descriptor in (0, 1): os.close(descriptor)
        with begun("test") as (site, ahead):
            entries = len(ahead.take_look().run(site.cache().manifest, lambda: None).local)
        os.dup2(2, 1)
        say(entries=entries)
        """
    process = program(site, code)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, json.loads(err.splitlines()[-1])) == (0, {"entries": 103})


@pytest.mark.parametrize("where", ["load_config", "sweep"])
async def test_an_interrupt_does_not_wait_for_it(ground: Ground, where: str) -> None:
    site = await ground.init("ann")
    process = program(
        site,
        f"""
        from dsg_client.cli.main import main
        from dsg_client.sync import lookout
        def hang(*_):
            os.write(told, str(os.getpid()).encode() + b"\\n")
            time.sleep(600)
        told = os.dup(1)
        lookout.{where} = hang
        os.chdir(sys.argv[1])
        sys.argv[1:] = ["sync"]
        main()
        """,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    pid = int(process.stdout.readline())
    await asyncio.sleep(1.0)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - begun < 20
    assert gone(pid)
    site.workdir.lock("other").release()


async def test_killed_before_a_word_it_leaves_nobody_behind(ground: Ground) -> None:
    site = await ground.init("ann")
    process = program(
        site,
        """
        from dsg_client.sync import lookout
        def hang(*_):
            os.write(told, str(os.getpid()).encode() + b"\\n")
            time.sleep(600)
        told = os.dup(1)
        lookout.sweep = hang
        with begun("test"): pass
        """,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert gone(pid)
    site.workdir.lock("other").release()
    process.communicate()


async def test_a_look_here_is_the_same_class_of_thing(ground: Ground) -> None:
    site = await ground.init("ann")
    fill(site, 10)
    look = Look(site, "sha256")
    counted = []
    looked = look.run(site.cache().manifest, lambda: counted.append(look.seen))
    assert (look.seen, look.differs, len(looked.local)) == (13, True, 13)
    assert counted == [13]

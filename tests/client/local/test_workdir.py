"""The working folder: finding it, its private .dsg, the lock, and overlap with a repository."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dsg_client.local.cache import load_cache
from dsg_client.local.workdir import create_workdir, find_root, open_workdir, refuse_overlap
from protocol.errors import ConfigError, LocalStorageError, LockedError, VersionError
from tests.client.local.conftest import as_nobody, empty_cache, give_to_nobody
from tests.conftest import mount_or_skip


def test_the_root_is_found_from_any_folder_below(root: Path) -> None:
    deep = root / "input" / "a" / "b"
    deep.mkdir(parents=True)
    (root / ".dsgconfig.yml").write_text("name: x\n")
    assert find_root(deep) == root
    assert find_root(root) == root
    (deep / ".dsg").mkdir()
    assert find_root(deep) == deep


def test_outside_of_any_tree(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no DSG folder here") as caught:
        find_root(tmp_path)
    assert "dsg clone" in caught.value.hint
    assert caught.value.exit_status == 4


def test_a_new_workdir_is_private_and_complete(root: Path) -> None:
    old = os.umask(0)
    try:
        create_workdir(root, empty_cache()).close()
    finally:
        os.umask(old)
    assert (root / ".dsg").stat().st_mode & 0o777 == 0o700
    assert (root / ".dsg" / "format").read_text() == '{"format": 1, "kind": "working-folder"}\n'
    with open_workdir(root) as opened:
        assert len(load_cache(opened.tree)) == 0
        assert opened.root == root
        assert opened.device_inode == (root.stat().st_dev, root.stat().st_ino)
        assert len(opened.machine) >= 8


def test_a_second_one_is_refused_and_the_first_is_untouched(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    before = (root / ".dsg" / "cache").read_bytes()
    with pytest.raises(ConfigError, match="already"):
        create_workdir(root, b"other")
    assert (root / ".dsg" / "cache").read_bytes() == before


def test_an_interrupted_one_is_known_and_can_be_finished(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    (root / ".dsg" / "format").unlink()
    with pytest.raises(ConfigError, match="unfinished"):
        open_workdir(root)
    create_workdir(root, empty_cache()).close()
    open_workdir(root).close()


def test_two_that_make_it_at_once(root: Path) -> None:
    code = f"""
import sys
from dsg_client.local.workdir import create_workdir
from protocol.errors import DsgError
sys.stdin.readline()
try:
    create_workdir({str(root)!r}, sys.argv[1].encode())
    print("made")
except DsgError as error:
    print(error.code)
"""
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for number in range(4)
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    said = [maker.communicate()[0].strip() for maker in makers]
    assert said.count("made") == 1, said
    assert set(said) <= {"made", "locked", "config"}
    assert (root / ".dsg" / "cache").read_text() == str(said.index("made"))


def test_a_folder_without_dsg(root: Path) -> None:
    (root / ".dsgconfig.yml").touch()
    with pytest.raises(ConfigError, match="not a DSG working folder yet"):
        open_workdir(root)


def test_a_newer_format_is_refused(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    (root / ".dsg" / "format").write_text('{"format": 2, "kind": "working-folder"}')
    with pytest.raises(VersionError, match="format 2"):
        open_workdir(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not say"),
        (b"garbage\xff", "does not say"),
        (b"[]", "does not say"),
        (b'{"format": "1", "kind": "working-folder"}', "does not say"),
        (b'{"format": 1, "kind": "repository", "backend": "directory"}', "is a repository"),
        (b'{"format": 1, "kind": "other"}', "kind 'other'"),
    ],
)
def test_a_format_of_something_else_is_refused(root: Path, content: bytes, message: str) -> None:
    create_workdir(root, empty_cache()).close()
    (root / ".dsg" / "format").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        open_workdir(root)


def test_dsg_that_is_a_file_or_a_link(root: Path, tmp_path: Path) -> None:
    (root / ".dsg").write_text("")
    with pytest.raises(ConfigError):
        open_workdir(root)
    (root / ".dsg").unlink()
    (tmp_path / "elsewhere").mkdir()
    (root / ".dsg").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        open_workdir(root)
    with pytest.raises((ConfigError, LocalStorageError)):
        create_workdir(root, empty_cache())
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_one_that_others_can_write_to_is_refused(root: Path, mode: int) -> None:
    create_workdir(root, empty_cache()).close()
    (root / ".dsg").chmod(mode)
    with pytest.raises(ConfigError, match="can be written to by others"):
        open_workdir(root)


@pytest.mark.needs("root")
def test_one_of_another_account_is_refused(public: Path) -> None:
    create_workdir(public, empty_cache()).close()
    (public / ".dsg").chmod(0o755)
    assert "belongs to another account" in as_nobody(lambda: open_workdir(public))
    give_to_nobody(public / ".dsg")
    # root may look after everybody's folders
    open_workdir(public).close()


def test_a_folder_that_cannot_be_written(public: Path) -> None:
    folder = public / "readonly"
    folder.mkdir()
    give_to_nobody(folder)
    folder.chmod(0o555)
    assert as_nobody(lambda: create_workdir(folder, empty_cache())).startswith("LocalStorageError")
    folder.chmod(0o755)
    assert list(folder.iterdir()) == []


# The lock


def in_another_process(root: Path, code: str) -> subprocess.Popen[str]:
    script = f"""
        import sys, time
        from dsg_client.local.workdir import open_workdir
        from protocol.errors import DsgError
        workdir = open_workdir({str(root)!r})
        {code}
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


HOLD = "lock = workdir.lock('dsg sync'); print('held', flush=True); sys.stdin.read()"


def test_the_second_learns_who_has_the_lock(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    before = int(time.time())
    holder = in_another_process(root, HOLD)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with open_workdir(root) as workdir:
        with pytest.raises(LockedError) as caught:
            workdir.lock("dsg status")
        error = caught.value
        assert error.exit_status == 5 and error.transient
        named = error.facts["holder"]
        assert named["pid"] == holder.pid
        assert named["command"] == "dsg sync"
        assert before <= named["since"] <= time.time()
        for part in (str(holder.pid), "dsg sync", named["user"], named["host"], "since"):
            assert part in error.message
        holder.stdin.close()
        assert holder.wait(10) == 0
        with workdir.lock("dsg status"):
            assert json.loads((root / ".dsg" / "lock.holder").read_text())["command"] == "dsg status"
        assert not (root / ".dsg" / "lock.holder").exists()
        assert (root / ".dsg" / "lock").exists()


def test_a_killed_holder_holds_nothing(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    holder = in_another_process(root, HOLD)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert (root / ".dsg" / "lock.holder").exists()
    with open_workdir(root) as workdir, workdir.lock("dsg sync"):
        pass


def test_what_a_killed_holder_wrote_is_not_told_of_the_next(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with open_workdir(root) as first, open_workdir(root) as second, first.lock("dsg sync"):
        (root / ".dsg" / "lock.holder").write_text(
            json.dumps({"machine": first.machine, "pid": gone.pid, "user": "long-gone"})
        )
        with pytest.raises(LockedError) as caught:
            second.lock("dsg sync")
        assert "long-gone" not in caught.value.message
        (root / ".dsg" / "lock.holder").write_text("not json")
        with pytest.raises(LockedError, match="another DSG command"):
            second.lock("dsg sync")


def test_the_lock_excludes_within_one_process_too(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    with open_workdir(root) as first, open_workdir(root) as second:
        lock = first.lock("one")
        assert lock.fileno() >= 0
        with pytest.raises(LockedError):
            second.lock("two")
        lock.release()
        lock.release()
        second.lock("two").release()


def test_of_many_at_once_one_wins(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    code = textwrap.indent(
        textwrap.dedent("""
        sys.stdin.readline()
        try:
            lock = workdir.lock('dsg sync')
            print('won', flush=True)
            sys.stdin.read()
        except DsgError as error:
            print(error.code, flush=True)
        """),
        "        ",
    )
    racers = [in_another_process(root, code) for _ in range(6)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    for racer in racers:
        racer.communicate()
    assert sorted(said) == ["locked"] * 5 + ["won"]


def test_a_lost_lock_file_is_made_again(root: Path) -> None:
    create_workdir(root, empty_cache()).close()
    (root / ".dsg" / "lock").unlink()
    with open_workdir(root) as workdir, workdir.lock("dsg sync"):
        assert (root / ".dsg" / "lock").exists()


# Overlap


def test_a_repository_inside_or_around_is_refused(tmp_path: Path) -> None:
    local = tmp_path / "a" / "local"
    local.mkdir(parents=True)
    for repository in (local, local / "repo", local / "not" / "yet", tmp_path / "a", tmp_path):
        with pytest.raises(ConfigError, match="the repository"):
            refuse_overlap(local, repository)
    (tmp_path / "a" / "other").mkdir()
    for repository in (tmp_path / "a" / "other", tmp_path / "a" / "local-2", tmp_path / "b" / "new"):
        refuse_overlap(local, repository)


def test_a_link_does_not_hide_an_overlap(tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "input").mkdir(parents=True)
    (tmp_path / "way").symlink_to(local / "input")
    with pytest.raises(ConfigError, match="lies inside"):
        refuse_overlap(local, tmp_path / "way" / "repo")
    with pytest.raises(ConfigError, match="lies around"):
        refuse_overlap(tmp_path / "way", local)


def test_a_bind_mount_does_not_hide_an_overlap(tmp_path: Path) -> None:
    local, other = tmp_path / "local", tmp_path / "other"
    local.mkdir()
    other.mkdir()
    mount_or_skip("--bind", str(local), str(other))
    try:
        with pytest.raises(ConfigError):
            refuse_overlap(local, other / "repo")
    finally:
        subprocess.run(["umount", str(other)], check=True)

"""What a scan refuses: all of it at once, each with its reason, and nothing is lost in silence."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dsg_client.local.scan import Scan
from dsg_client.local.scope import Scope
from protocol.errors import LocalChangedError, LocalStorageError, PathsRefusedError
from tests.client.local.conftest import as_nobody, give_to_nobody
from tests.conftest import mount_or_skip

BAD_NAMES = {
    b"not-utf8-\xff\xfe": "not valid UTF-8",
    b"new\nline": "control character U+000A",
    b"tab\there": "control character U+0009",
    b"esc\x1b[31m": "control character U+001B",
    b"del\x7f": "control character U+007F",
    "bidi\u202e.csv".encode(): "direction character U+202E",
    "c1\u0085".encode(): "control character U+0085",
    "line\u2028".encode(): "line separator",
    "nfd-e\u0301".encode(): "normal form C",
    "\uff0edsg-x".encode(): "",  # allowed: only looks a little like .dsg
}


def refusal(root: Path, scope: Scope | None = None, **options: bool) -> PathsRefusedError:
    with pytest.raises(PathsRefusedError) as caught:
        list(Scan(root, scope or Scope(), **options))  # type: ignore[arg-type]
    return caught.value


def reasons(error: PathsRefusedError) -> dict[str, str]:
    return {p["path"]: p["reason"] for p in error.facts["problems"]}


def test_every_bad_name_is_in_one_error(root: Path) -> None:
    for name in BAD_NAMES:
        Path(os.fsdecode(os.fsencode(root / "input") + b"/" + name)).write_bytes(b"x")
    (root / "input" / "good").touch()
    found = reasons(refusal(root))
    expected = {os.fsdecode(b"input/" + name): reason for name, reason in BAD_NAMES.items() if reason}
    assert set(found) == set(expected)
    for path, reason in expected.items():
        assert reason in found[path]


def test_the_error_shows_names_escaped(root: Path) -> None:
    (root / "input" / "esc\x1b[31m").touch()
    error = refusal(root)
    assert "\x1b" not in error.message
    assert "\\x1b" in error.message
    assert error.exit_status == 12


def test_many_problems_are_counted_and_all_in_the_facts(root: Path) -> None:
    for number in range(60):
        (root / "input" / f"bad\n{number}").touch()
    error = refusal(root)
    assert len(error.facts["problems"]) == error.facts["count"] == 60
    assert "and 40 more" in error.message


def test_a_bad_name_out_of_scope_is_nobodys_business(root: Path) -> None:
    (root / "code\n").mkdir()
    (root / "code\n" / "x.py").touch()
    (root / "bad\tfile").touch()
    (root / "input" / ".dsg").mkdir()
    (root / "input" / ".dsg" / "x\n").touch()
    (root / "input" / "empty\n").mkdir()
    (root / "input" / "ignored\n.log").touch()
    assert list(Scan(root, Scope(ignore=["*.log"]))) == []


def test_a_bad_folder_is_refused_once_and_those_inside_too(root: Path) -> None:
    folder = root / "code\n" / "input" / "bad\t"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"f{number}").touch()
    (folder / "also\x01").touch()
    assert set(reasons(refusal(root))) == {
        "code\n",
        "code\n/input/bad\t",
        "code\n/input/bad\t/also\x01",
    }


def test_names_that_differ_only_in_case_or_form(root: Path) -> None:
    for path in ("Data.csv", "data.CSV", "sub/X/a", "sub/x/b", "Strasse", "stra\u00dfe", "only/one"):
        (root / "input" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "input" / path).touch()
    (root / "Input").mkdir()  # holds nothing in scope
    (root / "study" / "input").mkdir(parents=True)
    (root / "Study" / "input").mkdir(parents=True)
    (root / "study" / "input" / "a").touch()
    (root / "Study" / "input" / "b").touch()
    found = reasons(refusal(root))
    assert set(found) == {"input/data.CSV", "input/sub/x", "input/stra\u00dfe", "study"}
    assert "'input/Data.csv'" in found["input/data.CSV"]
    assert "'Study'" in found["study"]


def test_folders_that_differ_in_case_but_hold_nothing_in_scope(root: Path) -> None:
    (root / "input" / "a").mkdir()
    (root / "input" / "A").mkdir()
    (root / "input" / "a" / "x").touch()
    assert [s.entry.path for s in Scan(root, Scope())] == ["input/a/x"]


def test_what_is_neither_file_nor_link(root: Path) -> None:
    os.mkfifo(root / "input" / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(root / "input")  # a socket's path is at most 107 bytes
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
    try:
        found = reasons(refusal(root))
    finally:
        listener.close()
    assert "fifo" in found["input/pipe"]
    assert "socket" in found["input/socket"]


def test_links_that_lead_out(root: Path) -> None:
    (root / "input" / "sub").mkdir()
    links = {
        "input/absolute": "/etc/passwd",
        "input/up": "../../x",
        "input/sub/up": "../../../x",
        "input/into": "../.dsg/cache",
        "input/fine": "../code/x",
        "input/sub/fine": "../../output/x",
        "input/dangling": "nowhere",
    }
    for path, target in links.items():
        (root / path).symlink_to(target)
    found = reasons(refusal(root))
    assert set(found) == {"input/absolute", "input/up", "input/sub/up", "input/into"}
    assert "absolute" in found["input/absolute"]
    assert "outside" in found["input/up"]


def test_paths_that_are_too_long(root: Path) -> None:
    here = os.open(root / "input", os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    error = refusal(root)
    assert all("bytes long" in p["reason"] for p in error.facts["problems"])


WINDOWS_ONLY = ["12:30.csv", "con.csv", "what?", "trailing.", "trailing ", "a|b", "NUL", "lpt1.txt"]


def test_names_that_only_windows_dislikes(root: Path) -> None:
    for name in WINDOWS_ONLY:
        (root / "input" / name).touch()
    (root / "aux" / "input").mkdir(parents=True)
    (root / "aux" / "input" / "a").touch()
    (root / "prn").mkdir()  # holds nothing in scope
    (root / "input" / "conference.csv").touch()
    (root / "input" / "company.csv").touch()
    scan = Scan(root, Scope())
    assert len(list(scan)) == len(WINDOWS_ONLY) + 3
    warned = {w.path for w in scan.warnings}
    assert warned == {"aux", *(f"input/{name}" for name in WINDOWS_ONLY)}
    assert set(reasons(refusal(root, portable_names=True))) == warned


def test_a_name_in_nfd_has_its_cure(root: Path) -> None:
    (root / "input" / "e\u0301").mkdir()
    (root / "input" / "e\u0301" / "x").touch()
    (root / "input" / "e\u0301" / "u\u0308\n").touch()  # NFC would not make it good
    error = refusal(root)
    cures = {p["path"]: p["normalized"] for p in error.facts["problems"]}
    assert cures == {"input/e\u0301": "input/\u00e9", "input/e\u0301/u\u0308\n": None}
    assert "--normalize" in error.hint


def test_nothing_is_hashed_once_the_scan_has_failed(root: Path) -> None:
    (root / "input" / "a\n").touch()
    for number in range(50):
        (root / "input" / f"b{number}").write_bytes(b"x")
    scan = Scan(root, Scope())
    with pytest.raises(PathsRefusedError):
        list(scan)
    assert scan.hashed_files == 0


@pytest.fixture
def private(public: Path) -> Path:
    """A tree that belongs to the account of as_nobody, with an unreadable file and an unreadable folder."""
    (public / "input" / "open").mkdir(parents=True)
    (public / "input" / "locked").mkdir()
    for path in ("open/good", "open/unreadable", "locked/hidden"):
        (public / "input" / path).write_bytes(b"x")
    for path in (public, *public.rglob("*")):
        give_to_nobody(path)
    return public


def test_what_cannot_be_read_fails_the_scan(private: Path) -> None:
    (private / "input" / "open" / "unreadable").chmod(0)
    (private / "input" / "locked").chmod(0)
    said = as_nobody(lambda: list(Scan(private, Scope())))
    assert said.startswith("LocalStorageError: 2 paths"), said
    assert "input/open/unreadable: Permission denied" in said
    assert "input/locked: Permission denied" in said


def test_a_folder_that_can_be_listed_but_not_entered(private: Path) -> None:
    (private / "input" / "locked").chmod(0o444)
    said = as_nobody(lambda: list(Scan(private, Scope())))
    assert said.startswith("LocalStorageError"), said
    assert "input/locked/hidden: Permission denied" in said


def test_an_unreadable_folder_outside_of_data_may_hide_data(private: Path) -> None:
    (private / "code").mkdir()
    (private / "code").chmod(0)
    (private / ".cache").mkdir(0)
    give_to_nobody(private / "code", private / ".cache")
    said = as_nobody(lambda: list(Scan(private, Scope())))
    assert "code: Permission denied" in said
    assert ".cache" not in said
    # The way out that the message names.
    assert as_nobody(lambda: len(list(Scan(private, Scope(ignore=["/code/"]))))) == "3"


def test_a_file_that_became_unreadable_is_noticed_in_spite_of_its_row(private: Path) -> None:
    def scan_twice() -> int:
        rows = [(s.entry.path, *s.identity, s.entry.content) for s in Scan(private, Scope())]
        (private / "input" / "open" / "good").chmod(0)
        return len(list(Scan(private, Scope(), index=rows)))

    assert as_nobody(scan_twice).startswith("LocalStorageError")


def test_a_missing_root(tmp_path: Path) -> None:
    with pytest.raises(LocalStorageError):
        list(Scan(tmp_path / "nothing", Scope()))


def test_another_file_system_inside(root: Path) -> None:
    mounted = root / "input" / "mounted"
    mounted.mkdir()
    (root / "code" / "mounted").mkdir(parents=True)
    for folder in (mounted, root / "code" / "mounted"):
        mount_or_skip("-t", "tmpfs", "none", str(folder))
    try:
        with pytest.raises(LocalStorageError, match="input/mounted: another file system is mounted here"):
            list(Scan(root, Scope()))
        # Outside of data folders it matters only when it holds one.
        assert list(Scan(root, Scope(ignore=["/input/"]))) == []
        (root / "code" / "mounted" / "input").mkdir()
        with pytest.raises(LocalStorageError, match="code/mounted/input: another file system"):
            list(Scan(root, Scope(ignore=["/input/"])))
    finally:
        subprocess.run(["umount", str(mounted), str(root / "code" / "mounted")], check=True)


def test_a_file_that_changes_while_it_is_read(root: Path) -> None:
    path = root / "input" / "growing"
    path.write_bytes(bytes(64 << 20))
    stop = threading.Event()

    def write() -> None:
        with open(path, "r+b") as file:
            while not stop.is_set():
                file.seek(0)
                file.write(os.urandom(16))
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(LocalChangedError, match="input/growing: was written to"):
            list(Scan(root, Scope()))
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("final", [0, 80 << 20])
def test_a_file_that_grows_or_shrinks_while_it_is_read(root: Path, final: int) -> None:
    path = root / "input" / "data"
    path.write_bytes(bytes(64 << 20))
    scan = Scan(root, Scope())

    def resize() -> None:
        while scan.bytes_read < 4 << 20:
            time.sleep(0.0005)
        os.truncate(path, final)

    writer = threading.Thread(target=resize)
    writer.start()
    with pytest.raises(LocalChangedError):
        list(scan)
    writer.join()


def test_a_file_that_vanishes_between_listing_and_reading(root: Path) -> None:
    for number in range(3000):
        (root / "input" / f"f{number:04}").write_bytes(b"x")
    scan = iter(Scan(root, Scope()))
    next(scan)
    (root / "input" / "f2999").unlink()
    with pytest.raises(LocalChangedError, match="input/f2999: vanished"):
        list(scan)

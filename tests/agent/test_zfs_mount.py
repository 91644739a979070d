"""The program dsg-zfs-mount, asked by an account that wishes it harm; and each protection taken away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.conftest import find_program
from tests.hosts.accounts import Account, shared_python, unix_accounts
from tests.hosts.delegation import CONFIG, PROGRAM, SOURCE, install, system_folders
from tests.hosts.zfs_fuse import ZfsFuse, ZfsRoot

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root"), pytest.mark.timeout(300)]

DONE, FAILED, MALFORMED, REFUSED, UNCONFIGURED = range(5)


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with unix_accounts(1) as (one,):
        yield one


@frozen
class Server:
    """A repository of which g1 is the head and g0, g2 are not, none of them mounted."""

    host: ZfsFuse
    root: ZfsRoot
    account: Account

    @property
    def repo(self) -> str:
        return f"{self.root.dataset}/repo"

    @property
    def folder(self) -> Path:
        return self.root.folder / ".gen" / "repo"

    @property
    def elsewhere(self) -> Path:
        """What an attacker would like to have covered."""
        return self.root.folder / "elsewhere"

    def ask(self, verb: str, name: str) -> subprocess.CompletedProcess[bytes]:
        return self.say(json.dumps({"version": 1, "verb": verb, "dataset": name}).encode())

    def say(
        self, request: bytes, *arguments: str, python: str = sys.executable, **more: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """The program's answer, as if ``account`` had asked by way of sudo."""
        return subprocess.run(
            [python, "-I", str(PROGRAM), *arguments],
            input=request,
            capture_output=True,
            check=False,
            timeout=60,
            env={"SUDO_UID": str(self.account.uid), "PATH": "/nonexistent"},
            **more,
        )

    def mounted(self) -> dict[str, str]:
        """Where each dataset of the root is mounted."""
        with open("/proc/self/mounts") as mounts:
            fields = [line.split(" ") for line in mounts]
        return {field[0]: field[1] for field in fields if field[0].startswith(f"{self.root.dataset}/")}

    def as_account(self, script: str) -> None:
        """What the account can do by itself."""
        words = ["setpriv", f"--reuid={self.account.uid}", f"--regid={self.account.gid}", "--clear-groups"]
        subprocess.run([*words, "sh", "-c", script], check=False, capture_output=True, cwd="/")

    def wrap(self, script: str) -> None:
        """Let the ``zfs`` that the program finds first do ``script`` before it does its work."""
        program = PROGRAM.parent / "zfs"
        program.unlink(missing_ok=True)  # else it were found in place of the real one
        program.write_text(f'#!/bin/sh\n{script}\nexec {find_program("zfs")} "$@"\n')
        program.chmod(0o755)


@pytest.fixture
def server(zfs_host: ZfsFuse, account: Account) -> Iterator[Server]:
    with zfs_host.entered(), system_folders():
        root = zfs_host.make_root(f"m{os.urandom(3).hex()}")
        made = Server(zfs_host, root, account)
        for path in (root.folder, root.folder / ".gen"):
            os.chown(path, 0, account.gid)
            path.chmod(0o3775)
        zfs = zfs_host.zfs
        zfs("create", "-o", "canmount=off", "-o", "dsg:format=1", "-o", "dsg:repo-id=x", made.repo)
        zfs("set", f"dsg:head=g1@s3:tx:sha256:{'0' * 64}", made.repo)
        for name in ("g0", "g1", "g2"):
            zfs("create", f"{made.repo}/{name}")
            zfs("unmount", f"{made.repo}/{name}")
            (made.folder / name).rmdir()
        made.folder.rmdir()
        # As a delegated agent makes it.
        made.as_account(f"umask 002; mkdir {made.folder} {made.folder}/.dsg")
        made.elsewhere.mkdir()
        install(root.dataset)
        yield made
        for name in made.mounted():
            zfs_host.fails("unmount", name)
        zfs_host.discard(root)


def without(*checks: tuple[str, str]) -> None:
    """Install the program with some of its checks replaced."""
    text = SOURCE.read_text()
    for check, instead in checks:
        assert text.count(check) >= 1, check
        text = text.replace(check, instead)
    PROGRAM.write_text(text)


# What it is for


def test_it_mounts_and_unmounts_and_repeats_harmlessly(server: Server) -> None:
    for name in ("g0", "g1"):
        for _ in range(2):
            done = server.ask("mount", f"{server.repo}/{name}")
            assert (done.returncode, done.stderr) == (DONE, b""), done
            assert done.stdout.count(b"\n") == 1
            assert server.mounted()[f"{server.repo}/{name}"] == str(server.folder / name)
    found = server.folder.stat()
    assert (found.st_uid, found.st_gid) == (0, server.account.gid) and found.st_mode & 0o1000
    server.as_account(f"mv {server.folder}/g0 {server.folder}/x; touch {server.folder}/.dsg/its-own")
    assert sorted(os.listdir(server.folder)) == [".dsg", "g0", "g1"]
    assert (server.folder / ".dsg" / "its-own").exists()
    for _ in range(2):
        assert server.ask("unmount", f"{server.repo}/g0").returncode == DONE
        assert sorted(os.listdir(server.folder)) == [".dsg", "g1"]


def test_one_that_is_in_use_stays(server: Server) -> None:
    assert server.ask("mount", f"{server.repo}/g0").returncode == DONE
    fd = os.open(server.folder / "g0", os.O_RDONLY)
    try:
        done = server.ask("unmount", f"{server.repo}/g0")
    finally:
        os.close(fd)
    assert done.returncode == FAILED and b"busy" in done.stderr
    assert f"{server.repo}/g0" in server.mounted()


def test_a_readers_clone(server: Server) -> None:
    server.host.zfs("snapshot", f"{server.repo}/g0@s1")
    name = f"{server.repo}/r17-0123abcd"
    server.host.zfs("clone", "-o", "dsg:reader=17", f"{server.repo}/g0@s1", name)
    server.host.zfs("unmount", name)
    assert server.ask("mount", name).returncode == DONE
    assert server.mounted()[name] == str(server.folder / "r17-0123abcd")
    assert server.ask("unmount", name).returncode == DONE
    server.host.zfs("inherit", "dsg:reader", name)
    assert server.ask("mount", name).returncode == REFUSED


# Requests


def request(**members: Any) -> bytes:
    return json.dumps({"version": 1, "verb": "mount", "dataset": "x", **members}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"mount g0", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 1000, b"{" + b" " * 2000 + b"}"),
        *(request(version=2), request(version=True), request(verb="destroy"), request(more=1)),
        *(request(dataset=7), request(dataset=["x"]), request(verb=None)),
        request()[:-1] + b', "verb": "unmount"}',
        request() + request(),
        request(dataset="x" * 1024),
    ],
    ids=repr,
)
def test_what_is_no_request(server: Server, raw: bytes) -> None:
    done = server.say(raw)
    assert done.returncode == MALFORMED, done
    assert done.stderr.startswith(b"dsg-zfs-mount: ") and done.stderr.count(b"\n") == 1
    assert not server.mounted() and not done.stdout


HOSTILE = [
    *("", "/", "g0", "POOL", "ROOT", "ROOT/g0", "REPO", "REPO/", "REPO//g0", "/REPO/g0", "REPO/g0/"),
    *("REPO/g0@s1", "REPO/g0%", "REPO/g0,g1", "REPO/-g0", "-f", "-a", "REPO/g00", "REPO/g-1", "REPO/G0"),
    *(
        "REPO/../repo/g0",
        "REPO/g0/..",
        "REPO/.",
        "REPO/..",
        "ROOT/../g0",
        "REPO/g0\n",
        "REPO/g0\0",
        "REPO\n/g0",
    ),
    *(
        "REPO/g0 -O",
        "REPO/g0\t",
        "REPO/g٣",
        "REPO/g" + "9" * 30,
        "REPO/r1",
        "REPO/r1-xyz",
        "other/dsg/repo/g0",
    ),
    *("ROOT/-o/g0", "ROOT/re po/g0", "ROOT/repo/sub/g0", "ROOT/" + "x" * 65 + "/g0", "POOL/dsg/g0"),
]


@pytest.mark.parametrize("verb", ["mount", "unmount"])
@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_what_is_no_generation(server: Server, verb: str, name: str) -> None:
    for word, meant in (("POOL", server.host.pool), ("ROOT", server.root.dataset), ("REPO", server.repo)):
        name = name.replace(word, meant)
    server.wrap(f"echo called >> {server.root.folder}/called")
    done = server.ask(verb, name)
    assert done.returncode == REFUSED, done
    assert done.stderr.startswith(b"dsg-zfs-mount: refused: ") and done.stderr.count(b"\n") == 1
    assert b"\0" not in done.stderr and not server.mounted()
    assert not (server.root.folder / "called").exists(), "zfs was asked about it"


def test_what_is_not_dsgs(server: Server) -> None:
    zfs, root = server.host.zfs, server.root.dataset
    zfs("create", "-o", "canmount=off", f"{root}/foreign")
    zfs("create", f"{root}/foreign/g0")
    zfs("unmount", f"{root}/foreign/g0")
    assert server.ask("mount", f"{root}/foreign/g0").returncode == REFUSED
    without(('found[container]["dsg:format"] != ("1", "local")', "False"))
    assert server.ask("mount", f"{root}/foreign/g0").returncode == DONE
    # A property that is inherited is somebody else's.
    install(root)
    zfs("set", "dsg:format=1", root)
    assert server.ask("unmount", f"{root}/foreign/g0").returncode == REFUSED
    assert server.ask("mount", f"{server.repo}/g7").returncode == FAILED
    assert server.ask("mount", f"{root}/nothing/g0").returncode == FAILED


def test_arguments_and_rights(server: Server) -> None:
    raw = request(dataset=f"{server.repo}/g0")
    assert server.say(raw, "mount").returncode == MALFORMED
    assert server.say(raw, "").returncode == MALFORMED
    done = server.say(raw, python=shared_python(), user=server.account.uid, group=server.account.gid)
    assert done.returncode == REFUSED and b"root" in done.stderr
    assert not server.mounted()


# The head


def test_the_head_is_never_unmounted(server: Server) -> None:
    assert server.ask("mount", f"{server.repo}/g1").returncode == DONE
    done = server.ask("unmount", f"{server.repo}/g1")
    assert done.returncode == REFUSED and b"head" in done.stderr
    server.host.zfs("set", "dsg:head=gX", server.repo)
    assert server.ask("unmount", f"{server.repo}/g1").returncode == REFUSED
    assert f"{server.repo}/g1" in server.mounted()
    # The head of another: what is inherited counts for nothing.
    server.host.zfs("set", f"dsg:head=g2@s3:tx:sha256:{'0' * 64}", server.root.dataset)
    server.host.zfs("set", f"dsg:head=g1@s3:tx:sha256:{'0' * 64}", server.repo)
    assert server.ask("mount", f"{server.repo}/g2").returncode == DONE
    assert server.ask("unmount", f"{server.repo}/g2").returncode == DONE
    without(("found[1] == name", "False"))
    assert server.ask("unmount", f"{server.repo}/g1").returncode == DONE


# Where it would be mounted

_INHERITED = ('name != root and value["mountpoint"] != expected', "False")
_AFTER = ("if at == [path] and _source(above, name) == dataset:", "if at:")
_HANDS = (
    "found.st_uid != 0 or (found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX)",
    "False",
)
_TAKEN = ("if found.st_uid != 0:\n        os.fchown", "if False:\n        os.fchown")
_LINKS = ("os.O_DIRECTORY | os.O_NOFOLLOW", "os.O_DIRECTORY")
_FOREIGN = ("found.st_uid != 0 or found.st_mode & _OTHERS_WRITE:", "False:")
_DELEGATED = ('frozenset(["mountpoint", "receive", "rename"])', "frozenset()")


def covered(server: Server) -> bool:
    return str(server.elsewhere) in server.mounted().values()


def test_a_mountpoint_that_was_changed(server: Server) -> None:
    name = f"{server.repo}/g0"
    server.host.zfs("set", f"mountpoint={server.elsewhere}", name)
    server.host.fails("unmount", name)
    assert server.ask("mount", name).returncode == REFUSED
    # It was never mounted there, not even for a moment.
    server.wrap(f'[ "$1" = mount ] && touch {server.root.folder}/mounting')
    assert server.ask("mount", name).returncode == REFUSED
    assert not (server.root.folder / "mounting").exists()
    without(_INHERITED)
    done = server.ask("mount", name)
    assert done.returncode == REFUSED and b"unmounted again" in done.stderr and not covered(server)
    without(_INHERITED, _AFTER)
    assert server.ask("mount", name).returncode == DONE and covered(server)


def test_a_mountpoint_that_changes_in_between(server: Server) -> None:
    """Who has that right could; where nobody has, what was mounted is looked at nevertheless."""
    name, real = f"{server.repo}/g0", find_program("zfs")
    race = f'if [ "$1" = mount ]; then {real} set mountpoint={server.elsewhere} "$2"; {real} unmount "$2"; fi'
    server.wrap(race)
    done = server.ask("mount", name)
    assert done.returncode == REFUSED and b"unmounted again" in done.stderr and not covered(server)
    server.host.zfs("inherit", "mountpoint", name)
    server.host.fails("unmount", name)
    without(_AFTER)
    assert server.ask("mount", name).returncode == DONE and covered(server)


@pytest.mark.parametrize("right", ["mountpoint", "rename", "receive"])
def test_rights_that_nobody_may_have(server: Server, right: str) -> None:
    told = f"Local+Descendent permissions:\\n\\tgroup x clone,{right},mount"
    server.wrap(f"if [ \"$1\" = allow ]; then printf '{told}\\n'; exit 0; fi")
    done = server.ask("mount", f"{server.repo}/g0")
    assert done.returncode == REFUSED and right.encode() in done.stderr and not server.mounted()
    without(_DELEGATED)
    assert server.ask("mount", f"{server.repo}/g0").returncode == DONE
    install(server.root.dataset)
    server.wrap('if [ "$1" = allow ]; then echo "permission denied" >&2; exit 1; fi')
    assert server.ask("mount", f"{server.repo}/g2").returncode == REFUSED


def test_a_link_in_place_of_the_generation(server: Server) -> None:
    server.as_account(f"ln -s {server.elsewhere} {server.folder}/g0")
    assert server.ask("mount", f"{server.repo}/g0").returncode == REFUSED
    without(_LINKS, _FOREIGN)
    done = server.ask("mount", f"{server.repo}/g0")
    assert done.returncode == REFUSED and b"unmounted again" in done.stderr and not covered(server)
    without(_LINKS, _FOREIGN, _AFTER)
    assert server.ask("mount", f"{server.repo}/g0").returncode == DONE and covered(server)


def test_a_folder_of_the_accounts_own_in_its_place(server: Server) -> None:
    server.as_account(f"mkdir {server.folder}/g0")
    assert server.ask("mount", f"{server.repo}/g0").returncode == REFUSED
    without(_FOREIGN)
    assert server.ask("mount", f"{server.repo}/g0").returncode == DONE


def test_a_link_in_place_of_the_repositorys_folder(server: Server) -> None:
    server.as_account(f"mv {server.folder} {server.folder}-away; ln -s {server.elsewhere} {server.folder}")
    assert server.ask("mount", f"{server.repo}/g0").returncode == REFUSED
    assert not list(server.elsewhere.iterdir())
    without(_LINKS)
    server.ask("mount", f"{server.repo}/g0")
    assert server.elsewhere.stat().st_uid == 0
    without(_LINKS, _AFTER)
    server.ask("mount", f"{server.repo}/g0")
    assert str(server.elsewhere / "g0") in server.mounted().values()


def test_a_file_system_of_somebodys_own_in_its_place(server: Server) -> None:
    subprocess.run(["mount", "--bind", server.elsewhere, server.folder], check=True)
    try:
        done = server.ask("mount", f"{server.repo}/g0")
        assert done.returncode == REFUSED and b"something is mounted" in done.stderr
        without(("_mount_number(fd) != number", "False"))
        assert server.ask("mount", f"{server.repo}/g0").returncode == DONE
        server.host.zfs("unmount", f"{server.repo}/g0")
    finally:
        subprocess.run(["umount", server.folder], check=True)


@pytest.mark.parametrize("way", ["root", ".gen", "repo"])
def test_a_way_that_is_not_roots(server: Server, way: str) -> None:
    """Whoever may rename a folder on the way may put another in its place at any moment."""
    folder = {"root": server.root.folder, ".gen": server.folder.parent, "repo": server.folder}[way]
    os.chown(folder, 1, -1)
    done = server.ask("mount", f"{server.repo}/g0")
    assert done.returncode == REFUSED, done
    if way != "repo":
        os.chown(folder, 0, -1)
        folder.chmod(0o2775)
        assert server.ask("mount", f"{server.repo}/g0").returncode == REFUSED
        without(_HANDS)
        assert server.ask("mount", f"{server.repo}/g0").returncode == DONE


def test_a_swap_in_between(server: Server) -> None:
    """Between the look and the mounting the account puts a link in the folder's place."""
    name = f"{server.repo}/g0"
    swap = f"cd {server.folder} && mv g0 was; ln -s {server.elsewhere} g0"
    run = f"setpriv --reuid={server.account.uid} --regid={server.account.gid} --clear-groups"
    race = f"if [ \"$1\" = mount ]; then (export PATH=/usr/bin:/bin; {run} sh -c '{swap}'); fi"
    server.wrap(race)
    assert server.ask("mount", name).returncode == DONE
    assert server.mounted()[name] == str(server.folder / "g0") and not covered(server)
    assert server.ask("unmount", name).returncode == DONE
    os.chown(server.folder, server.account.uid, -1)
    without(_TAKEN, _HANDS)
    done = server.ask("mount", name)
    assert done.returncode == REFUSED and b"unmounted again" in done.stderr, done
    server.as_account(f"rm {server.folder}/g0; rmdir {server.folder}/was")
    without(_TAKEN, _HANDS, _AFTER)
    assert server.ask("mount", name).returncode == DONE and covered(server)


# Its configuration


def others_may_write() -> None:
    CONFIG.chmod(0o666)


def others_may_write_to_its_folder() -> None:
    CONFIG.parent.chmod(0o777)


def somebody_elses() -> None:
    os.chown(CONFIG, 1, 1)


def a_link() -> None:
    CONFIG.rename(CONFIG.parent / "other")
    CONFIG.symlink_to("other")


def test_what_is_no_configuration(server: Server) -> None:
    raw = request(dataset=f"{server.repo}/g0")
    lines = [
        "",
        "root =",
        f"root = {server.host.pool}",
        "root = /x",
        "root = a/..",
        "root = a/b\nroot = c/d",
        "a/b",
    ]
    for text in lines:
        CONFIG.write_text(text)
        assert server.say(raw).returncode == UNCONFIGURED, text
    CONFIG.unlink()
    assert server.say(raw).returncode == UNCONFIGURED
    CONFIG.mkdir()
    assert server.say(raw).returncode == UNCONFIGURED
    CONFIG.rmdir()
    CONFIG.write_text(f"root = {server.host.pool}/another\n")
    assert server.say(raw).returncode == REFUSED
    assert not server.mounted()


@pytest.mark.parametrize("spoil", [others_may_write, others_may_write_to_its_folder, somebody_elses])
def test_a_configuration_that_is_not_roots_alone(server: Server, spoil: Any) -> None:
    spoil()
    done = server.ask("mount", f"{server.repo}/g0")
    assert done.returncode == UNCONFIGURED and not server.mounted()
    without(_FOREIGN)
    assert server.ask("mount", f"{server.repo}/g0").returncode == DONE
    CONFIG.parent.chmod(0o755)


def test_a_configuration_that_is_a_link(server: Server) -> None:
    a_link()
    assert server.ask("mount", f"{server.repo}/g0").returncode == UNCONFIGURED
    without(("os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK", "os.O_RDONLY | os.O_NONBLOCK"))
    assert server.ask("mount", f"{server.repo}/g0").returncode == DONE


# What the caller chose


def test_nothing_of_the_environment_reaches_zfs(server: Server) -> None:
    server.wrap(f"/usr/bin/env > {server.root.folder}/env")
    raw = request(dataset=f"{server.repo}/g0")
    done = subprocess.run(
        [sys.executable, "-I", str(PROGRAM)],
        input=raw,
        capture_output=True,
        check=False,
        env={
            "SUDO_UID": str(server.account.uid),
            "PATH": "/tmp",
            "EVIL": "1",
            "HOME": "/tmp",
            "LC_ALL": "C.UTF-8",
            "ZFS_ABORT": "1",
        },
    )
    assert done.returncode == DONE, done
    names = {line.partition("=")[0] for line in (server.root.folder / "env").read_text().splitlines()}
    assert names <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_", "OLDPWD"}, names
    server.host.zfs("unmount", f"{server.repo}/g0")
    without(('env={"PATH": ":".join(_PROGRAMS), "LC_ALL": "C"},', ""), ("os.environ.clear()", ""))
    server.ask("mount", f"{server.repo}/g0")
    assert "SUDO_UID" in (server.root.folder / "env").read_text()


def test_it_needs_nothing_of_dsg(server: Server) -> None:
    """One file, so that an installation that somebody may write to is not run as root."""
    look = (
        "import runpy, sys; sys.path = [p for p in sys.path if 'site' not in p]; "
        f"runpy.run_path({str(SOURCE)!r}); "
        "print([m for m in sys.modules if m.startswith(('dsg', 'protocol', 'msgpack'))])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert SOURCE.read_text().startswith("#!/usr/bin/python3 -I\n")

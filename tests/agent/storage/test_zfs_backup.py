"""Backups of a ZFS repository into a second pool, whatever happens between them, and restoring one."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from dsg_remote_agent.storage.zfs import backup as backup_module
from dsg_remote_agent.storage.zfs.backup import back_up, restore
from dsg_remote_agent.storage.zfs.command import Answer, Zfs
from dsg_remote_agent.storage.zfs.streams import Brought, Side, guids
from protocol.errors import (
    ConfigError,
    DsgError,
    NotPermittedError,
    RemoteStorageError,
    WrongRepositoryError,
)
from tests.agent.client import tree_of
from tests.agent.storage.ground import ZfsGround, claim
from tests.agent.storage.test_pruning import History
from tests.agent.storage.test_repository import Died
from tests.conftest import find_program
from tests.hosts.sshd import REPOSITORY
from tests.hosts.zfs_wrapper import forbidden

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root"), pytest.mark.timeout(600)]

_numbers = itertools.count()
STRIDE = 1 if os.environ.get("DSG_FULL") else 4  # commands from one crash to the next


@pytest.fixture
def life(zfs_ground: ZfsGround) -> History:
    made = History(zfs_ground)
    for n in range(1, 4):
        made.sync({"f": b"%d" % n, f"d/only{n}": b"x%d" % n})
    return made


@pytest.fixture
def vault(zfs_ground: ZfsGround) -> Iterator[str]:
    """A second pool."""
    with zfs_ground.host.second_pool() as pool:
        yield pool


def ground_of(life: History) -> ZfsGround:
    assert isinstance(life.ground, ZfsGround)
    return life.ground


def send(life: History, target: str, zfs: Zfs | None = None) -> Brought:
    told: list[str] = []
    found = back_up(Zfs.find(), ground_of(life).dataset, Side(zfs or Zfs.find(), target), told.append)
    assert told == []
    return found


def restored(life: History, target: str) -> History:
    """The same history in a new repository, made of the backup."""
    ground = ground_of(life)
    root = ground.host.make_root(f"restored{next(_numbers)}")
    made = evolve(ground, folder=root.folder / "again", root=root)
    restore(Side(Zfs.find(), target), Zfs.find(), made.dataset, "", 0)
    again = History(made)
    again.contents = list(life.contents)
    return again


def value(life: History, prop: str, dataset: str) -> str:
    return str(ground_of(life).host.zfs("get", "-H", "-o", "value", prop, dataset)).strip()


def test_a_chain_of_20_syncs(life: History, vault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backups now and then; every sync makes another generation, and the target's name stays."""
    commands: list[tuple[str, ...]] = []
    run = Zfs.run

    def noting(self: Zfs, *words: str, **options: Any) -> Answer:
        commands.append(words)
        return run(self, *words, **options)

    monkeypatch.setattr(Zfs, "run", noting)
    target = f"{vault}/survey"
    assert send(life, target) == Brought(None, 3)
    for n in range(4, 24):
        life.sync({"f": b"%d" % n, f"d/{n % 4}": os.urandom(3000)}, [f"d/only{n}"] if n < 3 else [])
        if n % 3 == 0:
            assert send(life, target).newest == n
    assert send(life, target) == Brought(21, 23)
    assert send(life, target) == Brought(23, 23)
    assert not [words for words in commands if forbidden(list(words))]
    source = guids(Side(Zfs.find(), f"{ground_of(life).dataset}/g23"))
    assert source == guids(Side(Zfs.find(), target)) and source is not None and len(source) == 24
    assert value(life, "readonly", target) == "on"
    assert value(life, "mounted", target) == "no"

    again = restored(life, target)
    again.check(set(range(24)))
    assert tree_of(again.ground.folder) == life.contents[-1]
    assert ground_of(again).generations() == ["g23"]
    # Both go on, each by itself.
    again.sync({"f": b"after the restore"})
    again.check(set(range(25)))
    assert tree_of(again.ground.folder)["f"] == b"after the restore"
    assert ground_of(again).generations() == ["g24"]
    life.check(set(range(24)))


def test_what_is_pruned_between_is_held_for_the_next(life: History, vault: str) -> None:
    target = f"{vault}/survey"
    send(life, target)
    for n in range(4, 7):
        life.sync({"f": b"%d" % n})
    life.prune(last=1)
    # s3 is what both have: it is held for the backup, and is the only older one left.
    life.check({3, 6})
    assert send(life, target) == Brought(3, 6)
    # The backup keeps what it had; and the older hold is gone.
    assert sorted(guids(Side(Zfs.find(), target)) or {}) == [0, 1, 2, 3, 6]
    life.sync({"f": b"7"})
    life.prune(last=1)
    life.check({6, 7})
    again = restored(life, target)
    again.contents = life.contents[:7]
    again.check({0, 1, 2, 3, 6})


def test_without_the_hold_there_is_nothing_in_common(
    life: History, vault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control; then it is refused in words, the backup stays, and a new target takes all of it."""
    target = f"{vault}/survey"
    with monkeypatch.context() as patch:
        patch.setattr(backup_module, "_hold", lambda *_: None)
        send(life, target)
    life.sync({"f": b"4"})
    life.prune(last=1)
    before = guids(Side(Zfs.find(), target))
    with pytest.raises(RemoteStorageError, match="no snapshot in common") as caught:
        send(life, target)
    assert "s0 to s3" in caught.value.message and "s4" in caught.value.message
    assert "all of it is sent" in caught.value.hint
    assert guids(Side(Zfs.find(), target)) == before
    assert send(life, f"{vault}/new") == Brought(None, 4)
    restored(life, f"{vault}/new").check({4})


@pytest.mark.parametrize("what", ["written", "snapshot"])
def test_a_target_that_somebody_changed_is_refused(life: History, vault: str, what: str) -> None:
    ground = ground_of(life)
    target = f"{vault}/survey"
    send(life, target)
    life.sync({"f": b"4"})
    mountpoint = ground.host.folder / f"mnt{next(_numbers)}"
    ground.host.zfs("set", "readonly=off", target)
    ground.host.zfs("set", f"mountpoint={mountpoint}", target)
    ground.host.zfs("mount", target)
    (mountpoint / "somebodys").write_text("written into the backup")
    if what == "snapshot":
        ground.host.zfs("snapshot", f"{target}@theirs")
    ground.host.zfs("unmount", target)
    with pytest.raises(RemoteStorageError, match="not as the last backup left it") as caught:
        send(life, target)
    assert "rollback" in caught.value.hint
    ground.host.zfs("mount", target)
    assert (mountpoint / "somebodys").read_text() == "written into the backup"
    ground.host.zfs("unmount", target)
    # It can still be restored as of the last backup; and after a rollback it goes on.
    again = restored(life, target)
    again.contents = life.contents[:4]
    again.check({0, 1, 2, 3})
    if what == "snapshot":
        ground.host.zfs("destroy", f"{target}@theirs")
    ground.host.zfs("rollback", f"{target}@s3")
    assert send(life, target) == Brought(3, 4)


def test_an_interrupted_receive_leaves_what_was_there(life: History, vault: str, tmp_path: Path) -> None:
    """The line breaks in the middle: of the first stream, of the rest of it, and of a later one."""
    target = f"{vault}/survey"
    counter, cut = tmp_path / "streams", tmp_path / "cut"
    script = tmp_path / "line"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in *" receive "*)\n'
        f'  echo x >> {counter}; if [ "$(wc -l < {counter})" = "$(cat {cut})" ]; then\n'
        '    head -c 4000 | sh -c "$1"; exit; fi;; esac\n'
        'exec sh -c "$1"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    far = Zfs.find().through([str(script)])
    cut.write_text("1")
    with pytest.raises(RemoteStorageError):
        send(life, target, far)
    assert guids(Side(Zfs.find(), target)) is None
    counter.write_text("")
    cut.write_text("2")
    with pytest.raises(RemoteStorageError):
        send(life, target, far)
    # Nobody takes it for a backup yet.
    with pytest.raises(ConfigError, match="no whole backup"):
        restored(life, target)
    cut.write_text("0")
    assert send(life, target, far) == Brought(0, 3)
    life.sync({"f": os.urandom(20_000)})
    counter.write_text("")
    cut.write_text("1")
    with pytest.raises(RemoteStorageError):
        send(life, target, far)
    assert sorted(guids(Side(Zfs.find(), target)) or {}) == [0, 1, 2, 3]
    again = restored(life, target)
    again.contents = life.contents[:4]
    again.check({0, 1, 2, 3})
    assert send(life, target) == Brought(3, 4)
    restored(life, target).check({0, 1, 2, 3, 4})


class Crash:
    """Ends the process, as it were, after the Nth command of ZFS."""

    def __init__(self, number: int, patch: pytest.MonkeyPatch) -> None:
        self.left = number
        run, start = Zfs.run, Zfs.start

        def running(zfs: Zfs, *words: str, **options: Any) -> Answer:
            answer = run(zfs, *words, **options)
            self.count()
            return answer

        def starting(zfs: Zfs, *words: str, **options: Any) -> Any:
            child = start(zfs, *words, **options)
            try:
                self.count()
            except Died:
                if child.stdout is not None:
                    child.stdout.close()
                child.kill()
                child.wait()
                raise
            return child

        patch.setattr(Zfs, "run", running)
        patch.setattr(Zfs, "start", starting)

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Died


def test_a_crash_after_each_command(life: History, vault: str) -> None:
    """Of a backup, first and later, and of a restore: the next run ends as if nothing had been."""
    ground = ground_of(life)
    for later in (False, True):
        number = 0
        died = True
        while died:
            number += STRIDE
            # Of later ones all go to the same: each target has a hold of its own.
            target = f"{vault}/later" if later else f"{vault}/t{number}"
            if later:
                send(life, target)
                life.sync({"f": b"%d" % number})
            with pytest.MonkeyPatch.context() as patch:
                Crash(number, patch)
                try:
                    send(life, target)
                    died = False
                except Died:
                    pass
            send(life, target)
            newest = len(life.contents) - 1
            assert sorted(guids(Side(Zfs.find(), target)) or {}) == list(range(newest + 1))
            assert value(life, "dsg:backup-head", target).startswith(f"g{newest}@s{newest}:")
        assert number > 8
    number, died = 0, True
    while died:
        number += STRIDE
        root = ground.host.make_root(f"again{next(_numbers)}")
        made = evolve(ground, folder=root.folder / "again", root=root)
        with pytest.MonkeyPatch.context() as patch:
            Crash(number, patch)
            try:
                restore(Side(Zfs.find(), target), Zfs.find(), made.dataset, "", 0)
                died = False
            except Died:
                try:
                    patch.undo()
                    made.open().close()
                    whole = True
                except DsgError:
                    whole = False
                if not whole:
                    restore(Side(Zfs.find(), target), Zfs.find(), made.dataset, "", 0)
        again = History(made)
        again.contents = list(life.contents)
        if number % 8 == 0 or not died:
            again.check(set(range(len(life.contents))))
        else:
            made.open().recover(claim())
        assert tree_of(made.folder) == life.contents[-1]
        ground.host.discard(root)
    assert number > 10


def test_a_head_that_cannot_be_promoted_names_who_is_in_the_way(
    life: History, vault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Zfs.run
    busy = True

    def promotes_not(self: Zfs, *words: str, **options: Any) -> Answer:
        if words[0] == "promote" and busy:
            return Answer(words, 1, "", "dataset is busy")
        return run(self, *words, **options)

    monkeypatch.setattr(Zfs, "run", promotes_not)
    monkeypatch.setattr(backup_module, "_PROMOTED_IN", 1.0)
    life.sync({"f": b"4"})
    with pytest.raises(RemoteStorageError, match="cannot be promoted"):
        send(life, f"{vault}/survey")
    assert guids(Side(Zfs.find(), f"{vault}/survey")) is None
    # Housekeeping that was only late is done by the backup itself.
    busy = False
    assert send(life, f"{vault}/survey") == Brought(None, 4)
    assert ground_of(life).generations() == ["g4"]


@pytest.mark.parametrize(
    ("verb", "rights"), [("send", "send"), ("receive", "canmount,create,mount,readonly,receive,userprop")]
)
def test_a_right_that_is_missing_is_named(
    verb: str, rights: str, life: History, vault: str, tmp_path: Path
) -> None:
    """As OpenZFS says it to an account that lacks one; tests/openzfs/test_delegated.py has one."""
    program = tmp_path / "zfs"
    denied = f"echo 'cannot {verb}: permission denied' >&2; exit 1"
    program.write_text(f'#!/bin/sh\n[ "$1" != {verb} ] || {{ {denied}; }}\nexec {find_program("zfs")} "$@"\n')
    program.chmod(0o755)
    dataset, zfs = ground_of(life).dataset, Zfs(str(program))
    with pytest.raises(NotPermittedError) as caught:
        back_up(zfs, dataset, Side(zfs, f"{vault}/copy"), print)
    above = dataset.rpartition("/")[0] if verb == "send" else vault
    assert f"zfs allow -u root {rights} {above}" in (caught.value.hint or "")
    assert guids(Side(Zfs.find(), f"{vault}/copy")) is None


def test_what_is_another_repositorys_or_none(life: History, vault: str) -> None:
    ground = ground_of(life)
    target = f"{vault}/survey"
    send(life, target)
    ground.host.zfs("set", "dsg:backup-repo-id=repo-of-others", target)
    life.sync({"f": b"4"})
    with pytest.raises(WrongRepositoryError, match="repo-of-others"):
        send(life, target)
    ground.host.zfs("create", f"{vault}/data")
    with pytest.raises(RemoteStorageError, match="no snapshot in common"):
        send(life, f"{vault}/data")
    for nothing in (f"{vault}/data", f"{vault}/none"):
        with pytest.raises(ConfigError, match="no whole backup"):
            restored(life, nothing)
    send(life, f"{vault}/right")
    with pytest.raises(ConfigError, match="in use"):
        restore(Side(Zfs.find(), f"{vault}/right"), Zfs.find(), ground.dataset, "", 0)
    life.check(set(range(5)))


def test_the_command(life: History, vault: str) -> None:
    ground = ground_of(life)

    def backup(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dsg_remote_agent.backup", *words],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    target = f"{vault}/survey"
    done = backup("send", ground.dataset, target, "--through", "sh -c")
    assert done.returncode == 0 and "holds all of" in done.stdout, done
    life.sync({"f": b"4"})
    done = backup("send", f"zfs:{ground.dataset}", target, "--through", "sh -c")
    assert done.returncode == 0 and "from s3 to s4" in done.stdout, done
    done = backup("send", ground.dataset, target, "--through", "sh -c")
    assert done.returncode == 0 and "up to date: s4" in done.stdout, done
    root = ground.host.make_root(f"restored{next(_numbers)}")
    done = backup("restore", target, f"{root.dataset}/again")
    assert done.returncode == 0 and "newest snapshot is s4" in done.stdout, done
    again = History(evolve(ground, folder=root.folder / "again", root=root))
    again.contents = list(life.contents)
    again.check(set(range(5)))
    for words, status in (
        ((), 2),
        (("send", ground.dataset), 2),
        (("send", ground.dataset, ground.dataset), 2),
        (("send", ground.root.dataset, f"{vault}/x"), 4),
        (("send", ground.dataset, f"{vault}/no/such"), 9),
        (("restore", target, f"{root.dataset}/again"), 4),
        (("send", ground.dataset, target, "--through", "false"), 9),
    ):
        done = backup(*words)
        assert done.returncode == status, (words, done)
        assert "Traceback" not in done.stderr

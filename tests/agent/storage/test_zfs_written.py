"""The way of the backend on a ZFS that has ``written``, as OpenZFS does and zfs-fuse does not.

The property is added to zfs-fuse's answers, from what is true: a generation
was written to when a file in it changed after its newest snapshot.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsg_remote_agent.storage import looking, outside
from dsg_remote_agent.storage.zfs import standing
from dsg_remote_agent.storage.zfs.command import Answer, Zfs
from dsg_remote_agent.storage.zfs.site import Site
from dsg_remote_agent.storage.zfs.survey import Survey
from protocol.errors import OutsideChangeError
from tests.agent.client import merged, tree_of
from tests.agent.storage.ground import ZfsGround, claim

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root")]

_LOOKS = 5


class Written:
    """``zfs get`` with one property more. ``looked``: how often a whole tree was compared."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.looked = 0
        self._pictures: dict[str, Any] = {}
        original, examine = Zfs.run, looking.examine

        def run(zfs: Zfs, *words: str, **options: Any) -> Answer:
            since = [word.partition("@")[2] for word in words if word.startswith("written@")]
            if since:
                return self._since(zfs, original, since[0], words)
            asked = [word for word in words if word.endswith(",written")]
            plain = tuple(word.removesuffix(",written") for word in words)
            answer = original(zfs, *plain, **options)
            if words[0] == "snapshot" and answer.good:
                self._remember(zfs, original, *words[-1].split("@"))
            if asked and answer.good:
                return Answer(answer.words, 0, answer.out + self._rows(answer.out), "")
            return answer

        def counting(*args: Any, **options: Any) -> Any:
            self.looked += 1
            return examine(*args, **options)

        patch.setattr(Zfs, "run", run)
        patch.setattr(looking, "examine", counting)

    def _remember(self, zfs: Zfs, run: Any, name: str, snapshot: str) -> None:
        where = run(zfs, "get", "-H", "-o", "value", "mountpoint", name).out.strip()
        self._pictures[where] = self._pictures[f"{where}@{snapshot}"] = picture(Path(where))

    def _since(self, zfs: Zfs, run: Any, snapshot: str, words: tuple[str, ...]) -> Answer:
        where = run(zfs, "get", "-H", "-o", "value", "mountpoint", words[-1]).out.strip()
        known = self._pictures.get(f"{where}@{snapshot}")
        if known is None:
            return Answer(words, 1, "", "bad property list: invalid property")
        for _ in range(_LOOKS):
            if picture(Path(where)) == known:
                return Answer(words, 0, "0\n", "")
            time.sleep(0.1)  # zfs-fuse unmounts for an instant when a property is set; an edit stays
        return Answer(words, 0, "4096\n", "")

    def _rows(self, out: str) -> str:
        rows = [line.split("\t") for line in out.splitlines()]
        added = []
        for name, prop, value, _ in rows:
            if prop == "mountpoint" and value in self._pictures:
                mounted = [r[2] for r in rows if r[:2] == [name, "mounted"]] == ["yes"]
                same = not mounted or picture(Path(value)) == self._pictures[value]
                added.append(f"{name}\twritten\t{0 if same else 4096}\t-\n")
            elif prop == "mountpoint":
                added.append(f"{name}\twritten\t0\t-\n")
        return "".join(added)


def picture(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """What tells whether anybody wrote below ``root``."""
    found = {}
    for here, _, files in os.walk(root):
        for name in files:
            path = os.path.join(here, name)
            stat = os.lstat(path)
            content = b"" if os.path.islink(path) else Path(path).read_bytes()
            found[os.path.relpath(path, root)] = stat.st_ino, stat.st_mode, content
    return found


@pytest.fixture
def written(zfs_ground: ZfsGround, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    made = Written(monkeypatch)
    zfs_ground.sync({"a": b"one", "d/b": b"two"})
    made.looked = 0
    yield made


def test_a_sync_looks_at_no_file(zfs_ground: ZfsGround, written: Written) -> None:
    """Its cost follows the change: ZFS itself says that nothing else did."""
    for n in range(3):
        repository = zfs_ground.open()
        repository.examine(lambda: None)
        repository.close()
        zfs_ground.sync({"a": b"%d" % n})
    assert written.looked == 0
    assert tree_of(zfs_ground.folder) == {"a": b"2", "d/b": b"two"}
    assert zfs_ground.generations() == ["g4"]


def test_an_edit_stops_the_sync(zfs_ground: ZfsGround, written: Written) -> None:
    (zfs_ground.folder / "a").write_bytes(b"edited")
    with pytest.raises(OutsideChangeError, match="changed: a"):
        zfs_ground.begin(zfs_ground.open())
    assert written.looked == 1
    (zfs_ground.folder / "a").write_bytes(b"one")
    zfs_ground.sync({"d/b": b"new"})
    assert tree_of(zfs_ground.folder) == {"a": b"one", "d/b": b"new"}
    assert zfs_ground.generations() == ["g2"]


def test_a_stray_goes_along_and_costs_two_looks(zfs_ground: ZfsGround, written: Written) -> None:
    (zfs_ground.folder / "notes").write_bytes(b"somebody's")
    zfs_ground.sync({"a": b"2"})
    assert written.looked == 2  # before and after it was frozen
    assert (zfs_ground.folder / "notes").read_bytes() == b"somebody's"
    # From now on a snapshot has it, and ZFS does not count it as written.
    zfs_ground.sync({"a": b"3"})
    assert written.looked == 2
    assert (zfs_ground.folder / "notes").read_bytes() == b"somebody's"
    assert zfs_ground.generations() == ["g3"]
    assert not [name for name in zfs_ground.snapshots() if "base" in name]


def test_somebody_elses_snapshot_hides_no_edit(zfs_ground: ZfsGround, written: Written) -> None:
    """``written`` counts from the newest snapshot, whoever took it."""
    (zfs_ground.folder / "a").write_bytes(b"edited")
    (head,) = zfs_ground.generations()
    assert Zfs.find().run("snapshot", f"{zfs_ground.dataset}/{head}@hourly").good
    with pytest.raises(OutsideChangeError, match="changed: a"):
        zfs_ground.begin(zfs_ground.open())
    assert tree_of(zfs_ground.folder)["a"] == b"edited"


def test_what_is_written_behind_the_look_refuses_the_begin(
    zfs_ground: ZfsGround, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head with strays is snapshotted as it is: an edit that was not seen would go along, or be lost."""
    (zfs_ground.folder / "notes").write_bytes(b"somebody's")
    freeze = standing.freeze

    def late(*args: Any) -> None:
        (zfs_ground.folder / "a").write_bytes(b"edited")
        freeze(*args)

    monkeypatch.setattr(standing, "freeze", late)
    with pytest.raises(OutsideChangeError, match="while it was looked at"):
        zfs_ground.begin(zfs_ground.open())
    assert tree_of(zfs_ground.folder)["a"] == b"edited"
    (zfs_ground.folder / "a").write_bytes(b"and on")  # it is not frozen any more
    assert not [name for name in zfs_ground.snapshots() if "base" in name]


def test_what_is_written_while_the_sync_runs_refuses_the_commit(
    zfs_ground: ZfsGround, written: Written
) -> None:
    transaction, record = zfs_ground.prepare(zfs_ground.open(), {"a": b"new"})
    (zfs_ground.folder / "d" / "b").write_bytes(b"meanwhile")
    with pytest.raises(OutsideChangeError, match="while the sync ran"):
        transaction.commit(record.digest, lambda: None)
    transaction.abort()
    assert tree_of(zfs_ground.folder) == {"a": b"one", "d/b": b"meanwhile"}
    (zfs_ground.folder / "d" / "b").write_bytes(b"and on")


def test_what_the_kernel_itself_writes_does_not(
    zfs_ground: ZfsGround, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does some seconds after an encrypted head was mounted with its key again."""
    transaction, record = zfs_ground.prepare(zfs_ground.open(), {"a": b"new"})
    look = Site.survey

    def surveyed(site: Site, *, exact: bool = False) -> Survey:
        found = look(site, exact=exact)
        found.generations[1] = found.generations[1]._replace(written=True)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Site, "survey", surveyed)
        transaction.commit(record.digest, lambda: None)
    transaction.tidy()
    assert written.looked == 1
    assert tree_of(zfs_ground.folder) == {"a": b"new", "d/b": b"two"}
    assert zfs_ground.generations() == ["g2"]


def test_adopting(zfs_ground: ZfsGround, written: Written) -> None:
    (zfs_ground.folder / "a").write_bytes(b"edited")
    (zfs_ground.folder / "new").write_bytes(b"made there")
    (zfs_ground.folder / "d" / "b").unlink()
    repository = zfs_ground.open()
    transaction = zfs_ground.begin(repository, adopt=True)
    reader = repository.reader(None)
    base = reader.manifest()
    reader.close()
    changes = list(transaction.adopt(["a", "d/b", "new"], "bob"))
    record = transaction.prepare(merged(base, changes).digest, "taken in", "bob", "server")
    transaction.commit(record.digest, lambda: None)
    transaction.tidy()
    repository.close()
    assert tree_of(zfs_ground.folder) == {"a": b"edited", "new": b"made there"}
    assert not zfs_ground.open().find_outside(lambda _: None)
    zfs_ground.sync({"a": b"and on"})
    assert zfs_ground.generations() == ["g3"]


def test_what_is_adopted_in_several_goes_hides_nothing_between_them(
    zfs_ground: ZfsGround, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More was changed than one adoption takes: the rest is in its snapshot, and not 'written' since."""
    monkeypatch.setattr(outside, "MAX_SHOWN", 1)
    (zfs_ground.folder / "a").write_bytes(b"edited")
    (zfs_ground.folder / "d" / "b").write_bytes(b"edited, too")

    def adopt(path: str) -> None:
        repository = zfs_ground.open()
        transaction = zfs_ground.begin(repository, adopt=True)
        reader = repository.reader(None)
        changes = list(transaction.adopt([path], "bob"))
        record = transaction.prepare(merged(reader.manifest(), changes).digest, "", "bob", "server")
        reader.close()
        transaction.commit(record.digest, lambda: None)
        transaction.tidy()
        repository.close()

    adopt("a")
    with pytest.raises(OutsideChangeError, match="changed: d/b"):
        zfs_ground.begin(zfs_ground.open())
    adopt("d/b")
    zfs_ground.sync({"a": b"and on"})
    assert tree_of(zfs_ground.folder) == {"a": b"and on", "d/b": b"edited, too"}


def test_an_old_tree_that_was_written_to_is_kept(zfs_ground: ZfsGround, written: Written) -> None:
    old = zfs_ground.area.parent / "g1"
    with open(zfs_ground.folder / "a", "r+b", buffering=0) as file:
        zfs_ground.sync({"d/b": b"new"})
        file.write(b"too late")
    notes = zfs_ground.open().recover(claim("tx-recovers-1"))
    assert (old / "a").read_bytes() == b"too late"
    assert any("g1 is kept" in note for note in notes), notes
    assert tree_of(zfs_ground.folder) == {"a": b"one", "d/b": b"new"}

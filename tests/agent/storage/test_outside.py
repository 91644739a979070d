"""Changes made in the repository's folder without DSG: found, confirmed by hashing, adopted or refused."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from dsg_remote_agent.call import Gone
from dsg_remote_agent.dispatch import few
from dsg_remote_agent.storage import content as content_module
from dsg_remote_agent.storage import looking as looking_module
from dsg_remote_agent.storage.directory import DirectoryRepository
from dsg_remote_agent.storage.layout import INDEX, manifest_path, record_path
from protocol.errors import OutsideChangeError, PathsRefusedError
from protocol.manifest import FILE, LINK, Entry
from protocol.messages import Committed, OutsideChanges
from protocol.transaction import Step
from tests.agent.client import merged, sha, tree_of
from tests.agent.storage.ground import CallAt, Ground, only_directory
from tests.e2e.oracle import photograph

FILES = {"a": b"one", "d/b": b"two", "d/c": b"three", "z": b"last"}


@pytest.fixture
def filled(ground: Ground) -> Ground:
    ground.sync(FILES, links={"l": "a"})
    return ground


def look(ground: Ground) -> OutsideChanges:
    return ground.open().find_outside(lambda _: None)


def outside(
    *, modified: tuple[str, ...] = (), deleted: tuple[str, ...] = (), added: tuple[str, ...] = ()
) -> OutsideChanges:
    return OutsideChanges(modified=modified, deleted=deleted, added=added, more=0)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = content_module.digest_of

    def counting(tree: object, path: str, algorithm: str) -> bytes:
        read.append(path)
        return original(tree, path, algorithm)  # type: ignore[arg-type]

    monkeypatch.setattr(content_module, "digest_of", counting)
    return read


@only_directory
def test_nothing_changed_reads_nothing(filled: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    assert not look(filled)
    assert read == []


def test_what_people_do(filled: Ground) -> None:
    folder = filled.folder
    (folder / "a").write_bytes(b"edited")
    (folder / "d" / "b").unlink()
    (folder / "d" / "new").write_bytes(b"x")
    (folder / "0first").write_bytes(b"x")
    (folder / "l").unlink()
    (folder / "l").symlink_to("z")
    (folder / "z").unlink()
    (folder / "z").mkdir()
    (folder / "z" / "inner").write_bytes(b"x")
    os.mkfifo(folder / "fifo")
    assert look(filled) == outside(
        modified=("a", "l"), deleted=("d/b", "z"), added=("0first", "d/new", "z/inner")
    )


def test_same_size_and_mtime_put_back(filled: Ground) -> None:
    path = filled.folder / "a"
    before = path.stat()
    path.write_bytes(b"ONE")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert look(filled) == outside(modified=("a",))


def test_replaced_by_a_file_of_the_same_times(filled: Ground) -> None:
    path = filled.folder / "a"
    before = path.stat()
    other = filled.folder / "other"
    other.write_bytes(b"ONE")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    assert look(filled) == outside(modified=("a",))


@only_directory
def test_touched_but_the_same(filled: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A touch, a chmod for the group, a copy back from a backup: hashed once, then known again."""
    (filled.folder / "a").touch()
    (filled.folder / "d" / "b").chmod(0o644)
    time.sleep(0.05)
    read = count_reads(monkeypatch)
    assert not look(filled)
    assert sorted(read) == ["a", "d/b"]
    filled.begin(filled.open()).abort()
    read.clear()
    assert not look(filled)
    assert read == []


def test_the_executable_bit_counts(filled: Ground) -> None:
    (filled.folder / "a").chmod(0o775)
    assert look(filled) == outside(modified=("a",))


@only_directory
def test_without_an_index_all_is_hashed(filled: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    (filled.folder / INDEX).unlink()
    read = count_reads(monkeypatch)
    assert not look(filled)
    assert sorted(read) == sorted(FILES)


@only_directory
def test_beside_an_unapplied_commit_only_what_it_changes_is_in_doubt(
    filled: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a status nor a clone reads the whole repository because a commit is still being carried out."""

    class Died(BaseException):
        pass

    def die() -> None:
        raise Died

    filled.failpoints = CallAt(Step.REMOTE_DECIDED, die)
    repository = filled.open()
    transaction, record = filled.prepare(repository, {"a": b"new"}, ["d/b"])
    with pytest.raises(Died):
        transaction.commit(record.digest, lambda: None)
    read = count_reads(monkeypatch)
    assert not look(filled)
    assert read == []
    (filled.folder / "d" / "c").write_bytes(b"edited")
    assert look(filled) == outside(modified=("d/c",))
    assert set(read) == {"d/c"}


def test_names_that_only_look_like_dsgs_own(ground: Ground) -> None:
    ground.sync({".dsgnotes": b"1", ".dsg.d/x": b"2", "d/.dsg-init-x": b"3"})
    assert not look(ground)
    ground.sync({".dsgnotes": b"changed"})
    assert not look(ground)


def test_a_sync_refuses_changed_and_deleted(filled: Ground) -> None:
    (filled.folder / "a").write_bytes(b"edited")
    (filled.folder / "added").write_bytes(b"new")
    with pytest.raises(OutsideChangeError) as caught:
        filled.begin(filled.open())
    assert caught.value.facts["modified"] == ["a"]
    assert "adopt" in caught.value.hint
    (filled.folder / "a").write_bytes(FILES["a"])
    # The lock is free again; what is only added is for the client's scope to judge.
    transaction = filled.begin(filled.open())
    assert transaction.outside == outside(added=("added",))
    transaction.abort()


def test_an_added_file_is_never_overwritten(filled: Ground) -> None:
    (filled.folder / "mine").write_bytes(b"precious")
    repository = filled.open()
    with pytest.raises(OutsideChangeError, match="mine"):
        transaction, record = filled.prepare(repository, {"mine": b"from a client"})
        transaction.commit(record.digest, lambda: None)
    repository.close()
    assert filled.open().head()[1].seq == 1
    assert tree_of(filled.folder)["mine"] == b"precious"


@pytest.mark.parametrize("puts", [{"a": b"planned"}, {"d/b/now/folder": b"x"}, {"d": b"file for a folder"}])
def test_changed_between_begin_and_commit(filled: Ground, puts: dict[str, bytes]) -> None:
    deletes = {"a": [], "d/b/now/folder": ["d/b"], "d": ["d/b", "d/c"]}[next(iter(puts))]
    repository = filled.open()
    transaction, record = filled.prepare(repository, puts, deletes)
    for name in ("a", "d/b"):
        (filled.folder / name).write_bytes(b"edited meanwhile")
    before = tree_of(filled.folder)
    with pytest.raises(OutsideChangeError, match="while the sync ran"):
        transaction.commit(record.digest, lambda: None)
    transaction.abort()
    assert tree_of(filled.folder) == before
    assert repository.head()[1].seq == 1


def test_a_stranger_in_a_folder_that_gives_way_to_a_file(filled: Ground) -> None:
    repository = filled.open()
    transaction, record = filled.prepare(repository, {"d": b"file for a folder"}, ["d/b", "d/c"])
    (filled.folder / "d" / "stranger").write_bytes(b"precious")
    with pytest.raises(OutsideChangeError):
        transaction.commit(record.digest, lambda: None)
    transaction.abort()
    assert tree_of(filled.folder)["d/stranger"] == b"precious"


@only_directory
@pytest.mark.parametrize("step", [Step.REMOTE_CHECKED, Step.REMOTE_DECIDED])
def test_changed_after_the_last_look_is_rescued(filled: Ground, step: Step) -> None:
    """The decision wins, and nothing is lost: the unexpected file is kept, and people are told where."""

    def edit() -> None:
        (filled.folder / "a").write_bytes(b"a moment too late")
        (filled.folder / "brand-new").write_bytes(b"unexpected")

    filled.failpoints = CallAt(step, edit)
    repository = filled.open()
    transaction, record = filled.prepare(repository, {"a": b"planned", "brand-new": b"planned too"})
    done = transaction.commit(record.digest, lambda: None)
    assert tree_of(filled.folder)["a"] == b"planned"
    assert tree_of(filled.folder)["brand-new"] == b"planned too"
    rescued = {p.name: p.read_bytes() for p in (filled.folder / ".dsg" / "rescued").rglob("*") if p.is_file()}
    assert rescued == {"a": b"a moment too late", "brand-new": b"unexpected"}
    assert len(done.notes) == 2 and all(".dsg/rescued/" in note for note in done.notes)
    filled.failpoints = type(filled)(filled.folder).failpoints
    assert not look(filled)


# Adopting.


def adopt(ground: Ground, repository: DirectoryRepository, paths: list[str]) -> list[Entry | str]:
    transaction = ground.begin(repository, adopt=True)
    reader = repository.reader(None)
    base = reader.manifest()
    reader.close()
    changes = list(transaction.adopt(paths, "bob"))
    record = transaction.prepare(merged(base, changes).digest, "taken in", "bob", "server")
    transaction.commit(record.digest, lambda: None)
    return changes


def test_adopt(filled: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled.folder
    (folder / "a").write_bytes(b"edited")
    (folder / "d" / "b").unlink()
    (folder / "d" / "new").write_bytes(b"added")
    (folder / "d" / "new").chmod(0o775)
    (folder / "l").unlink()
    (folder / "l").symlink_to("z")
    (folder / "out-of-scope").write_bytes(b"not asked for")
    before = tree_of(folder)
    repository = filled.open()
    changes = adopt(filled, repository, ["a", "d/b", "d/new", "l"])
    assert changes[1] == "d/b"
    entries = [change for change in changes if isinstance(change, Entry)]
    assert [(e.path, e.kind, e.content, e.executable, e.who, e.seq) for e in entries] == [
        ("a", FILE, sha(b"edited"), False, "bob", 2),
        ("d/new", FILE, sha(b"added"), True, "bob", 2),
        ("l", LINK, b"z", False, "bob", 2),
    ]
    assert tree_of(folder) == before, "adopting moves nothing"
    record = repository.head()[1]
    assert (record.seq, record.added, record.changed, record.deleted) == (2, 1, 2, 1)
    assert look(filled) == outside(added=("out-of-scope",))


@only_directory
def test_what_is_changed_while_it_is_adopted(filled: Ground) -> None:
    (filled.folder / "a").write_bytes(b"edited")
    repository = filled.open()
    transaction = filled.begin(repository, adopt=True)
    reader = repository.reader(None)
    base = reader.manifest()
    reader.close()
    changes = list(transaction.adopt(["a"], "bob"))
    record = transaction.prepare(merged(base, changes).digest, "", "bob", "server")
    (filled.folder / "a").write_bytes(b"edited again")
    with pytest.raises(OutsideChangeError, match="a"):
        transaction.commit(record.digest, lambda: None)
    transaction.abort()
    assert repository.head()[1].seq == 1


def test_what_is_not_adopted_is_not_passed_over(filled: Ground) -> None:
    (filled.folder / "a").write_bytes(b"edited")
    (filled.folder / "z").unlink()
    repository = filled.open()
    transaction = filled.begin(repository, adopt=True)
    reader = repository.reader(None)
    base = reader.manifest()
    reader.close()
    changes = list(transaction.adopt(["a"], "bob"))
    with pytest.raises(OutsideChangeError, match="z"):
        transaction.prepare(merged(base, changes).digest, "", "bob", "server")
    transaction.abort()


def test_what_cannot_be_adopted(filled: Ground) -> None:
    (filled.folder / "evil").symlink_to("/etc/passwd")
    os.mkfifo(filled.folder / "fifo")
    transaction = filled.begin(filled.open(), adopt=True)
    with pytest.raises(PathsRefusedError) as caught:
        list(transaction.adopt(["evil", "fifo"], "bob"))
    assert len(caught.value.facts["refused"]) == 2
    transaction.abort()


def test_many_are_counted_and_the_dangerous_come_first(ground: Ground, tmp_path: Path) -> None:
    ground.sync({f"f{n:04d}": b"x" for n in range(600)})
    for n in range(600):
        (ground.folder / f"f{n:04d}").write_bytes(b"y")
        (ground.folder / f"a{n:04d}").write_bytes(b"z")
    found = look(ground)
    assert len(found.modified) == 600
    assert len(found.added) == 400
    assert found.more == 200


@only_directory
def test_more_rescued_files_than_an_answer_holds(ground: Ground, tmp_path: Path) -> None:
    """However much is to be said, a commit is answered as committed."""
    names = [f"f{n:04d}" for n in range(1200)]

    def edit() -> None:
        for name in names:
            (ground.folder / name).write_bytes(b"in the way")

    ground.failpoints = CallAt(Step.REMOTE_DECIDED, edit)
    transaction, record = ground.prepare(ground.open(), dict.fromkeys(names, b"planned"))
    done = transaction.commit(record.digest, lambda: None)
    assert len(done.notes) == 1200
    answer = Committed(record=done.raw, notes=few(done.notes))
    assert len(answer.notes) == 101 and "1,100 more" in answer.notes[-1]


# Looking ahead of a begin


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    looks: list[int] = []
    original = looking_module.examine

    def counting(*args: Any, **options: Any) -> Any:
        looks.append(1)
        return original(*args, **options)

    monkeypatch.setattr(looking_module, "examine", counting)
    return looks


@only_directory
def test_a_begin_takes_over_the_look_before_it(filled: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = count_looks(monkeypatch)
    repository = filled.open()
    repository.examine(lambda: None)
    filled.begin(repository).abort()
    assert len(looks) == 1
    filled.begin(repository).abort()
    assert len(looks) == 2, "it is good for one begin only"
    (filled.folder / "a").write_bytes(b"edited")
    repository.examine(lambda: None)
    with pytest.raises(OutsideChangeError, match="changed: a"):
        filled.begin(repository)
    assert len(looks) == 4, "a look ahead reads nothing: what differs is for the begin to find"


@only_directory
def test_a_look_ahead_neither_reads_nor_writes(filled: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    for _ in range(2):
        before = photograph(filled.folder)
        filled.open().examine(lambda: None)
        assert photograph(filled.folder) == before and read == []
        (filled.folder / "a").touch()


def test_a_look_ahead_ends_when_nobody_waits_for_it(filled: Ground) -> None:
    def tick() -> None:
        raise Gone

    with pytest.raises(Gone):
        filled.open().examine(tick)


def test_a_look_at_an_older_head_is_not_used(filled: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = filled.open()
    repository.examine(lambda: None)
    filled.sync({"a": b"another"})
    looks = count_looks(monkeypatch)
    filled.begin(repository).abort()
    assert len(looks) == 1


@only_directory
@pytest.mark.parametrize(("path", "noticed"), [("a", "by the commit"), ("z", "by the next begin")])
def test_what_changes_after_the_look(filled: Ground, path: str, noticed: str) -> None:
    repository = filled.open()
    repository.examine(lambda: None)
    (filled.folder / path).write_bytes(b"edited after the look")
    transaction, record = filled.prepare(repository, {"a": b"new"})
    if noticed == "by the commit":
        with pytest.raises(OutsideChangeError):
            transaction.commit(record.digest, lambda: None)
        transaction.abort()
    else:
        transaction.commit(record.digest, lambda: None)
        with pytest.raises(OutsideChangeError, match="changed: z"):
            filled.begin(repository)
    assert (filled.folder / path).read_bytes() == b"edited after the look"


@only_directory
def test_the_index_of_the_snapshot_before_still_counts(
    filled: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the end of a commit and its index: only what it brought is read."""
    before = (filled.folder / INDEX).read_bytes()
    filled.sync({"a": b"new", "e": b"added"}, ["d/b"])
    (filled.folder / INDEX).write_bytes(before)
    time.sleep(0.05)
    read = count_reads(monkeypatch)
    filled.begin(filled.open()).abort()
    assert sorted(read) == ["a", "e"]
    read.clear()
    filled.begin(filled.open()).abort()
    assert read == []


@only_directory
def test_an_index_whose_snapshot_is_damaged_is_no_index(filled: Ground) -> None:
    """It is a cache: everything is read, and the sync goes on."""
    before = (filled.folder / INDEX).read_bytes()
    filled.sync({"a": b"new"})
    (filled.folder / INDEX).write_bytes(before)
    (filled.folder / manifest_path(1)).write_bytes(b"damaged")
    filled.begin(filled.open()).abort()
    (filled.folder / INDEX).write_bytes(before)
    (filled.folder / record_path(1)).unlink()
    filled.begin(filled.open()).abort()

"""Head, records and manifests on disk: what is missing or damaged is an error that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsg_remote_agent.storage.layout import FORMAT_FILE, HEAD, LOCK, READERS_LOCK, manifest_path, record_path
from protocol.errors import ConfigError, DsgError, IntegrityError, VersionError, WrongRepositoryError
from protocol.records import SnapshotRecord, check_chain
from tests.agent.client import tree_of
from tests.agent.storage.ground import Ground, claim, only_directory

pytestmark = only_directory


@pytest.fixture
def grown(ground: Ground) -> Ground:
    for n in range(1, 6):
        ground.sync({"f": b"%d" % n, f"g{n}": b"x"})
    return ground


def test_records_and_their_chain(grown: Ground) -> None:
    repository = grown.open()
    raws = repository.records(0, 99)
    records = [SnapshotRecord.from_bytes(raw) for raw in raws]
    assert [record.seq for record in records] == [0, 1, 2, 3, 4, 5]
    check_chain(records)
    assert repository.records(2, 3) == raws[2:4]
    assert repository.records(5, 5) == raws[5:]
    assert repository.records(6, 9) == []
    assert repository.records(3, 2) == []
    assert all(repository.holds(record.digest) for record in records)
    assert not repository.holds(records[0].manifest)


DAMAGES = ["missing", "empty", "cut", "a byte changed", "unreadable"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[:-3])
    elif how == "a byte changed":
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(
    "name", [HEAD, record_path(5), manifest_path(5), record_path(3), manifest_path(3), FORMAT_FILE]
)
def test_damage_is_never_empty(grown: Ground, name: str, how: str) -> None:
    before = tree_of(grown.folder)
    damage(grown.folder / name, how)

    def use() -> None:
        repository = grown.open()
        repository.records(0, 99)
        for seq in (3, None):
            reader = repository.reader(seq)
            try:
                list(reader.manifest_blocks())
                reader.manifest()
            finally:
                reader.close()
        transaction = grown.begin(repository)
        transaction.abort()

    with pytest.raises((DsgError, OSError)) as caught:
        use()
    if isinstance(caught.value, DsgError):
        assert isinstance(caught.value, (IntegrityError, ConfigError, VersionError)), caught.value
        assert caught.value.hint, "the way out is missing"
    else:
        assert how == "unreadable", caught.value
    assert tree_of(grown.folder) == before


def test_a_record_swapped_for_another_that_is_whole(grown: Ground) -> None:
    """Every record is vouched for by the one after it, and the newest by the head."""
    records = grown.folder / ".dsg" / "records"
    (records / "00000002").write_bytes((records / "00000001").read_bytes())
    with pytest.raises(IntegrityError, match="damaged"):
        grown.open().records(0, 9)
    (records / "00000005").write_bytes((records / "00000004").read_bytes())
    with pytest.raises(IntegrityError):
        grown.open().head()


def test_a_manifest_of_another_snapshot(grown: Ground) -> None:
    manifests = grown.folder / ".dsg" / "manifests"
    (manifests / "00000005").write_bytes((manifests / "00000004").read_bytes())
    with pytest.raises(IntegrityError, match="00000005"):
        grown.open().reader(None).manifest()


def test_a_head_of_another_repository(grown: Ground, tmp_path: Path) -> None:
    marker = json.loads((grown.folder / FORMAT_FILE).read_text())
    (grown.folder / FORMAT_FILE).write_text(json.dumps({**marker, "repo_id": "repo-of-somebody-else"}))
    with pytest.raises(WrongRepositoryError):
        grown.open().head()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"format": 2}, VersionError, "newer"),
        ({"backend": "zfs"}, ConfigError, "zfs"),
        ({"kind": "folder"}, ConfigError, "working folder"),
        ({"algorithm": "md5"}, VersionError, "md5"),
        ({"repo_id": None}, IntegrityError, "damaged"),
    ],
)
def test_other_formats(grown: Ground, change: dict[str, object], error: type[DsgError], words: str) -> None:
    marker = json.loads((grown.folder / FORMAT_FILE).read_text())
    (grown.folder / FORMAT_FILE).write_text(json.dumps({**marker, **change}))
    with pytest.raises(error) as caught:
        grown.open()
    assert words in caught.value.message + caught.value.hint


@pytest.mark.parametrize("name", [LOCK, READERS_LOCK])
def test_a_lock_that_was_removed_is_not_made_anew(grown: Ground, name: str) -> None:
    """A new file would not exclude those who hold the old one."""
    (grown.folder / name).unlink()
    with pytest.raises(IntegrityError, match="missing") as caught:
        grown.open().reader(None).close()
        grown.begin(grown.open())
    assert "touch" in caught.value.hint
    assert not (grown.folder / name).exists()


def test_a_lost_head_is_written_anew_when_asked(grown: Ground) -> None:
    head = grown.folder / HEAD
    good = head.read_bytes()
    head.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        grown.begin(grown.open())
    assert not head.exists(), "a sync guesses nothing"
    notes = grown.open().recover(claim())
    assert head.read_bytes() == good
    assert any("s5" in note for note in notes)


@pytest.mark.parametrize("name", [record_path(5), record_path(2), manifest_path(5)])
def test_a_head_is_not_rebuilt_on_damaged_ground(grown: Ground, name: str) -> None:
    (grown.folder / HEAD).unlink()
    damage(grown.folder / name, "a byte changed")
    with pytest.raises(IntegrityError):
        grown.open().recover(claim())
    assert not (grown.folder / HEAD).exists()


def test_a_damaged_head_is_left_alone_by_recover(grown: Ground) -> None:
    (grown.folder / HEAD).write_bytes(b"garbage")
    with pytest.raises(IntegrityError, match="head"):
        grown.open().recover(claim())
    assert (grown.folder / HEAD).read_bytes() == b"garbage"

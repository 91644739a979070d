"""What programs on the server write to memory that maps a file of the head: found, or kept, never lost.

Linux has nothing to flush in a file system that is read-only, and lets
mappings made before be written to all the same.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsg_remote_agent.storage.zfs import cleaning
from dsg_remote_agent.storage.zfs.cleaning import clean
from protocol.errors import OutsideChangeError
from protocol.tree.posix import PosixTree
from tests.agent.client import merged, tree_of
from tests.agent.storage.ground import ZfsGround

pytestmark = [pytest.mark.slow, pytest.mark.needs("zfs-fuse", "root")]


@pytest.fixture
def filled(zfs_ground: ZfsGround) -> ZfsGround:
    zfs_ground.sync({"a": b"1" * 8192, "b": b"2"})
    return zfs_ground


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file's content in memory, as a database or numpy has it."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


def test_a_commit_is_refused(filled: ZfsGround) -> None:
    repository = filled.open()
    transaction, record = filled.prepare(repository, {"b": b"3"})
    with mapped(filled.folder / "a") as memory:
        memory[:4] = b"EDIT"
        with pytest.raises(OutsideChangeError, match="changed on the server while the sync ran"):
            transaction.commit(record.digest, lambda: None)
        transaction.abort()
    assert tree_of(filled.folder) == {"a": b"EDIT" + b"1" * 8188, "b": b"2"}


def adopted(filled: ZfsGround) -> bytes:
    """What the new head holds of a store to mapped memory that is adopted at once."""
    with mapped(filled.folder / "a") as memory:
        memory[:4] = b"EDIT"
        repository = filled.open()
        transaction = filled.begin(repository, adopt=True)
        reader = repository.reader(None)
        base = reader.manifest()
        reader.close()
        changes = list(transaction.adopt(["a"], "bob"))
        record = transaction.prepare(merged(base, changes).digest, "", "bob", "server")
        transaction.commit(record.digest, lambda: None)
    return (filled.folder / "a").read_bytes()[:4]


def test_it_is_adopted(filled: ZfsGround) -> None:
    assert adopted(filled) == b"EDIT"


@pytest.mark.needs("kernel-zfs")
def test_flushed_once_it_is_read_only_it_would_be_left_out(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a file's bytes would not be those that its digest was taken of."""
    flush = PosixTree.flush

    def late(tree: PosixTree) -> None:
        if os.statvfs(tree._root.fd).f_flag & os.ST_RDONLY:
            flush(tree)

    monkeypatch.setattr(PosixTree, "flush", late)
    assert adopted(filled) == b"1111"


def replaced_while_mapped(filled: ZfsGround) -> list[str]:
    """The head is replaced; then somebody who maps a file of the old one stores there. Notes of cleaning."""
    with mapped(filled.folder / "a") as memory:
        filled.sync({"b": b"3"})
        assert filled.generations() == ["g1", "g2"], "it is in use"
        memory[:4] = b"LATE"
    return clean(filled.open().site)


def test_what_is_stored_after_the_decision_is_kept(filled: ZfsGround) -> None:
    old = filled.area.parent / "g1" / "a"
    (note,) = replaced_while_mapped(filled)
    assert "g1 is kept" in note
    assert old.read_bytes()[:4] == b"LATE"
    assert (filled.folder / "a").read_bytes()[:4] == b"1111"


@pytest.mark.needs("kernel-zfs")
def test_unmounted_while_read_only_it_would_be_lost(
    filled: ZfsGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control; zfs-fuse flushes in any case."""
    monkeypatch.setattr(cleaning, "thaw", lambda *_: None)
    assert replaced_while_mapped(filled) == []
    assert filled.generations() == ["g2"]

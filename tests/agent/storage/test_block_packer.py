"""Manifests as they are stored: blocks that come out as they went in, whatever the parts were."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsg_remote_agent.storage import manifests
from dsg_remote_agent.storage.manifests import BlockPacker, inflate_blocks, read_blocks
from protocol.manifest import Manifest
from protocol.tree.posix import PosixTree
from tests.agent.client import file_entry


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[PosixTree]:
    made = PosixTree.open_tree(str(tmp_path))
    yield made
    made.close()


def stored(tree: PosixTree, parts: list[bytes], head: bytes = b"") -> list[bytes]:
    with BlockPacker() as packer:
        for part in parts:
            packer.add(part)
        packer.write(tree, "stored", head)
    return list(read_blocks(tree, "stored", "here"))


def test_parts_of_any_size(tree: PosixTree, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.from_entries(file_entry(f"{n:05}", rng.randbytes(9)) for n in range(2000))
    whole = manifest.to_bytes()
    for _ in range(30):
        monkeypatch.setattr(manifests, "BLOCK_BYTES", rng.choice([1000, 4096, len(whole), 1 << 19]))
        begins = rng.randrange(900)
        cuts = sorted(rng.sample(range(begins, len(whole)), rng.choice([0, 1, 5, 200])))
        parts = [whole[a:b] for a, b in zip([begins, *cuts], [*cuts, len(whole)], strict=True)]
        blocks = stored(tree, parts, whole[:begins])
        assert inflate_blocks(blocks, manifest.digest, 1, "here").to_bytes() == whole
        tree.unlink("stored")


def test_what_could_not_be_compressed_is_no_manifest(
    tree: PosixTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> bytes:
        raise MemoryError("by the test")

    monkeypatch.setattr(manifests, "_pack", fail)
    with pytest.raises(MemoryError, match="by the test"):
        stored(tree, [b"x" * 1000])
    assert tree.names("") == set()


def test_its_thread_ends_where_nothing_is_written() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), BlockPacker() as packer:
        packer.add(b"x" * (1 << 20))
        assert threading.active_count() == before + 1
        raise ZeroDivisionError
    assert threading.active_count() == before

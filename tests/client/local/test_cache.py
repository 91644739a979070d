"""C on disk: round trip, every kind of damage, and that it is never taken for empty."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import msgpack
import pytest

from dsg_client.local.cache import CACHE_PATH, Cache, decode_cache, encode_cache, load_cache
from dsg_client.local.workdir import Workdir
from protocol.errors import DsgError, IntegrityError, LocalStorageError, VersionError
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.tree.posix import PosixTree
from tests.client.local.conftest import as_nobody, give_to_nobody

RECORD = "sha256:" + "ab" * 32


def filled(count: int = 50) -> Cache:
    entries = [
        Entry(f"input/f{n:04}", FILE, bytes([n % 256]) * 32, n % 2 == 0, n, n, "me", 3) for n in range(count)
    ]
    entries.append(Entry("input/link", LINK, b"f0001", False, 0, 0))
    return Cache("repo-id", RECORD, 7, "rules", Manifest.from_entries(entries))


def test_round_trip(workdir: Workdir) -> None:
    cache = filled()
    (workdir.root / CACHE_PATH).write_bytes(encode_cache(cache))
    loaded = load_cache(workdir.tree)
    assert loaded == cache
    assert list(loaded) == list(cache.manifest)
    assert len(loaded) == 51


def test_the_documented_layout() -> None:
    """What docs/formats.md says, decoded by hand."""
    cache = filled(2)
    raw = encode_cache(cache)
    assert raw[:4] == b"DSGC"
    assert int.from_bytes(raw[4:6], "big") == 1
    length = int.from_bytes(raw[6:10], "big")
    assert msgpack.unpackb(raw[10 : 10 + length]) == {
        "manifest": cache.manifest.digest,
        "record": RECORD,
        "repo_id": "repo-id",
        "rules": "rules",
        "seq": 7,
    }
    assert raw[10 + length : -32] == cache.manifest.to_bytes()
    assert raw[-32:] == hashlib.sha256(raw[:-32]).digest()


def test_missing_is_an_error_with_a_way_out(workdir: Workdir) -> None:
    (workdir.root / CACHE_PATH).unlink()
    with pytest.raises(IntegrityError, match="missing") as caught:
        load_cache(workdir.tree)
    assert "dsg recover --rebuild-cache" in caught.value.hint
    assert caught.value.exit_status == 8


def test_every_flipped_bit_and_every_cut_is_noticed(rng: random.Random) -> None:
    good = encode_cache(filled(5))
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        with pytest.raises((IntegrityError, VersionError)):
            decode_cache(bytes(bad))
        with pytest.raises(IntegrityError):
            decode_cache(good[:at])
    for extra in (b"\0", good):
        with pytest.raises(IntegrityError):
            decode_cache(good + extra)


def test_the_checksum_is_what_notices() -> None:
    """The negative control: with checksums made to fit, another digest of a file goes unseen."""
    manifest = filled(5).manifest
    changed = Manifest.from_bytes(manifest.to_bytes().replace(bytes([3]) * 32, bytes([9]) * 32))
    forged = encode_cache(filled(5).but(manifest=changed))
    honest = encode_cache(filled(5))
    assert list(decode_cache(forged)) != list(decode_cache(honest))
    with pytest.raises(IntegrityError, match="checksum"):
        decode_cache(forged[:-32] + honest[-32:])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"manifest": "", "record": RECORD, "repo_id": "r", "rules": "", "seq": 0},
        {"record": RECORD, "repo_id": "r", "rules": "", "seq": -1},
        {"record": RECORD, "repo_id": "r", "rules": "", "seq": True},
        {"record": RECORD, "repo_id": 3, "rules": "", "seq": 0},
        {"record": "sha256:xyz", "repo_id": "r", "rules": "", "seq": 0},
        [],
        "text",
    ],
)
def test_a_header_with_wrong_fields(fields: object) -> None:
    manifest = Manifest.from_entries([])
    if isinstance(fields, dict) and fields:
        fields = {"manifest": manifest.digest} | fields
    packed = msgpack.packb(fields)
    body = b"DSGC\0\1" + len(packed).to_bytes(4, "big") + packed + manifest.to_bytes()
    with pytest.raises(IntegrityError):
        decode_cache(body + hashlib.sha256(body).digest())


def test_a_newer_format_says_upgrade(workdir: Workdir) -> None:
    raw = encode_cache(filled())
    (workdir.root / CACHE_PATH).write_bytes(raw[:4] + b"\0\2" + raw[6:])
    with pytest.raises(VersionError, match="format 2") as caught:
        load_cache(workdir.tree)
    assert caught.value.exit_status == 7


def test_an_algorithm_that_is_not_installed_here() -> None:
    """Nothing could be compared with such a C; its digest need not be worked out to know that."""
    encoded = b"DSGM1\n" + msgpack.packb(("nonesuch", 0))
    manifest = Manifest("nonesuch", 0, "nonesuch:" + "ab" * 32, encoded, len(encoded))
    with pytest.raises(IntegrityError, match="nonesuch"):
        decode_cache(encode_cache(Cache("repo-id", RECORD, 7, "rules", manifest)))


def test_a_folder_or_a_link_in_its_place(workdir: Workdir, tmp_path: Path) -> None:
    path = workdir.root / CACHE_PATH
    raw = path.read_bytes()
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError):
        load_cache(workdir.tree)
    path.rmdir()
    (tmp_path / "planted").write_bytes(raw)
    path.symlink_to(tmp_path / "planted")
    with pytest.raises(IntegrityError):
        load_cache(workdir.tree)


def test_one_that_cannot_be_read(public: Path) -> None:
    (public / ".dsg").mkdir()
    (public / CACHE_PATH).write_bytes(encode_cache(filled()))
    (public / CACHE_PATH).chmod(0)
    give_to_nobody(public / ".dsg", public / CACHE_PATH)

    def load() -> str:
        try:
            load_cache(PosixTree.open_tree(str(public)))
        except DsgError as error:
            return f"{type(error).__name__} {error.exit_status}"
        return "loaded"

    assert as_nobody(load) == f"{LocalStorageError.__name__} 10"

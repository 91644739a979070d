"""Compression: what it saves, what it leaves alone, and that nothing small becomes large."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import zlib
from random import Random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from protocol.compress import Compressor, blocks, inflate
from protocol.errors import RemoteProtocolError
from protocol.framing import MAX_PAYLOAD, Flag
from protocol.preamble import have_zstd

BOTH = pytest.mark.parametrize("algorithm", ["zstd", "zlib"])
FLAG = {"zstd": Flag.ZSTD, "zlib": Flag.ZLIB}
TEXT = b"time,value\n" + b"2024-01-01T00:00:00,1.25\n" * 20_000


@BOTH
@given(content=st.binary(min_size=1, max_size=2000), times=st.integers(1, 300))
def test_what_is_compressed_comes_back(algorithm: str, content: bytes, times: int) -> None:
    payload = (content * times)[:MAX_PAYLOAD]
    sent, flag = Compressor(algorithm).compress(payload)
    assert inflate(sent, flag) == payload
    assert len(sent) <= len(payload)
    assert flag in (Flag.NONE, Flag.ZLIB, FLAG[algorithm])


@BOTH
def test_text_shrinks(algorithm: str) -> None:
    compressor = Compressor(algorithm)
    for _ in range(5):
        sent, flag = compressor.compress(TEXT)
        assert flag is FLAG[algorithm]
        assert len(sent) < len(TEXT) // 10


@BOTH
def test_noise_is_left_alone_and_hardly_tried(algorithm: str) -> None:
    compressor = Compressor(algorithm)
    noise = Random(1).randbytes(512 * 1024)
    tries = 0
    for _ in range(200):
        skipped = compressor._skip > 0
        sent, flag = compressor.compress(noise)
        assert sent is noise
        assert flag is Flag.NONE
        tries += not skipped
    assert tries <= 12


@BOTH
def test_after_noise_it_finds_text_again(algorithm: str) -> None:
    compressor = Compressor(algorithm)
    noise = Random(1).randbytes(512 * 1024)
    for _ in range(100):
        compressor.compress(noise)
    flags = [compressor.compress(TEXT)[1] for _ in range(40)]
    assert flags[-1] is FLAG[algorithm]
    assert flags.index(FLAG[algorithm]) <= 32


def test_what_is_small_needs_no_zstd() -> None:
    """Importing it takes longer than zlib for the first 128 KiB, and noise may never need it."""
    compressor = Compressor("zstd")
    flags = [compressor.compress(TEXT[:32_768])[1] for _ in range(6)]
    assert flags == [Flag.ZLIB] * 4 + [Flag.ZSTD] * 2
    program = (
        "import random, sys; from protocol.compress import Compressor, inflate\n"
        "c = Compressor('zstd'); print([int(c.compress(random.randbytes(1 << 19))[1]) for _ in range(9)])\n"
        "sent = c.compress(bytes(1 << 14)); assert inflate(*sent) == bytes(1 << 14)\n"
        "print('zstandard' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str([0] * 9), "False"]


def test_small_payloads_and_no_compression() -> None:
    assert Compressor("zlib").compress(b"a" * 255) == (b"a" * 255, Flag.NONE)
    assert Compressor("none").compress(TEXT) == (TEXT, Flag.NONE)
    with pytest.raises(ValueError, match="unknown"):
        Compressor("lz4")
    assert have_zstd()


def test_the_same_bytes_give_the_same_frames() -> None:
    payloads = [Random(n).randbytes(100_000) if n % 3 else TEXT for n in range(20)]
    one, two = Compressor("zstd"), Compressor("zstd")
    assert [one.compress(p) for p in payloads] == [two.compress(p) for p in payloads]


def test_blocks_cover_the_content_without_copies() -> None:
    content = bytes(1_300_000)
    pieces = list(blocks(content))
    assert [len(p) for p in pieces] == [524_288, 524_288, 251_424]
    assert all(p.obj is content for p in pieces)
    assert list(blocks(b"")) == []


def test_uncompressed_is_handed_on() -> None:
    payload = memoryview(b"abc")
    assert inflate(payload, Flag.NONE) is payload


def zstd(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def streamed(content: bytes) -> bytes:
    """A zstd frame that does not say its size."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(content) + stream.flush()


GIB = zlib.compress(bytes(1 << 28))
HOSTILE = {
    "zlib nothing": (b"", Flag.ZLIB),
    "zlib noise": (b"\x78\x9c\xff\xff\xff", Flag.ZLIB),
    "zlib of nothing": (zlib.compress(b""), Flag.ZLIB),
    "zlib cut": (zlib.compress(TEXT)[:-1], Flag.ZLIB),
    "zlib with a wrong sum": (zlib.compress(TEXT)[:-1] + b"\x00", Flag.ZLIB),
    "zlib with more behind": (zlib.compress(b"abc") + b"x", Flag.ZLIB),
    "zlib twice": (zlib.compress(b"abc") * 2, Flag.ZLIB),
    "zlib one too many": (zlib.compress(bytes(MAX_PAYLOAD + 1)), Flag.ZLIB),
    "zlib bomb": (GIB, Flag.ZLIB),
    "gzip for zlib": (b"\x1f\x8b\x08" + bytes(20), Flag.ZLIB),
    "zstd nothing": (b"", Flag.ZSTD),
    "zstd noise": (b"\x28\xb5\x2f\xfd\xff\xff\xff", Flag.ZSTD),
    "zstd of nothing": (zstd(b""), Flag.ZSTD),
    "zstd cut": (zstd(TEXT)[:-1], Flag.ZSTD),
    "zstd with more behind": (zstd(b"abc") + b"x", Flag.ZSTD),
    "zstd twice": (zstd(b"abc") * 2, Flag.ZSTD),
    "zstd one too many": (zstd(bytes(MAX_PAYLOAD + 1)), Flag.ZSTD),
    "zstd bomb": (zstd(bytes(1 << 28)), Flag.ZSTD),
    "zstd bomb of unknown size": (streamed(bytes(1 << 28)), Flag.ZSTD),
    "zstd of unknown size": (streamed(b"abc"), Flag.ZSTD),
    # A frame header that claims 2^62 bytes: the library allocates what the header says.
    "zstd that claims much": (
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 62) + b"\x01\x00\x00",
        Flag.ZSTD,
    ),
    "zstd that claims less": (b"\x28\xb5\x2f\xfd\x20\x01" + zstd(b"abc")[6:], Flag.ZSTD),
    "zstd skippable": (b"\x50\x2a\x4d\x18\x01\x00\x00\x00x", Flag.ZSTD),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_payloads_are_refused_cheaply(name: str) -> None:
    payload, flag = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            inflate(payload, flag)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_without_a_cap_a_small_payload_becomes_large() -> None:
    """Negative control: what the cap is there for."""
    assert len(GIB) < MAX_PAYLOAD
    tracemalloc.start()
    zlib.decompress(GIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak >= 1 << 28


@pytest.mark.parametrize("flag", [Flag.ZLIB, Flag.ZSTD])
def test_the_cap_is_inclusive_and_never_nothing(flag: Flag) -> None:
    full = zlib.compress(bytes(1000)) if flag is Flag.ZLIB else zstd(bytes(1000))
    assert inflate(full, flag, cap=1000) == bytes(1000)
    with pytest.raises(RemoteProtocolError):
        inflate(full, flag, cap=999)
    for cap in (0, -1):
        with pytest.raises(ValueError, match="cap"):
            inflate(full, flag, cap=cap)


@given(st.binary(max_size=80), st.sampled_from([Flag.ZLIB, Flag.ZSTD]), st.booleans())
def test_any_bytes_inflate_or_are_refused(payload: bytes, flag: Flag, magic: bool) -> None:
    start = (b"\x78\x9c" if flag is Flag.ZLIB else b"\x28\xb5\x2f\xfd") if magic else b""
    try:
        found = inflate(start + payload, flag)
    except RemoteProtocolError:
        return
    assert 0 < len(found) <= MAX_PAYLOAD


@given(st.data(), st.sampled_from([Flag.ZLIB, Flag.ZSTD]))
def test_a_flipped_bit_is_refused_or_harmless(data: st.DataObject, flag: Flag) -> None:
    good = bytearray(zlib.compress(TEXT) if flag is Flag.ZLIB else zstd(TEXT))
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    good[bit // 8] ^= 1 << bit % 8
    try:
        found = inflate(bytes(good), flag)
    except RemoteProtocolError:
        return
    assert len(found) <= MAX_PAYLOAD

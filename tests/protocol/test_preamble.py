"""The preamble: found amid noise, told apart from what is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError, VersionError
from protocol.preamble import (
    Hello,
    Limits,
    Preamble,
    PreambleFound,
    PreambleMissing,
    PreambleScanner,
    hello_fields,
    preamble_bytes,
)

PREAMBLE = Preamble(dsg="0.1.0", features=frozenset({"zstd", "blake3"}), build="abc123")
BYTES = (
    b'\0DSG1\r\n{"dsg":"0.1.0","protocol":[1],"features":["blake3","zstd"],'
    b'"limits":{"in_flight":256,"credit":8388608},"build":"abc123"}\n'
)


def scan(*pieces: bytes) -> PreambleFound | PreambleMissing | None:
    scanner = PreambleScanner()
    for at, piece in enumerate(pieces):
        found = scanner.receive(piece)
        if isinstance(found, PreambleFound):
            return PreambleFound(found.preamble, found.noise, found.rest + b"".join(pieces[at + 1 :]))
        if found is not None:
            return found
    return None


def line(text: bytes) -> bytes:
    return b"\0DSG1\r\n" + text + b"\n"


def missing(data: bytes) -> PreambleMissing:
    found = scan(data)
    assert isinstance(found, PreambleMissing)
    in_pieces = scan(*(data[i : i + 1] for i in range(len(data))))
    assert isinstance(in_pieces, PreambleMissing)
    assert (in_pieces.reason, in_pieces.altered) == (found.reason, found.altered)
    assert found.seen.startswith(in_pieces.seen)
    return found


def test_known_bytes() -> None:
    assert preamble_bytes(PREAMBLE) == BYTES


@given(st.binary(max_size=200).filter(lambda b: b"\0" not in b), st.binary(max_size=60), st.integers(1, 50))
def test_found_amid_noise_however_it_is_cut(noise: bytes, rest: bytes, step: int) -> None:
    data = noise + BYTES + rest
    assert scan(data) == PreambleFound(PREAMBLE, noise, rest)
    assert scan(*(data[i : i + step] for i in range(0, len(data), step))) == PreambleFound(
        PREAMBLE, noise, rest
    )


def test_the_most_noise_that_is_borne() -> None:
    assert scan(b"x" * 65536 + BYTES) == PreambleFound(PREAMBLE, b"x" * 65536, b"")
    found = missing(b"x" * 65537 + BYTES[:10])
    assert "65536" in found.reason


def test_noise_without_end_is_not_kept() -> None:
    scanner = PreambleScanner()
    found = scanner.receive(b"y" * 10_000_000)
    assert isinstance(found, PreambleMissing)
    assert len(found.seen) < 70_000


def test_the_end_of_the_output() -> None:
    scanner = PreambleScanner()
    assert scanner.receive_eof().reason == "there was no output at all"
    scanner.receive(b"bash: dsg-remote-agent: command not found\n")
    assert "without a preamble" in scanner.receive_eof().reason
    assert b"not found" in scanner.receive_eof().seen
    scanner.receive(BYTES[:20])
    assert "within the preamble" in scanner.receive_eof().reason


@pytest.mark.parametrize("changed", [b"\0DSG1\n{}", b"\0DSG1\r\r\n{}", b"\0DSG1\r{}"])
def test_a_terminal_between_is_recognised_at_once(changed: bytes) -> None:
    assert missing(b"motd\n" + changed).altered


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"[]",
        b"1",
        b"{",
        b'{"dsg":"1"}',
        b'{"protocol":[1]}',
        b'{"dsg":1,"protocol":[1]}',
        b'{"dsg":"1","protocol":1}',
        b'{"dsg":"1","protocol":[]}',
        b'{"dsg":"1","protocol":[true]}',
        b'{"dsg":"1","protocol":["1"]}',
        b'{"dsg":"1","protocol":[-1]}',
        b'{"dsg":"1","protocol":[0]}',
        b'{"dsg":"1","protocol":[1e0]}',
        b'{"dsg":"1","protocol":[NaN]}',
        b'{"dsg":"\\u001b[31m","protocol":[1]}',
        b'{"dsg":"' + b"x" * 200 + b'","protocol":[1]}',
        b'{"dsg":"1","protocol":[1],"features":"zstd"}',
        b'{"dsg":"1","protocol":[1],"features":[1]}',
        b'{"dsg":"1","protocol":[1],"features":["\\u202e"]}',
        b'{"dsg":"1","protocol":[1],"limits":[]}',
        b'{"dsg":"1","protocol":[1],"limits":{"credit":0}}',
        b'{"dsg":"1","protocol":[1],"limits":{"credit":-1}}',
        b'{"dsg":"1","protocol":[1],"limits":{"credit":1e99}}',
        b'{"dsg":"1","protocol":[1],"limits":{"credit":1048576}}',
        b'{"dsg":"1","protocol":[1],"limits":{"in_flight":0}}',
        b'{"dsg":"1","protocol":[1],"limits":{"in_flight":257}}',
        b'{"dsg":"1","protocol":[1],"limits":{"in_flight":true}}',
        b'{"dsg":"1","protocol":[1],"build":{}}',
        b'{"dsg":"1","protocol":[' + b"1," * 100 + b"1]}",
        b"[" * 4000,
        b'{"a":' * 800,
        b"\xff\xfe",
        b"9" * 4096,
    ],
    ids=lambda text: ascii(text)[2:50],
)
def test_hostile_lines(text: bytes) -> None:
    found = missing(line(text))
    assert not found.altered
    assert len(found.reason) < 300


def test_a_line_without_end() -> None:
    assert "longer" in missing(b"\0DSG1\r\n" + b"{" * 4097).reason


def test_what_is_unknown_is_passed_over() -> None:
    found = scan(line(b'{"dsg":"9","protocol":[1,2],"features":["warp"],"limits":{"x":1},"new":[1]}'))
    assert isinstance(found, PreambleFound)
    assert found.preamble.features == {"warp"}
    assert found.preamble.limits == Limits()
    found.preamble.check_version()


def test_no_common_version() -> None:
    found = scan(line(b'{"dsg":"9.1","protocol":[2,3]}'))
    assert isinstance(found, PreambleFound)
    with pytest.raises(VersionError, match=r"9\.1.*2, 3.*speaks 1"):
        found.preamble.check_version()


def test_a_preamble_too_long_is_not_sent() -> None:
    with pytest.raises(ValueError, match="4096"):
        preamble_bytes(Preamble(dsg="1", features=frozenset(f"{n:064}" for n in range(64))))


def test_hello_comes_back() -> None:
    limits = Limits(in_flight=3, credit=3 << 20)
    fields = hello_fields("0.1", {"zstd"}, limits)
    assert fields == {
        "dsg": "0.1",
        "protocol": 1,
        "features": ["zstd"],
        "limits": {"in_flight": 3, "credit": 3 << 20},
    }
    assert Hello.from_wire(fields) == Hello(
        dsg="0.1", protocol=1, features=frozenset({"zstd"}), limits=limits
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["dsg", "protocol", "features", "limits", "build"]), json_values),
    st.sampled_from([None, "protocol", "limits", "features"]),
)
def test_any_fields_are_understood_or_refused(fields: dict[str, Any], good: str | None) -> None:
    base = json.loads(BYTES[7:-1])
    for mixed in (fields, {**base, **fields}, {**fields, **({good: base[good]} if good else {})}):
        text = json.dumps(mixed, allow_nan=True).encode()
        assert isinstance(scan(line(text)), PreambleFound | PreambleMissing)
        try:
            Hello.from_wire({**mixed, "protocol": mixed.get("protocol")})
        except (RemoteProtocolError, VersionError):
            pass

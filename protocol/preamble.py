"""The preamble: the agent's first words, found amid whatever a login prints before them.

``\\0DSG1\\r\\n``, then one line of JSON of at most 4 KiB. The NUL cannot come
from a message of the day, and a terminal or a text-mode pipe changes the
``\\r\\n``, so that it is noticed here and not in the middle of a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from typing import Any

from protocol.codec import MAX_PAYLOAD, Buffer
from protocol.errors import RemoteProtocolError, VersionError
from protocol.value import Value

__all__ = [
    "PROTOCOL",
    "Limits",
    "Preamble",
    "PreambleFound",
    "PreambleMissing",
    "PreambleScanner",
    "have_zstd",
    "preamble_bytes",
]

PROTOCOL = 1
_STEM = b"\0DSG1"
MAGIC = _STEM + b"\r\n"
MAX_LINE = 4096
MAX_NOISE = 64 * 1024
_MAX_NAMES = 64


class Limits(Value):
    """What a side accepts.

    ``in_flight``: requests not yet answered in full (1 to 256; the agent's
    counts). ``credit``: bytes of one body sent ahead of their consumption
    (2 to 64 MiB).
    """

    # Two frames at least: with less, a sender could wait for room for a whole frame while
    # the receiver waits to have enough consumed to be worth a CREDIT.
    LEAST_CREDIT = 2 * MAX_PAYLOAD
    MOST_CREDIT = 64 * MAX_PAYLOAD
    MOST_IN_FLIGHT = 256

    in_flight: int
    credit: int

    def __init__(self, *, in_flight: int = 256, credit: int = 8 * 1024 * 1024) -> None:
        super().__init__(in_flight, credit)
        if not 1 <= self.in_flight <= self.MOST_IN_FLIGHT:
            raise ValueError(f"in_flight is {self.in_flight}, not 1 to {self.MOST_IN_FLIGHT}")
        if not self.LEAST_CREDIT <= self.credit <= self.MOST_CREDIT:
            raise ValueError(f"credit is {self.credit}, not {self.LEAST_CREDIT} to {self.MOST_CREDIT}")

    @classmethod
    def from_wire(cls, found: Any) -> Limits:
        """What the other side announced; ValueError when out of range. Unknown limits are passed over."""
        if not isinstance(found, dict):
            raise ValueError("the limits are not a map")
        known = {name: found[name] for name in ("in_flight", "credit") if name in found}
        if any(type(value) is not int for value in known.values()):
            raise ValueError("a limit is not a whole number")
        return cls(**known)


def names(found: Any) -> frozenset[str]:
    """A list of feature names from outside; ValueError when it is not one. Unknown names are kept."""
    if not isinstance(found, list) or len(found) > _MAX_NAMES:
        raise ValueError("the features are not a short list")
    for name in found:
        if not isinstance(name, str) or not name.isascii() or not name.isprintable() or len(name) > 64:
            raise ValueError("a feature's name is not a short word")
    return frozenset(found)


def short_text(found: Any, what: str) -> str:
    """A version or build from outside, printable; ValueError when it is not."""
    if not isinstance(found, str) or not found.isascii() or not found.isprintable() or len(found) > 128:
        raise ValueError(f"the {what} is not a short text")
    return found


class Preamble(Value):
    """What the agent says of itself: its version, the protocols it speaks, features, limits, build."""

    dsg: str
    protocol: tuple[int, ...] = (PROTOCOL,)
    features: frozenset[str] = frozenset()
    limits: Limits = Limits()
    build: str = ""

    def check_version(self) -> None:
        """VersionError unless the agent speaks this side's protocol."""
        if PROTOCOL not in self.protocol:
            theirs = ", ".join(map(str, self.protocol)) or "none"
            raise VersionError(
                f"the agent (DSG {self.dsg}) speaks protocol {theirs}; this DSG speaks {PROTOCOL}",
                hint="install the same version of dsg-sync on both machines",
                facts={"remote_version": self.dsg, "remote_protocols": list(self.protocol)},
            )


def preamble_bytes(preamble: Preamble) -> bytes:
    """The preamble as sent; ValueError when it is longer than a client reads."""
    line = json.dumps(
        {
            "dsg": preamble.dsg,
            "protocol": list(preamble.protocol),
            "features": sorted(preamble.features),
            "limits": preamble.limits.to_map(),
            "build": preamble.build,
        },
        separators=(",", ":"),
    ).encode("ascii")
    if len(line) > MAX_LINE:
        raise ValueError(f"the preamble's line has {len(line)} bytes, more than {MAX_LINE}")
    return MAGIC + line + b"\n"


def _parse_line(line: bytes) -> Preamble:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        found = json.loads(line.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a map")
    protocols: Any = found.get("protocol")
    if (
        not isinstance(protocols, list)
        or not 1 <= len(protocols) <= _MAX_NAMES
        or any(type(number) is not int or not 0 < number < 1 << 16 for number in protocols)
    ):
        raise ValueError("the protocols are not a short list of numbers")
    return Preamble(
        dsg=short_text(found.get("dsg"), "version"),
        protocol=tuple(protocols),
        features=names(found.get("features", [])),
        limits=Limits.from_wire(found.get("limits", {})),
        build=short_text(found.get("build", ""), "build"),
    )


class PreambleFound(Value):
    """The preamble came: ``noise`` before it, ``rest`` (the first bytes of frames) after it."""

    preamble: Preamble
    noise: bytes
    rest: bytes


class PreambleMissing(Value):
    """No preamble: ``seen`` came instead (at most 68 KiB of it), ``reason`` says what is wrong with that.

    ``altered``: it is a preamble whose line end a terminal or a text-mode
    program between the two changed.
    """

    seen: bytes
    reason: str
    altered: bool = False


class PreambleScanner:
    """Looks for the preamble in the agent's output. The deadline is the caller's."""

    def __init__(self) -> None:
        self._seen = bytearray()
        self._result: PreambleFound | PreambleMissing | None = None

    @property
    def seen(self) -> bytes:
        """All bytes so far, for a diagnosis when the caller's time is up."""
        return bytes(self._seen)

    def receive(self, data: Buffer) -> PreambleFound | PreambleMissing | None:
        """Take the next bytes; None when more are needed. Must not be called again after a result."""
        if self._result is not None:
            raise ValueError("the search for the preamble is over")
        self._seen += data
        self._result = self._search()
        return self._result

    def receive_eof(self) -> PreambleMissing:
        """The output ended before the preamble was whole."""
        if MAGIC in self._seen:
            return self._missing("the output ended within the preamble")
        return self._missing(
            "the output ended without a preamble" if self._seen else "there was no output at all"
        )

    def _search(self) -> PreambleFound | PreambleMissing | None:
        at = self._seen.find(_STEM, 0, MAX_NOISE + len(_STEM))
        if at >= 0:
            line_end = bytes(self._seen[at + len(_STEM) : at + len(MAGIC)])
            if not b"\r\n".startswith(line_end):
                return self._missing(
                    "its line ends were changed on the way, as a terminal (pty) does", altered=True
                )
            if len(line_end) < 2:
                return None
        else:
            if len(self._seen) >= MAX_NOISE + len(_STEM):
                return self._missing(f"no preamble within {MAX_NOISE} bytes")
            return None
        start = at + len(MAGIC)
        end = self._seen.find(b"\n", start, start + MAX_LINE + 1)
        if end < 0:
            if len(self._seen) > start + MAX_LINE:
                return self._missing(f"the preamble's line is longer than {MAX_LINE} bytes")
            return None
        try:
            preamble = _parse_line(bytes(self._seen[start:end]))
        except (ValueError, RemoteProtocolError) as error:
            return self._missing(f"the preamble's line cannot be read: {error}")
        return PreambleFound(preamble, bytes(self._seen[:at]), bytes(self._seen[end + 1 :]))

    def _missing(self, reason: str, *, altered: bool = False) -> PreambleMissing:
        return PreambleMissing(bytes(self._seen[: MAX_NOISE + MAX_LINE]), reason, altered)


def hello_fields(version: str, features: Iterable[str], limits: Limits) -> dict[str, Any]:
    """The client's HELLO."""
    return {
        "dsg": version,
        "protocol": PROTOCOL,
        "features": sorted(features),
        "limits": limits.to_map(),
    }


class Hello(Value):
    """The client's choice: ``features`` are those of the preamble that it wants."""

    dsg: str
    protocol: int
    features: frozenset[str]
    limits: Limits

    @classmethod
    def from_wire(cls, found: Mapping[str, Any]) -> Hello:
        """A HELLO's fields; RemoteProtocolError or VersionError when they are not what they must be."""
        protocol = found.get("protocol")
        if type(protocol) is not int:
            raise RemoteProtocolError("the HELLO names no protocol")
        try:
            dsg = short_text(found.get("dsg"), "version")
            if protocol != PROTOCOL:
                raise VersionError(
                    f"the client (DSG {dsg}) asks for protocol {protocol}; this agent speaks {PROTOCOL}",
                    hint="install the same version of dsg-sync on both machines",
                )
            return cls(
                dsg=dsg,
                protocol=protocol,
                features=names(found.get("features", [])),
                limits=Limits.from_wire(found.get("limits", {})),
            )
        except ValueError as error:
            raise RemoteProtocolError(f"the HELLO cannot be read: {error}") from None


def have_zstd() -> bool:
    """Whether this side can offer the feature ``zstd``: looked for, not imported."""
    return PathFinder.find_spec("zstandard") is not None

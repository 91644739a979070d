"""The keys of servers: known_hosts read, checked and, with consent, written.

Format and rules are those of OpenSSH's sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.
Stricter in one thing: a host that is known by one key and shows a key of
another kind is a changed host, for it would have shown the known one.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from protocol.errors import (
    ConfigError,
    HostKeyChangedError,
    HostKeyUnknownError,
    LinkError,
    LocalStorageError,
)
from protocol.paths import escape
from protocol.value import Value

__all__ = [
    "Finding",
    "HostKey",
    "KnownEntry",
    "Verdict",
    "accept_new_host_key",
    "check_host_key",
    "host_key_error",
    "known_name",
    "read_known_hosts",
]

SSH_PORT = 22
_MAX_FILE = 64 * 1024 * 1024


class HostKey(Value):
    """A public key: its kind (``ssh-ed25519``) and its encoding."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen shows it: ``SHA256:`` and base64 without padding."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def short_kind(self) -> str:
        """As OpenSSH speaks of it: ED25519, RSA, ECDSA."""
        return self.kind.removeprefix("ssh-").removeprefix("sk-").partition("-")[0].upper()


class KnownEntry(Value):
    """One line of a known_hosts file. ``marker``: '', ``revoked`` or ``cert-authority``."""

    file: str
    line: int
    marker: str
    hosts: str
    key: HostKey

    def matches(self, name: str) -> bool:
        """Whether the line is about ``name``, which is what :func:`known_name` makes."""
        name = name.lower()
        if self.hosts.startswith("|"):
            return _hashed_matches(self.hosts, name)
        found = False
        for pattern in self.hosts.lower().split(","):
            negated = pattern.startswith("!")
            if _pattern_matches(pattern.removeprefix("!"), name):
                if negated:
                    return False
                found = True
        return found


class Verdict(Enum):
    """What known_hosts says of a key."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


class Finding(Value):
    """The verdict on a key; ``entry`` is the line that decided it, if one did."""

    verdict: Verdict
    entry: KnownEntry | None = None


def known_name(host: str, port: int) -> str:
    """Under which name a host stands in known_hosts: with its port only where that is not 22."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def read_known_hosts(files: Iterable[str | os.PathLike[str]]) -> list[KnownEntry]:
    """All entries of ``files``; files that do not exist and lines that are none are passed over.

    ConfigError for a file that exists and cannot be read: passing over it
    would turn a changed key into an unknown one.
    """
    entries: list[KnownEntry] = []
    for file in files:
        try:
            with open(file, "rb") as opened:
                text = opened.read(_MAX_FILE).decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(
                f"{escape(os.fspath(file))} cannot be read: {error.strerror}",
                hint="make it readable, or name another file with UserKnownHostsFile in ~/.ssh/config",
            ) from None
        for number, line in enumerate(text.split("\n"), 1):
            entry = _parse_line(os.fspath(file), number, line)
            if entry is not None:
                entries.append(entry)
    return entries


def check_host_key(entries: Sequence[KnownEntry], host: str, port: int, key: HostKey) -> Finding:
    """What ``entries`` say of the key that ``host`` shows: revoked before known before changed."""
    about = [entry for entry in entries if entry.matches(known_name(host, port))]
    for entry in about:
        if entry.marker == "revoked" and entry.key.blob == key.blob:
            return Finding(Verdict.REVOKED, entry)
    plain = [entry for entry in about if not entry.marker]
    for entry in plain:
        if entry.key.blob == key.blob:
            return Finding(Verdict.KNOWN, entry)
    if plain:
        # The line of the same kind of key, if there is one, is the one to remove.
        return Finding(Verdict.CHANGED, min(plain, key=lambda entry: entry.key.kind != key.kind))
    if port != SSH_PORT and check_host_key(entries, host, SSH_PORT, key).verdict is Verdict.KNOWN:
        # As OpenSSH: a key known without a port vouches for the host's other ports; another key says nothing.
        return Finding(Verdict.KNOWN)
    return Finding(Verdict.UNKNOWN)


def host_key_error(finding: Finding, host: str, port: int, key: HostKey, again: str) -> LinkError | None:
    """The error to raise for a key that is not known; None for one that is.

    ``again``: the command line to repeat with ``--accept-new-host-key``.
    """
    name = known_name(host, port)
    entry = finding.entry
    shown = f"{key.short_kind} {key.fingerprint}"
    facts = {"host": name, "kind": key.kind, "fingerprint": key.fingerprint}
    if entry is not None:
        facts |= {"file": entry.file, "line": str(entry.line)}
    match finding.verdict:
        case Verdict.KNOWN:
            return None
        case Verdict.UNKNOWN:
            return HostKeyUnknownError(
                f"the host key of {name} is not known yet: {shown}",
                hint="compare this fingerprint with the one that the server's administrator tells you; "
                f"when they are equal: {again} --accept-new-host-key",
                facts=facts,
            )
        case Verdict.CHANGED:
            assert entry is not None
            return HostKeyChangedError(
                f"the host key of {name} is not the one that is known: it shows {shown}; "
                f"{escape(entry.file)}, line {entry.line}, "
                f"has {entry.key.short_kind} {entry.key.fingerprint}",
                hint="somebody may be between you and the server. Ask its administrator; when the key was "
                f"really replaced: ssh-keygen -R '{name}' -f '{escape(entry.file)}', then connect again",
                facts=facts | {"known_fingerprint": entry.key.fingerprint},
            )
        case Verdict.REVOKED:
            assert entry is not None
            return HostKeyChangedError(
                f"the host key of {name} was revoked: {shown}, {escape(entry.file)}, line {entry.line}",
                hint="do not connect; ask the server's administrator for its new key",
                facts=facts | {"revoked": True},
            )


def accept_new_host_key(file: str | os.PathLike[str], host: str, port: int, key: HostKey) -> None:
    """Append the key of a new host to known_hosts, durably; hashed where the file has hashed names.

    A file or ``.ssh`` folder that is not there is made, private to the user.
    LocalStorageError when it cannot be written; the file may then end in part
    of a line, which every reader passes over.
    """
    path = Path(file)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True)
        before = path.read_bytes() if path.exists() else b""
        name = known_name(host, port)
        if any(line.startswith(b"|1|") for line in before.splitlines()):
            name = _hashed(name.lower())
        line = f"{name} {key.kind} {base64.b64encode(key.blob).decode()}\n".encode()
        if before and not before.endswith(b"\n"):
            line = b"\n" + line
        # Appended, not replaced: known_hosts may be a link into a folder of dotfiles, or others' programs
        # may append at the same moment.
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
            os.fsync(fd)
        finally:
            os.close(fd)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise LocalStorageError(
            f"the host key cannot be written to {escape(str(path))}: {error.strerror}",
            hint="make room, or make the file writable for you",
        ) from None


def _parse_line(file: str, number: int, line: str) -> KnownEntry | None:
    words = line.split()
    marker = ""
    if words and words[0].startswith("@"):
        marker = words.pop(0)[1:]
        if marker not in ("revoked", "cert-authority"):
            return None
    if len(words) < 3 or words[0].startswith("#"):
        return None
    hosts, kind, encoded = words[:3]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    # The blob begins with its own kind; a line that claims another is none.
    if blob[4 : 4 + int.from_bytes(blob[:4], "big")] != kind.encode("utf-8", "surrogateescape"):
        return None
    return KnownEntry(file, number, marker, hosts, HostKey(kind, blob))


def _pattern_matches(pattern: str, name: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return pattern == name
    # fnmatch, but '[' is a plain character here.
    return re.match(fnmatch.translate(pattern.replace("[", "[[]")), name) is not None


def _hashed_matches(hosts: str, name: str) -> bool:
    parts = hosts.split("|")
    if len(parts) != 4 or parts[1] != "1":
        return False
    try:
        salt, digest = base64.b64decode(parts[2]), base64.b64decode(parts[3])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)


def _hashed(name: str) -> str:
    salt = secrets.token_bytes(hashlib.sha1(usedforsecurity=False).digest_size)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"

"""Where a directory repository keeps its own things, and the marker that says what it is.

Everything lies in ``.dsg/`` of the repository's folder (``docs/formats.md``).
Files that are replaced are written beside and renamed, so that a reader sees
the old one or the new one, whole.
"""

from __future__ import annotations

import json
from typing import Any

from protocol.digest import ALGORITHMS
from protocol.errors import ConfigError, IntegrityError, VersionError
from protocol.tree.fs import TreeFS
from protocol.value import Value

__all__ = [
    "AREA",
    "BACKEND",
    "FORMAT",
    "FORMAT_FILE",
    "HEAD",
    "INDEX",
    "INIT_PREFIX",
    "LOCK",
    "LOCK_HOLDER",
    "MANIFESTS",
    "OBJECTS",
    "PROTECTED_FILE",
    "PRUNED",
    "READERS_LOCK",
    "RECORDS",
    "RESCUED",
    "SETTINGS",
    "STAGING",
    "TMP",
    "ZFS",
    "Marker",
    "manifest_path",
    "object_folders",
    "object_path",
    "read_marker",
    "read_settings",
    "record_path",
    "replace_bytes",
    "stands",
]

AREA = ".dsg"
INIT_PREFIX = ".dsg-init-"
FORMAT_FILE = ".dsg/format"
LOCK = ".dsg/lock"
LOCK_HOLDER = ".dsg/lock.holder"
READERS_LOCK = ".dsg/readers.lock"
HEAD = ".dsg/head"
SETTINGS = ".dsg/settings"
INDEX = ".dsg/index"
RECORDS = ".dsg/records"
MANIFESTS = ".dsg/manifests"
OBJECTS = ".dsg/history/objects"
PRUNED = ".dsg/pruned"
PROTECTED_FILE = ".dsg/protected"
RESCUED = ".dsg/rescued"
STAGING = ".dsg/staging"
TMP = ".dsg/tmp"

FORMAT = 1
BACKEND = "directory"
ZFS = "zfs"
MAX_MARKER_BYTES = 16 * 1024
MAX_SETTINGS = 16_000  # characters, as in the message that brought it
MAX_SETTINGS_BYTES = 4 * MAX_SETTINGS


def record_path(seq: int) -> str:
    """The file of a snapshot's record."""
    return f"{RECORDS}/{seq:08d}"


def manifest_path(seq: int) -> str:
    """The file of a snapshot's manifest."""
    return f"{MANIFESTS}/{seq:08d}"


def object_path(digest: bytes) -> str:
    """Where content that the head no longer has at its path is kept."""
    digits = digest.hex()
    return f"{OBJECTS}/{digits[:2]}/{digits}"


def object_folders() -> list[str]:
    """All the folders that :func:`object_path` leads to."""
    return [f"{OBJECTS}/{number:02x}" for number in range(256)]


class Marker(Value):
    """What ``.dsg/format`` says: the repository's id, digest algorithm and kind of storage."""

    repo_id: str
    algorithm: str
    created: int  # seconds since the epoch
    backend: str = BACKEND

    def to_bytes(self) -> bytes:
        """One line of JSON, for people to read."""
        fields = {
            "format": FORMAT,
            "kind": "repository",
            "backend": self.backend,
            "repo_id": self.repo_id,
            "algorithm": self.algorithm,
            "created": self.created,
        }
        return json.dumps(fields).encode() + b"\n"


def read_marker(tree: TreeFS, shown: str, backend: str = BACKEND) -> Marker:
    """The marker of the repository in ``tree``, which must be of this backend; ``shown`` is its path.

    ConfigError when there is no repository here or it is a working folder,
    VersionError for a newer format, IntegrityError for a damaged one.
    """
    try:
        text = tree.read_bytes(FORMAT_FILE, MAX_MARKER_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        if AREA in tree.names(""):
            raise IntegrityError(
                f"{shown} has a .dsg folder without its format file",
                hint="restore .dsg/format from a backup; nothing in this repository was touched",
            ) from None
        raise ConfigError(
            f"{shown} is not a DSG repository",
            hint="check the path; is the file system mounted? 'dsg init' makes a new repository",
        ) from None
    damaged = IntegrityError(
        f"the format file of {shown} is damaged",
        hint="restore .dsg/format from a backup; nothing in this repository was touched",
    )
    try:
        found: Any = json.loads(text)
    except ValueError:
        raise damaged from None
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise damaged
    if found["format"] > FORMAT:
        raise VersionError(
            f"{shown} has format {found['format']}; this agent reads format {FORMAT}",
            hint="install a newer DSG on the server",
        )
    if found.get("kind") != "repository":
        raise ConfigError(
            f"{shown} is somebody's working folder, not a repository",
            hint="name the folder of the repository itself",
        )
    if found.get("backend") != backend:
        raise ConfigError(
            f"{shown} is a repository of the kind {found.get('backend')!r}, not {backend!r}",
            hint="use the address with which it was made, such as host:zfs:pool/dataset",
        )
    repo_id, algorithm, created = found.get("repo_id"), found.get("algorithm"), found.get("created")
    if not isinstance(repo_id, str) or not repo_id or type(created) is not int:
        raise damaged
    if algorithm not in ALGORITHMS:
        raise VersionError(f"{shown} uses the unknown digest algorithm {algorithm!r}")
    return Marker(repo_id, algorithm, created, backend)


def read_settings(tree: TreeFS, shown: str) -> str:
    """The text that init was given for clones, '' when there is none; IntegrityError when it is damaged."""
    try:
        text = tree.read_bytes(SETTINGS, MAX_SETTINGS_BYTES).decode()
        if len(text) > MAX_SETTINGS:
            raise ValueError("too long")
        return text
    except FileNotFoundError:
        return ""
    except ValueError:
        raise IntegrityError(
            f"{shown}/{SETTINGS} is damaged", hint="restore it from a backup, or remove it"
        ) from None


def stands(tree: TreeFS, path: str) -> bool:
    """Whether there is anything at ``path``."""
    try:
        tree.stat(path)
    except FileNotFoundError:
        return False
    return True


def replace_bytes(tree: TreeFS, path: str, payload: bytes, *, durable: bool = True) -> None:
    """Put ``payload`` at ``path`` whole, by way of a file of the same name in ``.dsg/tmp``.

    Only while holding the repository's lock: the temporary name is fixed. A
    failure leaves ``path`` as it was. Without ``durable``, a crash of the
    machine leaves either what was there or ``payload``.
    """
    folder, _, name = path.rpartition("/")
    beside = f"{TMP}/{name}"
    tree.make_folders(TMP)
    try:
        tree.unlink(beside)
    except FileNotFoundError:
        pass
    tree.write_bytes(beside, payload)
    tree.move(beside, path)
    if durable:
        tree.flush_folder(folder)

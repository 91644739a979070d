"""L, C and R read back from disk, by ``docs/formats.md`` alone: no product code.

A *tree* is a dictionary from path to version: a :class:`File` or a
:class:`Link`, with the bytes as they lie on disk. What DSG writes down about a
tree names files by digest; :func:`digests` turns the one into the other.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import unicodedata
import zlib
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from attrs import field, frozen

__all__ = [
    "Cache",
    "Entry",
    "File",
    "Link",
    "Record",
    "Repository",
    "Tree",
    "digests",
    "photograph",
    "read_cache",
    "read_repository",
    "read_tree",
]

AREA = ".dsg"
SETTINGS = ".dsgconfig.yml"


class File(NamedTuple):
    """A file's bytes, or in what DSG wrote down their SHA-256; and whether its owner may execute it."""

    content: bytes
    executable: bool = False


class Link(NamedTuple):
    """A symbolic link's target."""

    target: str


Version = File | Link
Tree = dict[str, Version]


# What is on disk


def read_tree(folder: Path) -> Tree:
    """Every file and link below ``folder`` but DSG's own."""
    found: Tree = {}
    for here, folders, files in os.walk(folder):
        if Path(here) == folder:
            folders[:] = [name for name in folders if name != AREA]
        for name in [*folders, *files]:
            path = os.path.join(here, name)
            relative = os.path.relpath(path, folder)
            if os.path.islink(path):
                found[relative] = Link(os.readlink(path))
            elif name in files and relative != SETTINGS:
                with open(path, "rb") as file:
                    found[relative] = File(file.read(), bool(os.fstat(file.fileno()).st_mode & 0o100))
    return found


def digests(tree: Mapping[str, Version]) -> Tree:
    """The same tree with each file's content as its SHA-256."""
    return {
        path: File(hashlib.sha256(v.content).digest(), v.executable) if isinstance(v, File) else v
        for path, v in tree.items()
    }


class Taken(NamedTuple):
    """One thing of a photograph; two are equal when nobody wrote, replaced or touched it."""

    kind: str
    mode: int
    mtime_ns: int
    inode: int
    content: bytes


# A look whose command was killed may just be saving its index. What stays is looked for elsewhere.
_SAVING = os.path.join(".dsg", "tmp", "index.")


def photograph(
    folder: Path, *, without: Collection[str] = (), folder_times: bool = False
) -> dict[str, Taken]:
    """Everything below ``folder``, DSG's own too, byte for byte.

    ``without`` are relative paths that are left out. A folder's mtime changes
    with each file that comes and goes in it, and is taken only on request.
    """
    found = {}
    for here, folders, files in os.walk(folder):
        for name in [".", *folders, *files]:
            path = os.path.normpath(os.path.join(here, name))
            relative = os.path.relpath(path, folder)
            if relative in without or relative.startswith(_SAVING):
                continue
            seen = os.lstat(path)
            content, mtime_ns = b"", seen.st_mtime_ns
            if stat.S_ISREG(seen.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(seen.st_mode):
                content = os.fsencode(os.readlink(path))
            elif stat.S_ISDIR(seen.st_mode) and not folder_times:
                mtime_ns = 0
            found[relative] = Taken(
                stat.filemode(seen.st_mode)[0], stat.S_IMODE(seen.st_mode), mtime_ns, seen.st_ino, content
            )
    return found


# What DSG wrote down


@frozen
class Entry:
    """One row of a manifest."""

    version: Version
    size: int
    mtime_ns: int
    who: str
    seq: int


@frozen
class Manifest:
    """The rows of a manifest by path, and the digest of its encoding."""

    entries: dict[str, Entry]
    digest: str

    @property
    def tree(self) -> Tree:
        """The versions alone."""
        return {path: entry.version for path, entry in self.entries.items()}


@frozen
class Cache:
    """C of a working folder."""

    repo_id: str
    record: str
    seq: int
    rules: str
    entries: dict[str, Entry]

    @property
    def tree(self) -> Tree:
        """The versions alone."""
        return {path: entry.version for path, entry in self.entries.items()}


def read_cache(folder: Path) -> Cache:
    """C of the working folder ``folder``; AssertionError when its file is not what the document says."""
    stored = (folder / AREA / "cache").read_bytes()
    magic, number, length = struct.unpack_from(">4sHI", stored)
    assert (magic, number) == (b"DSGC", 1)
    body, trailer = stored[:-32], stored[-32:]
    assert hashlib.sha256(body).digest() == trailer, "the cache's checksum does not fit"
    header = msgpack.unpackb(body[10 : 10 + length])
    assert set(header) == {"manifest", "record", "repo_id", "rules", "seq"}
    manifest = read_manifest(body[10 + length :])
    assert manifest.digest == header.pop("manifest")
    return Cache(entries=manifest.entries, **header)


def read_manifest(encoded: bytes) -> Manifest:
    """A manifest from its canonical encoding."""
    assert encoded.startswith(b"DSGM1\n")
    rows = msgpack.Unpacker(io.BytesIO(encoded[6:]), use_list=False, strict_map_key=False)
    algorithm, count = rows.unpack()
    assert algorithm == "sha256"
    entries: dict[str, Entry] = {}
    last: list[str] = []
    for _ in range(count):
        path, kind, content, executable, size, mtime_ns, who, seq = rows.unpack()
        assert path.split("/") > last, f"{path!r} stands in the wrong place"
        assert unicodedata.is_normalized("NFC", path)
        last = path.split("/")
        version: Version = File(content, executable) if kind == 0 else Link(content.decode())
        assert kind == 0 or (kind == 1 and not executable and size == 0 and mtime_ns == 0)
        entries[path] = Entry(version, size, mtime_ns, who, seq)
    assert rows.tell() == len(encoded) - 6, "the manifest holds more than its rows"
    return Manifest(entries, f"sha256:{hashlib.sha256(encoded).hexdigest()}")


@frozen
class Record:
    """One snapshot record."""

    repo_id: str
    seq: int
    manifest: str
    parent: str
    txid: str
    user: str
    host: str
    time: int
    message: str
    entries: int
    size: int
    added: int
    changed: int
    deleted: int
    digest: str = field(eq=False)

    @property
    def who(self) -> str:
        """The name before the address in ``user``."""
        return self.user.partition(" <")[0]


@frozen
class Repository:
    """R: the live folder's tree, and all that its ``.dsg`` says."""

    folder: Path
    live: Tree
    records: tuple[Record, ...]  # s0 first
    manifests: tuple[Manifest, ...]
    older: Callable[[], Mapping[bytes, bytes]] = dict  # contents that are kept in another way, by digest

    @property
    def head(self) -> Record:
        """The newest snapshot's record."""
        return self.records[-1]

    @property
    def tree(self) -> Tree:
        """The head's manifest."""
        return self.manifests[-1].tree

    @cached_property
    def contents(self) -> dict[bytes, bytes]:
        """Every content that can still be had, live or from history, by its digest."""
        found = {
            hashlib.sha256(v.content).digest(): v.content for v in self.live.values() if isinstance(v, File)
        }
        for path in (self.folder / AREA / "history" / "objects").glob("*/*"):
            content = path.read_bytes()
            digest = hashlib.sha256(content).digest()
            assert (path.parent.name, path.name) == (digest.hex()[:2], digest.hex()), f"{path} is damaged"
            found[digest] = content
        return found | self.older()

    def snapshot(self, seq: int) -> Tree:
        """The tree of an older snapshot, with its contents. KeyError when one of them is lost."""
        return {
            path: File(self.contents[v.content], v.executable) if isinstance(v, File) else v
            for path, v in self.manifests[seq].tree.items()
        }

    def check(self, *, killed: bool = False) -> Repository:
        """Assert what holds of every repository at rest; returns itself.

        ``killed``: an agent may have been, whose note of the lock stays until somebody needs the lock, and
        what it was about to remove after its commit.
        """
        assert digests(self.live) == self.tree, "the live folder is not what the head says"
        for older, newer in zip(self.records, self.records[1:], strict=False):
            assert (newer.seq, newer.parent) == (older.seq + 1, older.digest), "the chain is broken"
        for record, manifest in zip(self.records, self.manifests, strict=True):
            assert record.manifest == manifest.digest
            sizes = [e.size for e in manifest.entries.values() if isinstance(e.version, File)]
            assert (record.entries, record.size) == (len(manifest.entries), sum(sizes))
            self.snapshot(record.seq)
        for newer, before, after in zip(self.records[1:], self.manifests, self.manifests[1:], strict=False):
            assert before.tree != after.tree, f"s{newer.seq} changes nothing"
            both = before.entries.keys() & after.entries.keys()
            changed = {p for p in both if before.entries[p] != after.entries[p]}
            added = after.entries.keys() - both
            counts = len(added), len(changed), len(before.entries.keys() - both)
            assert (newer.added, newer.changed, newer.deleted) == counts
            # Who changed an entry last is who made the snapshot that brought it.
            assert all(
                (after.entries[p].who, after.entries[p].seq) == (newer.user, newer.seq)
                for p in changed | added
            )
        left = self.leftovers()
        if killed:
            left = [path for path in left if not self._awaits_lock(path)]
        assert not left, f"left over on the server: {left}"
        return self

    def leftovers(self) -> list[str]:
        """What no repository at rest has in its ``.dsg``, by paths in there."""
        area = self.folder / AREA
        left = [
            name for name in ("journal.prepared", "journal.decided", "lock.holder") if (area / name).exists()
        ]
        for folder in ("staging", "tmp", "trash"):
            # By these an agent tries out the file system, without a lock. A killed one's go in time.
            names = [path.name for path in (area / folder).glob("*") if not path.name.startswith("probe-")]
            left += [f"{folder}/{name}" for name in names]
        return left

    def _awaits_lock(self, path: str) -> bool:
        """Whether an agent killed after its commit left that, which stays until somebody needs the lock."""
        try:
            holder = json.loads((self.folder / AREA / "lock.holder").read_bytes())
        except FileNotFoundError:
            return False
        if Path("/proc", str(holder["pid"])).exists():
            return False
        txid = self.head.txid
        rubbish = {f"staging/{txid}", f"trash/{txid}", "tmp/index"} if holder["txid"] == txid else set()
        return path in {"lock.holder"} | rubbish


def read_repository(
    folder: Path, backend: str = "directory", older: Callable[[], Mapping[bytes, bytes]] = dict
) -> Repository:
    """R in the server's ``folder``; AssertionError when its files are not what the document says."""
    area = folder / AREA
    marker: dict[str, Any] = json.loads((area / "format").read_bytes())
    assert (marker["format"], marker["kind"], marker["backend"]) == (1, "repository", backend)
    assert not (area / "journal.decided").exists(), "a commit is still being carried out"
    head = json.loads((area / "head").read_bytes())
    records, manifests = [], []
    for seq in range(head["seq"] + 1):
        raw = (area / "records" / f"{seq:08d}").read_bytes()
        fields = msgpack.unpackb(raw)
        assert fields.pop("format") == 1
        assert list(fields) == sorted(fields)
        record = Record(**fields, digest=f"sha256:{hashlib.sha256(raw).hexdigest()}")
        assert (record.repo_id, record.seq) == (marker["repo_id"], seq)
        records.append(record)
        manifests.append(read_manifest(_inflated((area / "manifests" / f"{seq:08d}").read_bytes())))
    assert (records[-1].digest, records[-1].txid) == (head["record"], head["txid"])
    return Repository(folder, read_tree(folder), tuple(records), tuple(manifests), older)


def _inflated(stored: bytes) -> bytes:
    assert stored.startswith(b"DSGZ1\n")
    out, at = b"", 6
    while at < len(stored):
        (length,) = struct.unpack_from(">I", stored, at)
        out += zlib.decompress(stored[at + 4 : at + 4 + length])
        at += 4 + length
    assert at == len(stored)
    return out

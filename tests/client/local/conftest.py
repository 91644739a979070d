"""Folders to scan, an account without root's rights, and a file system with a coarse clock."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsg_client.local.cache import Cache, encode_cache
from dsg_client.local.index import Binding, FileClock, read_index, save_index
from dsg_client.local.machine import filesystem_id
from dsg_client.local.scan import Scan, Scanned
from dsg_client.local.scope import Scope
from dsg_client.local.workdir import Workdir, create_workdir
from protocol.manifest import Manifest
from tests.conftest import find_program, mount_or_skip, skip_unless_root

NOBODY = 65534


def empty_cache() -> bytes:
    """An encoded C without entries."""
    return encode_cache(Cache("0" * 32, "sha256:" + "0" * 64, 0, Scope().digest, Manifest.from_entries([])))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a data folder ``input``."""
    folder = tmp_path / "tree"
    (folder / "input").mkdir(parents=True)
    return folder


@pytest.fixture
def workdir(root: Path) -> Iterator[Workdir]:
    """``root`` as a working folder."""
    with create_workdir(root, empty_cache()) as made:
        yield made


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every account may enter and change."""
    folder = Path(tempfile.mkdtemp(prefix="dsg-public-"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False)
    shutil.rmtree(folder)


def as_nobody(action: Callable[[], object]) -> str:
    """Run ``action`` in a process without root's rights; its result as text, or what it raised.

    Run by an ordinary account, it keeps that account.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            try:
                text = str(action())
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
                if not hasattr(error, "code"):
                    text += traceback.format_exc()
            os.write(writer, text.encode("utf-8", "backslashreplace")[:60_000])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(child, 0)
    return text


def give_to_nobody(*paths: Path) -> None:
    """Make the account of :func:`as_nobody` the owner."""
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def binding(workdir: Workdir) -> Binding:
    """What this folder's index is bound to."""
    return Binding(workdir.machine, filesystem_id(workdir.root), workdir.device_inode[1], "sha256")


def indexed_scan(workdir: Workdir, scope: Scope | None = None) -> Scan:
    """A scan with the stat index on disk."""
    return Scan(
        workdir.root,
        scope or Scope(),
        index=read_index(workdir.tree, binding(workdir)),
        clock=FileClock.measure(workdir.tree),
    )


def rescan(workdir: Workdir) -> tuple[list[Scanned], int]:
    """Scan with the stat index and save it; the entries, and how many files were read."""
    scan = indexed_scan(workdir)
    found = list(scan)
    save_index(workdir.tree, binding(workdir), scan.changes)
    return found, scan.hashed_files


def on_disk(root: Path) -> list[tuple[str, int, bytes, bool]]:
    """What is below the folders called ``input``, in canonical order, read without any product code."""
    found = []
    for here, folders, files in os.walk(root):
        for name in [*files, *(f for f in folders if os.path.islink(os.path.join(here, f)))]:
            full = os.path.join(here, name)
            path = os.path.relpath(full, root)
            if "input" not in path.split("/")[:-1]:
                continue
            if os.path.islink(full):
                found.append((path, 1, os.readlink(full).encode(), False))
            else:
                content = Path(full).read_bytes()
                executable = bool(os.stat(full).st_mode & 0o100)
                found.append((path, 0, hashlib.sha256(content).digest(), executable))
    return sorted(found, key=lambda row: row[0].split("/"))


def versions(found: list[Scanned]) -> list[tuple[str, int, bytes, bool]]:
    """What of a scan :func:`on_disk` can tell, too."""
    return [scanned.entry[:4] for scanned in found]


@pytest.fixture
def coarse(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system whose time stamps are whole seconds (ext4 with small inodes)."""
    skip_unless_root("mounting")
    program = find_program("mkfs.ext4")
    if program is None:
        pytest.skip("mkfs.ext4 not found; to have it: sudo apt-get install -y e2fsprogs")
    image, folder = tmp_path / "image", tmp_path / "coarse"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run([program, "-q", "-F", "-I", "128", str(image)], check=True, stderr=subprocess.DEVNULL)
    mount_or_skip("-o", "loop", str(image), str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)

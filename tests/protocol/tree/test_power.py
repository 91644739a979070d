"""Real file systems, cut off as by a power loss: their shutdown ioctl drops what was not on disk yet."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.tree.change import Unexpected
from protocol.tree.posix import PosixTree
from tests.protocol.tree.recorder import Killed, Recorder
from tests.protocol.tree.scenario import build, commit, problems, recover

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("root"),
]

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
_WITHOUT_FLUSHING = (1, 2)  # the log is written first, or not even that
_MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
_POINTS = 40
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True, env={**os.environ, "PATH": _PATH})


class Disk:
    """A file system in a file."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.image, self.mount_point = folder / "image", folder / "mounted"
        self.mount_point.mkdir()
        with open(self.image, "wb") as image:
            image.truncate(400 << 20)
        _run(*_MAKE[kind], str(self.image))

    @contextmanager
    def mounted(self) -> Iterator[str]:
        _run("mount", "-o", "loop", str(self.image), str(self.mount_point))
        try:
            yield str(self.mount_point / "tree")
        finally:
            _run("umount", str(self.mount_point))

    def cut_off(self, how: int, work: Callable[[PosixTree], object]) -> None:
        """Run ``work`` in a process of its own until it is Killed; then the disk is gone."""
        with self.mounted() as root:
            child = os.fork()
            if child == 0:
                try:
                    try:
                        work(PosixTree.open_tree(root))
                    except Killed:
                        pass
                    fd = os.open(self.mount_point, os.O_RDONLY)
                    fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", how))
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0


@pytest.fixture(params=list(_MAKE))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    program = _MAKE[request.param][0]
    if shutil.which(program, path=_PATH) is None:
        package = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs"}[program]
        pytest.skip(f"{program} not found; to have it: sudo apt-get install -y {package}")
    made = Disk(tmp_path, request.param)
    try:
        with made.mounted():
            pass
    except subprocess.CalledProcessError as error:
        pytest.skip(
            f"mounting {request.param}: {error.stderr.decode().strip()}; to have it: sudo make test, in a "
            "container with --cap-add SYS_ADMIN on a kernel with that file system"
        )
    return made


def losses(disk: Disk, rng: random.Random, flushes: bool) -> list[str]:
    """What is wrong after cutting the disk off at random operations, and at times again during recovery."""
    found = []
    note = disk.image.with_name("progress")
    for _ in range(_POINTS):
        unexpected = rng.choice(list(Unexpected))
        allowed, again = rng.randrange(115), rng.randrange(150)
        how = rng.choice(_WITHOUT_FLUSHING)
        with disk.mounted() as root:
            shutil.rmtree(root, ignore_errors=True)
            os.mkdir(root)
            tree = PosixTree.open_tree(root)
            build(tree)
            tree.close()

        def work(tree: PosixTree, allowed: int = allowed, unexpected: Unexpected = unexpected) -> None:
            progress: list[str] = []
            if not flushes:
                tree.flush = lambda: None  # type: ignore[method-assign]
            try:
                commit(Recorder(tree, allowed=allowed), unexpected, progress)
            finally:
                note.write_text(" ".join(progress))

        def work_again(tree: PosixTree, again: int = again, unexpected: Unexpected = unexpected) -> None:
            recover(Recorder(tree, allowed=again), unexpected)

        disk.cut_off(how, work)
        if again < 60:
            disk.cut_off(how, work_again)
        with disk.mounted() as root:
            tree = PosixTree.open_tree(root)
            recover(tree, unexpected)
            found += [
                f"stopped after {allowed}: {p}" for p in problems(tree, unexpected, note.read_text().split())
            ]
            tree.close()
    return found


def test_all_before_or_all_after_a_power_loss(disk: Disk, rng: random.Random) -> None:
    assert losses(disk, rng, flushes=True) == []


def test_control_without_the_flush_a_power_loss_mixes_trees(disk: Disk, rng: random.Random) -> None:
    assert any("mixed" in problem for problem in losses(disk, rng, flushes=False))

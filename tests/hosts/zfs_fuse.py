"""A ZFS of its own for the tests: zfs-fuse with a pool on a file, in a mount namespace that nobody else sees.

    with zfs_fuse() as host, host.entered():
        root = host.make_root("one")          # pool/one, as an administrator makes it
        host.zfs("create", f"{root.dataset}/x")

zfs-fuse has one socket, one lock and one cache file at fixed places; in a
namespace with empty file systems over them it runs beside any other. Whoever
is to see the pool must be in that namespace: :meth:`ZfsFuse.entered` moves the
main thread there, and with it every process that it starts meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import find_program, skip_unless_root
from tests.hosts.sshd import state_of
from tests.hosts.zfs_host import LocalZfs, ZfsRoot

__all__ = ["ZfsFuse", "ZfsRoot", "zfs_fuse"]

# <linux/sched.h>
_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2  # <sys/mount.h>
_POOL_BYTES = 8 << 30  # sparse
_COVERED = ("/run/zfs", "/run/lock/zfs", "/var/lib/zfs")
_LIMIT = 30.0
# Leave a program running that is waited for by nobody but its log: print its id, and log how it ended.
_RUN = """(
    "$@" >&2 &
    echo $!
    exec >&2
    wait $!
    echo "ended with status $?"
) &"""
_libc = ctypes.CDLL(None, use_errno=True)


class ZfsFuse(LocalZfs):
    """A running zfs-fuse with one pool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = f"dsgt{secrets.token_hex(3)}"
        # Not in the pool itself: zfs-fuse cannot read a link any more that is just being replaced.
        self.mountpoint = folder / "srv"
        self._image = folder / "pool.img"
        self._log = (folder / "daemon.log").open("ab")
        self._said_before = 0  # bytes in it that earlier daemons said
        self.pid: int | None = None  # the daemon's
        self._namespace = -1
        self._inside = 0

    # The namespace

    def _make_namespace(self) -> None:
        home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        here = os.getcwd()
        try:
            if _libc.unshare(_CLONE_FS | _CLONE_NEWNS):
                pytest.skip(
                    f"no mount namespace: {os.strerror(ctypes.get_errno())}; to have it: sudo make test, "
                    "in a container with --cap-add SYS_ADMIN"
                )
            try:
                self.run("mount", "--make-rprivate", "/")
                self._let_go_of_others()
                for covered in _COVERED:
                    os.makedirs(covered, exist_ok=True)
                    self.run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", covered)
                self._namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _set_namespace(home)
                os.chdir(here)
        finally:
            os.close(home)

    def _let_go_of_others(self) -> None:
        """Detach what other tests have mounted at this moment: our copy would keep it mounted for good."""
        below = tempfile.gettempdir() + "/"
        for _, path in reversed(_mounted()):
            if path.startswith(below) and not self.folder.is_relative_to(path):
                _libc.umount2(os.fsencode(path), _MNT_DETACH)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be where the pool is seen; only in the main thread, and may be nested."""
        assert threading.current_thread() is threading.main_thread()
        if self._inside:
            yield
            return
        home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        here = os.getcwd()
        try:
            _set_namespace(self._namespace)
            self._inside += 1
            try:
                os.chdir(here)
                yield
            finally:
                self._inside -= 1
                _set_namespace(home)
                os.chdir(here)
        finally:
            os.close(home)

    # The daemon

    def start(self) -> None:
        """Start the daemon (again) and wait until it answers; after :meth:`kill`, mount what was mounted."""
        program = find_program("zfs-fuse")
        assert program is not None
        self._said_before = os.fstat(self._log.fileno()).st_size
        with self.entered():
            self._forget_mounts()  # of a daemon that is gone
            again = self._image.exists()
            # By way of a shell that ends: tests that look at their own children shall not meet it.
            started = subprocess.run(
                ["sh", "-c", _RUN, "sh", program, "--no-daemon", "--no-kstat-mount"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
                check=True,
            )
            self.pid = int(started.stdout)
            deadline = time.monotonic() + _LIMIT
            # It says nothing when it is ready, and imports its pools before it answers.
            while self.attempt("zpool", "list").returncode:
                assert state_of(self.pid), (self.folder / "daemon.log").read_text()
                assert time.monotonic() < deadline, "zfs-fuse does not answer"
                time.sleep(0.02)
            if again:
                self.zfs("mount", "-a")
            else:
                with self._image.open("wb") as image:
                    image.truncate(_POOL_BYTES)
                self.zpool("create", "-m", "none", self.pool, str(self._image))

    def kill(self) -> None:
        """SIGKILL: what was not flushed is lost, as in a power cut."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        self._wait_for_threads()
        self.pid = None

    def _wait_for_threads(self) -> None:
        # Its first thread may have ended before the others, who still have the pool and the mounts.
        assert self.pid is not None
        while state_of(self.pid) or len(_threads(self.pid)) > 1:
            time.sleep(0.01)

    def died(self) -> str | None:
        """The last words of a daemon that ended though nobody killed it; None if it runs, or was killed."""
        if self.pid is None or state_of(self.pid):
            return None
        self._wait_for_threads()
        said, deadline = "", time.monotonic() + 2
        while "ended with" not in said and time.monotonic() < deadline:
            said = (self.folder / "daemon.log").read_bytes()[self._said_before :].decode(errors="replace")
            time.sleep(0.01)
        return said[-2000:] or "it said nothing"

    def give_up(self) -> None:
        """Kill a daemon that does not answer: it counts as one that :meth:`died`."""
        if self.pid is None:
            return  # it was stopped meanwhile
        self._log.write(b"it did not answer any more, and was killed\n")
        self._log.flush()
        os.kill(self.pid, signal.SIGKILL)

    def restart(self) -> None:
        """Begin with a new daemon, and the same pool, after it :meth:`died`."""
        self.pid = None
        self.start()

    def stop(self) -> None:
        """End everything. Whoever still has a descriptor in the pool gets errors from it."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it died
                self.kill()
        if self._namespace >= 0:
            with self.entered():
                self._forget_mounts()
            os.close(self._namespace)
        self._log.close()

    def _forget_mounts(self) -> None:
        # The command umount looks at the folder first, which without a daemon is an error.
        for path in reversed(self._mounts()):
            _libc.umount2(os.fsencode(path), _MNT_DETACH)
        assert not self._mounts()

    def _mounts(self) -> list[str]:
        """Where this pool's datasets are mounted, in the order of mounting."""
        return [
            path for source, path in _mounted() if source == self.pool or source.startswith(f"{self.pool}/")
        ]

    @contextlib.contextmanager
    def second_pool(self) -> Iterator[str]:
        """The name of one more pool, in which nothing is mounted by itself."""
        image = self.folder / f"{secrets.token_hex(3)}.img"
        with image.open("wb") as file:
            file.truncate(_POOL_BYTES)
        name = f"{self.pool}b{secrets.token_hex(2)}"
        self.zpool("create", "-m", "none", name, str(image))
        try:
            yield name
        finally:
            self.zpool("destroy", name)
            image.unlink()


def _mounted() -> list[tuple[str, str]]:
    """What is mounted where, in the order of mounting."""
    with open("/proc/thread-self/mounts") as mounts:
        fields = [line.split(" ") for line in mounts]
    return [(field[0], field[1].encode().decode("unicode_escape")) for field in fields]


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []


def _set_namespace(descriptor: int) -> None:
    # A thread that shares its root folder with others may not change its namespace.
    if _libc.unshare(_CLONE_FS) or _libc.setns(descriptor, _CLONE_NEWNS):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "mount namespace")


@contextlib.contextmanager
def zfs_fuse() -> Iterator[ZfsFuse]:
    """A daemon with an empty pool in a folder of its own; all of it is gone at the end."""
    skip_unless_root("zfs-fuse")
    for program in ("zfs-fuse", "zfs", "zpool"):
        if find_program(program) is None:
            pytest.skip(f"{program} not found; to have it: sudo apt-get install -y zfs-fuse")
    folder = Path(tempfile.mkdtemp(prefix="dsg-zfs-", dir="/tmp"))
    folder.chmod(0o755)
    host = ZfsFuse(folder)
    try:
        host._make_namespace()
        host.start()
        yield host
    finally:
        host.stop()
        shutil.rmtree(folder, ignore_errors=True)

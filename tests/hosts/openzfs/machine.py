"""One virtual machine: started, killed as in a power cut, started again, switched off.

It starts from a state that was saved once: of a machine that has booted as far
as every start is the same. Then it had loaded no ZFS, opened neither the
pool's disk nor the one with its files, and had no key. Whatever depends on
those, and all that is drawn at random, comes after the state.

Its processor is emulated (TCG): it needs no rights and no hardware, and is
some ten times slower. Nothing of it can reach the network: one port on
loopback leads to its sshd, and that is all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Machine", "fill", "find_state"]

_BOOT_S = 300.0  # usually 10
_END_S = 60.0
_POOL_BYTES = 8 << 30  # sparse
_FILES_BYTES = 64 << 20  # sparse; whoever saved the state saw a disk of this size
_MEMORY_MB = 1536
_SECTOR = 512
_FIRST_SECTOR = 2048


class Machine:
    """A machine from ``image``, with its pool's disk, log and third disk in ``folder``.

    ``files``: a tar file that it unpacks over its root at each start.
    """

    def __init__(self, folder: Path, image: Path, files: Path, port: int | None = None) -> None:
        self.folder = folder
        self.console = folder / "console.log"
        self.port = _free_port() if port is None else port
        self._image = image
        self._files = files
        self._disk = folder / "pool.img"
        self._log = folder / "qemu.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    def start(self, *, cold: bool = False) -> None:
        """Start and wait until everything in it is up; the pool is as the last run left it.

        ``cold``: boot it, instead of going on from the saved state.
        """
        assert self.pid is None, "it runs already"
        if not self._disk.exists():
            _make_disk(self._disk)
        state = [] if cold else ["-incoming", _through("zstd -dcq {}", find_state(self._image))]
        self._run("READY", *state)

    def _run(self, ready: str, *options: str) -> None:
        self.console.write_bytes(b"")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command(), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _BOOT_S
        while ready not in (said := self.console.read_text(errors="replace")):
            if self.pid is None or "FAILED" in said or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the machine did not start:\n{self._log.read_text()}{said[-4000:]}")
            time.sleep(0.05)
        assert "FAILED" not in said, said[-4000:]

    def save(self, state: Path) -> None:
        """Boot with empty disks, and write what the machine is like then to a new file."""
        _make_disk(self._disk)
        fill(self._files)
        control = self.folder / "control"
        self._run("WAITING", "-qmp", f"unix:{control},server=on,wait=off")
        try:
            with _told(control) as tell:
                tell("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
                tell("migrate", uri=_through("zstd -q -3 -T0 > {}", state))
                deadline = time.monotonic() + _BOOT_S
                while (found := tell("query-migrate")["status"]) != "completed":
                    assert found != "failed" and time.monotonic() < deadline, (
                        f"the state was not saved: {found}"
                    )
                    time.sleep(0.05)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: a power cut. What its kernel had not written is lost; what the disk was given, is not."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self, switch_off: Callable[[], object]) -> None:
        """Let ``switch_off`` end it from within; one that does not end is killed."""
        if self._process is None:
            return
        try:
            switch_off()
            self._process.wait(_END_S)
        except (subprocess.TimeoutExpired, OSError, AssertionError):
            pass
        self.kill()

    def _command(self) -> list[str]:
        words = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable cryptomgr.notests"
        # It ends with whoever started it, however that ends.
        return [
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64",
            "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max",
            "-m", str(_MEMORY_MB), "-smp", str(min(2, os.cpu_count() or 1)),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", f"file:{self.console}",
            "-kernel", str(self._image / "vmlinuz"), "-initrd", str(self._image / "initrd"),
            "-append", f"{words} random.trust_cpu=on",
            *_disk(self._image / "root.img", "readonly=on"),
            *_disk(self._disk, "discard=unmap"),
            *_disk(self._files, "readonly=on"),
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
        ]  # fmt: skip


def find_state(image: Path) -> Path:
    """The state that machines of ``image`` start from, which is saved if need be; several may ask at once.

    It fits only the qemu and the options that it was saved with.
    """
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True).stdout
    nowhere = Machine(Path("/nowhere"), image, Path("/nowhere/files.tar"), port=0)
    key = hashlib.sha256(version + "\0".join(nowhere._command()).encode()).hexdigest()[:16]
    state = image / f"state-{key}.zst"
    if state.exists():
        return state
    with (image / "state.lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="dsg-openzfs-") as name:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not state.exists():
            folder = Path(name)
            aside = state.with_suffix(".new")
            Machine(folder, image, folder / "files.tar").save(aside)
            aside.rename(state)
    return state


def fill(files: Path) -> None:
    """Make a file with files, or an empty one, the size that the disk with the files always has."""
    files.touch()
    assert files.stat().st_size <= _FILES_BYTES, "a larger disk is needed"
    os.truncate(files, _FILES_BYTES)


def _through(command: str, file: Path) -> str:
    return f"exec:{command.format(shlex.quote(str(file)))}"


@contextlib.contextmanager
def _told(control: Path) -> Iterator[Callable[..., Any]]:
    """A function that gives a qemu one order and returns its answer."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_END_S)
        line.connect(str(control))
        with line.makefile("rw") as talk:

            def tell(order: str, **arguments: object) -> Any:
                talk.write(json.dumps({"execute": order, "arguments": arguments}) + "\n")
                talk.flush()
                for said in talk:
                    answer = json.loads(said)
                    assert "error" not in answer, answer
                    if "return" in answer:
                        return answer["return"]
                raise AssertionError(f"qemu ended at {order}")

            talk.readline()  # its greeting
            tell("qmp_capabilities")
            yield tell


def _disk(file: Path, options: str) -> list[str]:
    name = file.stem
    return [
        "-drive", f"file={file},format=raw,if=none,id={name},{options}",
        "-device", f"virtio-blk-pci,drive={name}",
    ]  # fmt: skip


def _make_disk(path: Path) -> None:
    """An empty disk with one partition: ``zpool create`` wants udev for a whole disk, which is not there."""
    with path.open("wb") as disk:
        disk.truncate(_POOL_BYTES)
        disk.seek(446)
        count = _POOL_BYTES // _SECTOR - _FIRST_SECTOR
        # The partition table of the master boot record; type 0xbf: Solaris, or ZFS.
        disk.write(struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xBF, b"\xff\xff\xff", _FIRST_SECTOR, count))
        disk.seek(510)
        disk.write(b"\x55\xaa")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

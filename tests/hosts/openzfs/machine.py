"""One virtual machine: started, killed as in a power cut, started again, switched off.

Its processor is emulated (TCG): it needs no rights and no hardware, and is
some ten times slower. Nothing of it can reach the network: one port on
loopback leads to its sshd, and that is all.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Machine"]

_BOOT_S = 300.0  # usually 10
_END_S = 60.0
_POOL_BYTES = 8 << 30  # sparse
_MEMORY_MB = 1536
_SECTOR = 512
_FIRST_SECTOR = 2048


class Machine:
    """A machine from ``image``, with its pool's disk, log and third disk in ``folder``.

    ``files``: a tar file that it unpacks over its root at each start.
    """

    def __init__(self, folder: Path, image: Path, files: Path) -> None:
        self.folder = folder
        self.console = folder / "console.log"
        self.port = _free_port()
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

    def start(self) -> None:
        """Start and wait until everything in it is up; the pool is as the last run left it."""
        assert self.pid is None, "it runs already"
        if not self._disk.exists():
            _make_disk(self._disk)
        self.console.write_bytes(b"")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _BOOT_S
        while "READY" not in (said := self.console.read_text(errors="replace")):
            if self.pid is None or "FAILED" in said or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the machine did not start:\n{self._log.read_text()}{said[-4000:]}")
            time.sleep(0.05)
        assert "FAILED" not in said, said[-4000:]

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

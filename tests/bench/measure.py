"""Run one command and measure it: elapsed time, or the peak memory of every process it needs.

The two are measured in different runs: watching memory polls ``/proc`` and
costs processor time that a timed run should have to itself.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from attrs import frozen

__all__ = ["CommandFailedError", "Memory", "children", "put_aside", "run_timed", "run_watched"]

POLL_SECONDS = 0.01  # what a process adds in its last moments before it ends is missed for as long


class CommandFailedError(Exception):
    """A measured command did not exit with 0; the message holds its output."""


@frozen
class Memory:
    """Peak resident memory in bytes of the largest process on each side, as the kernel keeps it (VmHWM).

    The client's side is the command with its children (``rsync`` has ``ssh``
    as a child, ``dsg`` has SSH within itself); the server's side is what sshd
    started, without sshd's own processes, which are alike for both.
    """

    client: int
    server: int


def put_aside(path: Path, aside: Path) -> None:
    """Move what may be at ``path`` into the folder ``aside``, to be removed when nothing is measured.

    ext4 gives an inode back only some minutes after its file was removed, and looks at all that wait
    whenever a file is made: removing 20,000 would cost whoever comes next up to 0.8 ms a file.
    """
    if path.exists():
        aside.mkdir(exist_ok=True)
        path.rename(aside / str(time.monotonic_ns()))


def run_timed(argv: Sequence[str | Path], cwd: Path, env: Mapping[str, str]) -> float:
    """Seconds from start to exit. CommandFailedError when the command fails."""
    with _output() as output:
        began = time.perf_counter()
        finished = subprocess.run(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
        elapsed = time.perf_counter() - began
        _check(argv, finished.returncode, output)
    return elapsed


def run_watched(argv: Sequence[str | Path], cwd: Path, env: Mapping[str, str], sshd: int) -> Memory:
    """Peak memory of both sides; ``sshd`` is the process id of the server, 0 when it is not on this machine.

    CommandFailedError as above.
    """
    with _output() as output:
        child = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        peaks_client: dict[int, int] = {}
        peaks_server: dict[int, int] = {}
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_SECONDS):
                _note_peaks(child.pid, peaks_client, own=True)
                _note_peaks(sshd, peaks_server, own=False)

        watcher = threading.Thread(target=watch)
        watcher.start()
        child.wait()
        over.set()
        watcher.join()
        _check(argv, child.returncode, output)
    return Memory(client=max(peaks_client.values(), default=0), server=max(peaks_server.values(), default=0))


def _output() -> IO[bytes]:
    return tempfile.TemporaryFile()


def _note_peaks(root: int, peaks: dict[int, int], own: bool) -> None:
    """Raise ``peaks`` to what the process tree below ``root`` shows now."""
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        waiting += children(pid)
        if pid == root and not own:
            continue
        name, peak = _status(pid)
        if peak and not (not own and name.startswith("sshd")):
            peaks[pid] = max(peaks.get(pid, 0), peak)


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that still run."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += [int(word) for word in text.split()]
    except OSError:
        pass  # it has just ended
    return found


def _status(pid: int) -> tuple[str, int]:
    """Name and VmHWM in bytes; 0 when the process has just ended."""
    name, peak = "", 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Name:"):
                name = line.split(maxsplit=1)[1]
            elif line.startswith("VmHWM:"):
                peak = int(line.split()[1]) * 1024
    except OSError:
        pass
    return name, peak


def _check(argv: Sequence[str | Path], returncode: int, output: IO[bytes]) -> None:
    if returncode:
        output.seek(0)
        text = output.read().decode(errors="replace")[-4000:]
        raise CommandFailedError(f"{' '.join(map(str, argv))} exited with {returncode}:\n{text}")

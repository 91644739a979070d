"""The figures of a benchmark, and the table they are shown in."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

from tests.bench.steps import Step

__all__ = ["Result", "Row", "file_system", "machine", "render", "slower_rows"]

SUBJECT = "dsg"
YARDSTICK = "rsync --fsync"
MB = 1_000_000


@define
class Row:
    """One contestant at one step: seconds of each timed round; bytes and memory of the watched one."""

    dataset: str
    step: str
    contestant: str
    seconds: list[float] = field(factory=list)
    sent: int = 0
    received: int = 0
    client_memory: int = 0
    server_memory: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@frozen
class Result:
    """All figures. ``promotions``: seconds by the number of snapshots; ``notes``: what to read first."""

    machine: dict[str, str]
    delay_ms: float
    pairs: int
    rows: Sequence[Row]
    steps_of: str = ""
    steps: Sequence[Step] = ()
    promotions: Mapping[int, Sequence[float]] = field(factory=dict)
    notes: Sequence[str] = ()

    def to_map(self) -> dict[str, Any]:
        rows = [{**asdict(row), "median": row.median, "ratio": ratio(self.rows, row)} for row in self.rows]
        return {
            "schema": 1,
            "machine": self.machine,
            "delay_ms": self.delay_ms,
            "pairs": self.pairs,
            "rows": rows,
            "steps_of": self.steps_of,
            "steps": [asdict(step) for step in self.steps],
            "promotions": {str(number): list(seconds) for number, seconds in self.promotions.items()},
            "notes": list(self.notes),
        }


def ratio(rows: Sequence[Row], row: Row) -> float:
    """dsg's time over this contestant's: the median over the rounds, each compared with itself."""
    own = next(r for r in rows if (r.dataset, r.step, r.contestant) == (row.dataset, row.step, SUBJECT))
    return statistics.median(a / b for a, b in zip(own.seconds, row.seconds, strict=True))


def slower_rows(result: Result) -> list[str]:
    """The steps at which dsg takes longer than its yardstick."""
    return [
        f"{row.dataset}, {row.step}: {ratio(result.rows, row):.2f} times its time"
        for row in result.rows
        if row.contestant == YARDSTICK and ratio(result.rows, row) > 1
    ]


def render(result: Result) -> str:
    """The table, for a terminal of 100 columns."""
    lines = [f"{name}: {text}" for name, text in result.machine.items()]
    lines += result.notes
    if result.rows:
        lines.append(f"{result.pairs} rounds, {result.delay_ms:g} ms added each way")
    head = (
        f"{'':16}{'median s':>9}  {'min - max':>15}  {'dsg / it':>8}"
        f"  {'up MB':>8}  {'down MB':>8}  {'client MB':>9}  {'server MB':>9}"
    )
    previous = ("", "")
    for row in result.rows:
        if row.dataset != previous[0]:
            lines += ["", f"== {row.dataset}", head]
        if (row.dataset, row.step) != previous:
            lines.append(row.step)
        previous = (row.dataset, row.step)
        spread = f"{min(row.seconds):.2f} - {max(row.seconds):.2f}"
        against = "" if row.contestant == SUBJECT else f"{ratio(result.rows, row):.2f}"
        lines.append(
            f"  {row.contestant:14}{row.median:9.2f}  {spread:>15}  {against:>8}"
            f"  {row.sent / MB:8.2f}  {row.received / MB:8.2f}"
            f"  {row.client_memory / MB:9.0f}  {_memory(row.server_memory):>9}"
        )
    return "\n".join([*lines, *_steps(result), *_promotions(result)])


def _memory(size: int) -> str:
    return f"{size / MB:.0f}" if size else "-"


def _steps(result: Result) -> Iterator[str]:
    if result.steps:
        yield ""
        yield f"== the server's steps of a sync: {result.steps_of}"
        yield f"{'':40}{'ms of one':>9}  {'how often':>9}"
    for step in result.steps:
        if step.command:
            yield f"  {'zfs ' + step.command:38}{step.ms:9.1f}  {step.times:9g}"
        else:
            yield f"{step.request:40}{step.ms:9.1f}"


def _promotions(result: Result) -> Iterator[str]:
    if result.promotions:
        yield ""
        yield "== zfs promote, by the number of snapshots that it moves"
        yield f"{'':16}{'median ms':>9}  {'min - max':>15}"
    for number, seconds in result.promotions.items():
        spread = f"{min(seconds) * 1000:.0f} - {max(seconds) * 1000:.0f}"
        yield f"  {number:<14,}{statistics.median(seconds) * 1000:9.0f}  {spread:>15}"


def machine(folder: Path, server: Mapping[str, str]) -> dict[str, str]:
    """What the figures depend on: the client's hardware, kernel, file system and versions; the ``server``."""
    return {
        "processor": f"{os.cpu_count()} x {_processor()}",
        "kernel": platform.release(),
        "file system": file_system(folder),
        "python": platform.python_version(),
        "dsg": metadata.version("dsg-sync"),
        "asyncssh": metadata.version("asyncssh"),
        "rsync": _first_line("rsync", "--version"),
        "cipher of rsync": _default_cipher(),
        **server,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def file_system(folder: Path) -> str:
    """Type of the file system that holds ``folder``, from the longest mount point above it."""
    best, kind = "", "unknown"
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            _device, mounted, name = line.split()[:3]
            inside = str(folder) == mounted or str(folder).startswith(mounted.rstrip("/") + "/")
            if inside and len(mounted) >= len(best):
                best, kind = mounted, name
    except OSError:
        pass
    return kind


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def _default_cipher() -> str:
    """What OpenSSH's client prefers here; rsync is measured as its users have it."""
    done = subprocess.run(["ssh", "-G", "localhost"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("ciphers "):
            return line.split()[1].split(",")[0]
    return "unknown"

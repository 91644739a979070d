"""What is synced in a benchmark: made from a fixed seed, so that every run moves the same bytes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

__all__ = ["SETS", "Dataset", "settle_clock", "tiny_files"]

KIB = 1024
MIB = 1024 * KIB


@frozen
class Dataset:
    """A tree to sync. ``write`` makes it under a folder; ``change`` edits a hundredth of it in place.

    The bytes are random and do not shrink: compression helps nobody.
    ``steps`` names what is measured, in this order.
    """

    name: str
    title: str
    steps: tuple[str, ...]
    write: Callable[[Path], None]
    change: Callable[[Path, int], None]


def _small_paths(count: int) -> Iterator[Path]:
    for number in range(count):
        yield Path(f"part-{number // 200:03d}") / f"{number:05d}.bin"


def _write_small(count: int, size: int, folder: Path) -> None:
    rng = random.Random(1)
    for path in _small_paths(count):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(rng.randbytes(size))


def _change_small(count: int, size: int, folder: Path, turn: int) -> None:
    rng = random.Random(1000 + turn)
    for path in sorted(rng.sample(list(_small_paths(count)), max(1, count // 100))):
        (folder / path).write_bytes(rng.randbytes(size))


def _write_large(size: int, folder: Path) -> None:
    rng = random.Random(2)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "large.bin").open("wb") as file:
        for _ in range(size // (4 * MIB)):
            file.write(rng.randbytes(4 * MIB))


def _change_large(size: int, folder: Path, turn: int) -> None:
    rng = random.Random(2000 + turn)
    with (folder / "large.bin").open("r+b") as file:
        file.seek(rng.randrange(size // 2))
        file.write(rng.randbytes(size // 100))


def small_files(count: int) -> Dataset:
    """``count`` files of 4 KiB, 200 to a folder."""
    size = 4 * KIB
    return Dataset(
        name="small",
        title=f"{count:,} files of {size // KIB} KiB",
        steps=("first upload", "nothing to do", "1% changed", "clone"),
        write=lambda folder: _write_small(count, size, folder),
        change=lambda folder, turn: _change_small(count, size, folder, turn),
    )


def tiny_files(count: int) -> Dataset:
    """``count`` files of 16 bytes, for what goes by their number and not by their size."""
    return Dataset(
        name="tiny",
        title=f"{count:,} tiny files",
        steps=(),
        write=lambda folder: _write_small(count, 16, folder),
        change=lambda folder, turn: _change_small(count, 16, folder, turn),
    )


def large_file(mebibytes: int) -> Dataset:
    """One file of so many MiB."""
    size = mebibytes * MIB
    return Dataset(
        name="large",
        title=f"one file of {size // MIB} MiB",
        steps=("first upload", "clone"),
        write=lambda folder: _write_large(size, folder),
        change=lambda folder, turn: _change_large(size, folder, turn),
    )


SETS: dict[str, Callable[[int], Dataset]] = {"small": small_files, "large": large_file}


def settle_clock() -> None:
    """Wait until a file written now has another mtime than one written before.

    rsync takes size and mtime (whole seconds on some servers) for equality:
    an edit within the same second as the upload could be missed by it.
    """
    time.sleep(1.1)

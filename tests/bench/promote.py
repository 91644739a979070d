"""What ``zfs promote`` costs by the number of snapshots that it moves: ``python -m tests.bench.promote``.

As root, with zfs-fuse. For each number it makes a dataset with so many
snapshots, and promotes clones of the newest one after the other, as syncs do.
"""

from __future__ import annotations

import statistics
import time

from tests.hosts.zfs_fuse import ZfsFuse, zfs_fuse

__all__ = ["measure"]

NUMBERS = (1, 10, 100, 500, 1000)
TIMES = 7


def measure(host: ZfsFuse, number: int) -> list[float]:
    """Seconds of each of ``TIMES`` promotions that move ``number`` snapshots or a few more."""
    root = host.make_root(f"n{number}")
    at = f"{root.dataset}/g0"
    host.zfs("create", "-o", "canmount=noauto", at)
    for n in range(number):
        host.zfs("snapshot", f"{at}@s{n}")
    seconds = []
    for turn in range(TIMES):
        newest = f"{at}@s{number - 1 + turn}"
        at = f"{root.dataset}/g{turn + 1}"
        host.zfs("clone", "-o", "canmount=noauto", newest, at)
        host.zfs("snapshot", f"{at}@s{number + turn}")
        began = time.perf_counter()
        host.zfs("promote", at)
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Print a row for each number of snapshots."""
    print("| Snapshots | `promote`, median (ms) | least to most |\n|---|---|---|")
    with zfs_fuse() as host, host.entered():
        for number in NUMBERS:
            found = [seconds * 1000 for seconds in measure(host, number)]
            print(
                f"| {number:,} | {statistics.median(found):.0f} | {min(found):.0f} to {max(found):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

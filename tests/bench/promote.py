"""What ``zfs promote`` costs by the number of snapshots that it moves.

For each number a dataset with so many snapshots is made, and clones of the
newest one are promoted one after the other, as syncs do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.hosts.zfs_host import ZfsHost

__all__ = ["promotions"]

# On the server itself: a connection to it would be measured, too.
_TIMED = """\
import subprocess, sys, time
began = time.perf_counter()
subprocess.run(["zfs", "promote", sys.argv[1]], check=True)
print(time.perf_counter() - began)
"""
_AT_ONCE = 100


def promotions(host: ZfsHost, numbers: Sequence[int], times: int) -> Iterator[tuple[int, list[float]]]:
    """For each number, the seconds of ``times`` promotions that move so many snapshots or a few more."""
    for number in numbers:
        root = host.make_root(f"promote{number}")
        yield number, _measure(host, root.dataset, number, times)
        host.discard(root)


def _measure(host: ZfsHost, container: str, number: int, times: int) -> list[float]:
    at = f"{container}/g0"
    host.zfs("create", "-o", "canmount=noauto", at)
    _snapshots(host, at, number)
    seconds = []
    for turn in range(times):
        newest = f"{at}@s{number - 1 + turn}"
        at = f"{container}/g{turn + 1}"
        host.zfs("clone", "-o", "canmount=noauto", newest, at)
        host.zfs("snapshot", f"{at}@s{number + turn}")
        seconds.append(float(host.run("python3", "-c", _TIMED, at)))
    return seconds


def _snapshots(host: ZfsHost, dataset: str, number: int) -> None:
    for start in range(0, number, _AT_ONCE):
        names = [f"{dataset}@s{n}" for n in range(start, min(start + _AT_ONCE, number))]
        # Not every ZFS makes several at once.
        if len(names) == 1 or host.fails("snapshot", *names):
            for name in names:
                host.zfs("snapshot", name)

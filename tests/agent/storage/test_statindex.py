"""The stat index: a cache that is believed only when it is whole, fits, and was written late enough."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dsg_remote_agent.storage.layout import INDEX
from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex, file_clock
from protocol.digest import tagged
from tests.agent.storage.ground import Ground, only_directory

pytestmark = only_directory


RECORD = tagged("sha256", b"one")


def saved(ground: Ground, rows: list[IndexRow]) -> None:
    index = StatIndex()
    for row in rows:
        index.append(row)
    tree = ground.tree()
    index.settled(tree, file_clock(tree)).save(tree, RECORD)


def believed(ground: Ground, record: str, count: int) -> list[IndexRow]:
    """The rows as the repository would use them; all unknown when the index is not to be trusted."""
    found = StatIndex.load(ground.tree())
    if found is None or found[0] != record or len(found[1]) != count:
        return [UNKNOWN] * count
    return list(found[1])


def test_there_and_back(ground: Ground) -> None:
    rows = [IndexRow(n - 5, n + 1, 2**63 + n, n * 10**12) for n in range(100)]
    saved(ground, rows)
    assert believed(ground, RECORD, 100) == rows


def test_what_was_changed_in_the_tick_of_the_look_is_not_known(ground: Ground) -> None:
    tree = ground.tree()
    now = file_clock(tree)
    grain = tree.capabilities.time_grain_ns
    for count in (0, 1, 50):
        early = [IndexRow(2**62, now - grain - 1 - n, 2**64 - 1, n) for n in range(count)]
        for late in ([], [now - grain], [now, now + 1]):
            index = StatIndex()
            for row in [*early, *(IndexRow(1, ctime, 2, 3) for ctime in late), IndexRow(5, -1, 6, 7)]:
                index.append(row)
            assert list(index.settled(tree, now)) == [*early, *([UNKNOWN] * len(late)), IndexRow(5, -1, 6, 7)]


@pytest.mark.parametrize("what", ["missing", "another record", "another count", "empty", "folder moved in"])
def test_not_believed(ground: Ground, tmp_path: Path, what: str) -> None:
    saved(ground, [IndexRow(1, 1, 1, 1)] * 3)
    path = ground.folder / INDEX
    record, count = RECORD, 3
    if what == "missing":
        path.unlink()
    elif what == "another record":
        record = tagged("sha256", b"two")
    elif what == "another count":
        count = 4
    elif what == "empty":
        path.write_bytes(b"")
    else:
        other = Ground(tmp_path / "copy")
        other.init()
        (other.folder / INDEX).write_bytes(path.read_bytes())
        ground = other
    assert believed(ground, record, count) == [UNKNOWN] * count


def test_every_damaged_byte_is_noticed(ground: Ground) -> None:
    saved(ground, [IndexRow(1, 2, 3, 4)] * 2)
    path = ground.folder / INDEX
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])
        assert believed(ground, RECORD, 2) == [UNKNOWN] * 2, at
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert believed(ground, RECORD, 2) == [UNKNOWN] * 2, length


def test_a_row_as_young_as_the_index_is_unknown(ground: Ground) -> None:
    """An edit in the same tick of the clock could not be told from what was seen."""
    now = time.time_ns()
    saved(ground, [IndexRow(now, now, 1, 1), IndexRow(now, now - 10**9, 1, 1)])
    first, second = believed(ground, RECORD, 2)
    assert first == UNKNOWN
    assert second != UNKNOWN


def test_after_the_clock_has_passed_rows_are_kept(ground: Ground) -> None:
    path = ground.folder / "f"
    path.write_bytes(b"x")
    time.sleep(0.05)
    found = os.stat(path)
    saved(ground, [IndexRow(found.st_mtime_ns, found.st_ctime_ns, found.st_ino, 1)])
    assert believed(ground, RECORD, 1) != [UNKNOWN]

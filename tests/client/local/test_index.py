"""The stat index: what it may be trusted with, and that damage costs time and nothing else."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from dsg_client.local.index import (
    INDEX_PATH,
    LATE_PATH,
    FileClock,
    IndexChanges,
    IndexRow,
    forget_index,
    read_index,
    save_index,
)
from dsg_client.local.scan import Scan
from dsg_client.local.scope import Scope
from dsg_client.local.workdir import Workdir, create_workdir, open_workdir
from tests.client.local.conftest import binding, empty_cache, indexed_scan, on_disk, rescan, versions


def row(path: str, number: int = 0) -> IndexRow:
    return (path, number, -number, number + 2, number + 3, bytes([number % 256]) * 32)


def put(changes: IndexChanges, *rows: IndexRow) -> IndexChanges:
    for path, size, mtime_ns, ctime_ns, inode, digest in rows:
        changes.put(path, (size, mtime_ns, ctime_ns, inode), digest)
    return changes


def rows_of(workdir: Workdir) -> list[IndexRow]:
    return list(read_index(workdir.tree, binding(workdir)))


def canonical(paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda p: p.split("/"))


def test_rows_come_back_as_they_were_put(workdir: Workdir) -> None:
    paths = canonical([f"d{n % 7}/f{n}" for n in range(2000)])
    written = [row(path, n * (1 << 40)) for n, path in enumerate(paths)]
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), *written))
    assert rows_of(workdir) == written


def test_random_changes_merge_as_a_dictionary_would(workdir: Workdir, rng: random.Random) -> None:
    model: dict[str, IndexRow] = {}
    names = [
        f"{'/'.join(rng.choice('abc') for _ in range(rng.randint(1, 3)))}/f{n % 40}" for n in range(3000)
    ]
    for _ in range(12):
        changes = IndexChanges()
        for path in canonical(list(set(rng.sample(names, rng.choice([3, 900]))))):
            if rng.random() < 0.3:
                changes.drop(path)
                model.pop(path, None)
            else:
                model[path] = row(path, rng.randrange(1 << 30))
                put(changes, model[path])
        save_index(workdir.tree, binding(workdir), changes)
        assert rows_of(workdir) == [model[path] for path in canonical(list(model))]


def large_index(workdir: Workdir) -> list[IndexRow]:
    written = [
        row(path, n * (1 << 40)) for n, path in enumerate(canonical([f"d{n % 7}/f{n}" for n in range(3000)]))
    ]
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), *written))
    return written


def test_what_a_small_change_of_a_large_index_costs_goes_by_the_change(workdir: Workdir) -> None:
    rows = {one[0]: one for one in large_index(workdir)}
    base, late = workdir.root / INDEX_PATH, workdir.root / LATE_PATH
    inode, size = base.stat().st_ino, base.stat().st_size
    for number, path in enumerate(canonical(["a/first", "d3/f3", "d3/f1000", "d6/f2999", "z/last"])):
        changes = put(IndexChanges(), row(path, number))
        changes.drop("z/none")
        save_index(workdir.tree, binding(workdir), changes)
        rows[path] = row(path, number)
        assert rows_of(workdir) == [rows[path] for path in canonical(list(rows))]
    changes = IndexChanges()
    for path in canonical(["a/first", "d3/f1000", "d4/f4", "z/last"]):
        changes.drop(path)
        del rows[path]
    save_index(workdir.tree, binding(workdir), changes)
    assert rows_of(workdir) == [rows[path] for path in canonical(list(rows))]
    assert (base.stat().st_ino, base.stat().st_size) == (inode, size)
    assert late.stat().st_size < 1000
    many = canonical(list(rows))[::20]
    written = 0
    while late.exists():
        written += 1
        assert late.stat().st_size < size / 8 + 1000
        news = [row(path, written) for path in many[written::10]]
        save_index(workdir.tree, binding(workdir), put(IndexChanges(), *news))
        rows.update((one[0], one) for one in news)
        assert rows_of(workdir) == [rows[path] for path in canonical(list(rows))]
        many = canonical(list(rows))[written::20]
    assert written > 5
    assert base.stat().st_ino != inode
    assert os.listdir(workdir.root / ".dsg" / "tmp") == []


def test_news_are_good_for_one_index_only(workdir: Workdir) -> None:
    """As after a crash that kept the old news and the new index, or the other way round."""
    written = large_index(workdir)
    base, late = workdir.root / INDEX_PATH, workdir.root / LATE_PATH
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), row("d3/f3", 7)))
    older = base.read_bytes(), late.read_bytes()
    assert rows_of(workdir) != written
    base.unlink()
    assert rows_of(workdir) == []
    assert large_index(workdir) == rows_of(workdir)
    assert not late.exists()
    late.write_bytes(older[1])
    assert rows_of(workdir) == written
    late.unlink()
    base.write_bytes(older[0])
    assert rows_of(workdir) == written
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), row("d3/f3", 7)))
    assert late.exists()
    forget_index(workdir.tree)
    assert not base.exists()
    assert not late.exists()


def test_damaged_news_cost_time_and_nothing_else(workdir: Workdir, rng: random.Random) -> None:
    written = {one[0]: one for one in large_index(workdir)}
    news = [row(path, n) for n, path in enumerate(canonical([f"d4/g{n}" for n in range(200)]))]
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), *news))
    true = written | {one[0]: one for one in news}
    late = workdir.root / LATE_PATH
    good = late.read_bytes()
    for _ in range(100):
        bad = bytearray(good)
        at = rng.randrange(len(bad))
        bad[at:] = rng.choice(
            [b"", bytes(5000), rng.randbytes(3) + bytes(bad[at:]), bytes([bad[at] ^ 1]) + bad[at + 1 :]]
        )
        late.write_bytes(bad)
        found = rows_of(workdir)
        assert [one[0] for one in found] == canonical([one[0] for one in found])
        assert all(true[one[0]] == one for one in found)
        assert len(found) >= len(written)
    late.unlink()
    late.mkdir()
    assert rows_of(workdir) == list(written.values())


def test_nothing_is_written_when_there_is_nothing_new(workdir: Workdir) -> None:
    save_index(workdir.tree, binding(workdir), IndexChanges())
    assert not (workdir.root / INDEX_PATH).exists()
    (workdir.root / "input" / "a").write_bytes(b"a")
    time.sleep(0.1)
    rescan(workdir)
    before = (workdir.root / INDEX_PATH).stat()
    rescan(workdir)
    assert (workdir.root / INDEX_PATH).stat().st_ino == before.st_ino
    assert os.listdir(workdir.root / ".dsg" / "tmp") == []


def test_it_is_good_for_one_machine_folder_and_algorithm(workdir: Workdir) -> None:
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), row("a")))
    here = binding(workdir)
    for other in (
        here.but(machine="another"),
        here.but(filesystem=here.filesystem + 1),
        here.but(inode=here.inode + 1),
        here.but(algorithm="blake3"),
    ):
        assert list(read_index(workdir.tree, other)) == []
    assert rows_of(workdir) == [row("a")]


def test_a_copied_folder_reads_its_files_again(workdir: Workdir, tmp_path: Path) -> None:
    (workdir.root / "input" / "a").write_bytes(b"a")
    time.sleep(0.1)
    rescan(workdir)
    copy = tmp_path / "copy"
    assert os.system(f"cp -a '{workdir.root}' '{copy}'") == 0
    with open_workdir(copy) as copied:
        assert rescan(copied)[1] == 1


def test_damage_anywhere_costs_time_and_nothing_else(workdir: Workdir, rng: random.Random) -> None:
    paths = canonical([f"f{n:05}" for n in range(1500)])
    written = [row(path, n) for n, path in enumerate(paths)]
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), *written))
    path = workdir.root / INDEX_PATH
    good = path.read_bytes()
    survived = 0
    for _ in range(300):
        bad = bytearray(good)
        at = rng.randrange(len(bad))
        how = rng.choice(["flip", "cut", "zero", "insert"])
        if how == "flip":
            bad[at] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del bad[at:]
        elif how == "zero":
            bad[at : at + 4096] = bytes(len(bad[at : at + 4096]))
        else:
            bad[at:at] = rng.randbytes(3)
        path.write_bytes(bad)
        found = rows_of(workdir)
        # What is still given is true, and in order from the beginning.
        assert found == written[: len(found)], how
        survived += len(found)
    assert 0 < survived < 300 * len(written)
    for content in (b"", b"DSGI", rng.randbytes(5000), good[:200] * 3):
        path.write_bytes(content)
        assert rows_of(workdir) == []
    path.unlink()
    path.mkdir()
    assert rows_of(workdir) == []


def test_a_newer_format_is_not_read(workdir: Workdir) -> None:
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), row("a")))
    path = workdir.root / INDEX_PATH
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\x00\x02" + content[6:])
    assert rows_of(workdir) == []
    (workdir.root / "input" / "a").write_bytes(b"a")
    assert versions(rescan(workdir)[0]) == on_disk(workdir.root)


def test_blocks_of_an_older_index_are_not_taken_for_new_ones(workdir: Workdir) -> None:
    """As after a crash that left half of each: same length, same place, valid in their own file."""
    first = [row(f"f{n:05}", n) for n in range(1200)]
    second = [row(f"f{n:05}", n + 1) for n in range(1200)]
    path = workdir.root / INDEX_PATH
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), *first))
    old = path.read_bytes()
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), *second))
    new = path.read_bytes()
    path.write_bytes(new[: len(new) // 2] + old[len(new) // 2 :])
    found = rows_of(workdir)
    assert found == second[: len(found)]
    assert len(found) < len(second)


def test_a_failed_write_leaves_the_old_index(workdir: Workdir) -> None:
    save_index(workdir.tree, binding(workdir), put(IndexChanges(), row("a")))

    class Failing(IndexChanges):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from super().__iter__()
            raise OSError(28, "No space left on device")

    changes = Failing()
    put(changes, row("b"))
    with pytest.raises(OSError, match="No space"):
        save_index(workdir.tree, binding(workdir), changes)
    assert rows_of(workdir) == [row("a")]
    assert os.listdir(workdir.root / ".dsg" / "tmp") == []


# Racy times


def test_a_file_just_written_is_not_trusted(workdir: Workdir) -> None:
    (workdir.root / "input" / "fresh").write_bytes(b"x")
    rescan(workdir)
    assert rows_of(workdir) == []
    time.sleep(0.1)
    assert rescan(workdir)[1] == 1
    assert [r[0] for r in rows_of(workdir)] == ["input/fresh"]
    assert rescan(workdir)[1] == 0


def test_an_mtime_of_the_far_future_or_past_is_trusted(workdir: Workdir) -> None:
    for name, seconds in (("future", 4_000_000_000), ("past", 10), ("before-1970", -1000)):
        (workdir.root / "input" / name).write_bytes(b"x")
        os.utime(workdir.root / "input" / name, (seconds, seconds))
    time.sleep(0.1)
    rescan(workdir)
    assert rescan(workdir)[1] == 0


class Careless(FileClock):
    """The negative control: a clock that trusts every time."""

    def settled(self, mtime_ns: int, ctime_ns: int, read_ns: int) -> bool:
        return True

    def settled_since_placed(self, mtime_ns: int, ctime_ns: int) -> bool:
        return True


def edits_in_one_tick(workdir: Workdir, careless: bool) -> bool:
    """Scan, edit in the same tick with the same size, scan again; whether the edit was seen."""
    path = workdir.root / "input" / "data"
    for _ in range(20):
        path.write_bytes(b"one")
        measured = FileClock.measure(workdir.tree)
        assert measured is not None
        clock = Careless(measured.offset_ns, measured.grain_ns) if careless else measured
        scan = Scan(workdir.root, Scope(), index=read_index(workdir.tree, binding(workdir)), clock=clock)
        list(scan)
        save_index(workdir.tree, binding(workdir), scan.changes)
        before = path.stat()
        path.write_bytes(b"two")
        after = path.stat()
        if (before.st_mtime_ns, before.st_ctime_ns) != (after.st_mtime_ns, after.st_ctime_ns):
            time.sleep(0.3)  # the tick ended in between: once more
            continue
        return versions(list(indexed_scan(workdir))) == on_disk(workdir.root)
    raise AssertionError("no two writes in one tick")


def test_an_edit_in_the_same_tick_is_found(coarse: Path) -> None:
    (coarse / "input").mkdir()
    with create_workdir(coarse, empty_cache()) as workdir:
        assert workdir.tree.capabilities.time_grain_ns == 1_000_000_000
        assert edits_in_one_tick(workdir, careless=False)


def test_without_the_rule_that_edit_is_lost(coarse: Path) -> None:
    (coarse / "input").mkdir()
    with create_workdir(coarse, empty_cache()) as workdir:
        assert not edits_in_one_tick(workdir, careless=True)


def test_a_file_clock_is_never_ahead(workdir: Workdir) -> None:
    clock = FileClock.measure(workdir.tree)
    assert clock is not None
    for _ in range(50):
        estimate = time.monotonic_ns() + clock.offset_ns
        path = workdir.root / "stamp"
        path.write_bytes(b"x")
        assert estimate <= path.stat().st_mtime_ns + clock.grain_ns
    assert os.listdir(workdir.root / ".dsg" / "tmp") == []


def test_no_clock_no_trust(workdir: Workdir) -> None:
    (workdir.root / "input" / "a").write_bytes(b"a")
    time.sleep(0.1)
    scan = Scan(workdir.root, Scope(), clock=None)
    list(scan)
    assert scan.changes.count == 0


# Files that were just placed


def test_a_placed_file_is_not_read_again(workdir: Workdir) -> None:
    clock = FileClock.measure(workdir.tree)
    (workdir.root / "new").write_bytes(b"content")
    os.utime(workdir.root / "new", (1_000_000_000, 1_000_000_000))
    os.rename(workdir.root / "new", workdir.root / "input" / "placed")
    digest = on_disk(workdir.root)[0][2]
    changes = IndexChanges()
    changes.put_placed("input/placed", workdir.tree.stat("input/placed"), digest, clock)
    save_index(workdir.tree, binding(workdir), changes)
    found, read = rescan(workdir)
    assert read == 0
    assert versions(found) == on_disk(workdir.root)


def test_a_placed_file_with_an_mtime_of_now_is_read_again(workdir: Workdir) -> None:
    clock = FileClock.measure(workdir.tree)
    (workdir.root / "input" / "placed").write_bytes(b"content")
    changes = IndexChanges()
    changes.put_placed("input/placed", workdir.tree.stat("input/placed"), bytes(32), clock)
    save_index(workdir.tree, binding(workdir), changes)
    found, read = rescan(workdir)
    assert read == 1
    assert versions(found) == on_disk(workdir.root)


def test_an_edit_right_after_placing_is_found_by_its_mtime(coarse: Path) -> None:
    (coarse / "input").mkdir()
    with create_workdir(coarse, empty_cache()) as workdir:
        clock = FileClock.measure(workdir.tree)
        path = workdir.root / "input" / "placed"
        path.write_bytes(b"one")
        os.utime(path, (1_000_000_000, 1_000_000_000))
        stat = workdir.tree.stat("input/placed")
        changes = IndexChanges()
        changes.put_placed("input/placed", stat, on_disk(workdir.root)[0][2], clock)
        save_index(workdir.tree, binding(workdir), changes)
        path.write_bytes(b"two")
        assert versions(rescan(workdir)[0]) == on_disk(workdir.root)

"""Real faults: a full disk, a read-only one, death at any moment, somebody who plays with links."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import DsgError, RemoteStorageError
from protocol.manifest import Entry
from protocol.messages import Abort, Changes, Commit, GetOutcome, Recover, Upload
from tests.agent.client import AgentGone, Client, change_body, changes_of, merged, tree_of, upload_body
from tests.conftest import mount_or_skip

pytestmark = pytest.mark.slow
TXID = "tx-faults-001"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount_or_skip("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def test_a_disk_that_fills_up_during_the_upload(small_disk: Path) -> None:
    repo = small_disk / "repo"
    big = os.urandom(6 << 20)
    changes: list[Entry | str] = changes_of({"d/big": big, "a": b"2"}, [], {}, 2)
    with Client() as client:
        client.init(repo)
        client.open(repo)
        base = client.sync("tx-faults-000", {"a": b"1"})
        client.begin(TXID, base)
        client.call(Changes(repo=1, txid=TXID), change_body(changes))
        filler = fill(small_disk)
        with pytest.raises(RemoteStorageError) as caught:
            client.call(Upload(repo=1, txid=TXID), upload_body(changes, {"d/big": big, "a": b"2"}))
        assert "full" in caught.value.message and str(repo) in caught.value.message
        assert "free space" in caught.value.hint
        client.call(Abort(repo=1, txid=TXID))
        assert tree_of(repo) == {"a": b"1"}
        filler.unlink()
        client.sync("tx-faults-002", {"d/big": big, "a": b"2"})
    assert tree_of(repo) == {"d/big": big, "a": b"2"}


def test_a_disk_that_is_full_at_the_commit(small_disk: Path) -> None:
    """Whatever happens, the answer is true: committed with or without a note, or aborted."""
    repo = small_disk / "repo"
    puts = {f"new{n}/f{n}": b"%d" % n for n in range(300)}
    with Client() as client:
        client.init(repo)
        client.open(repo)
        base = client.sync("tx-faults-000", {"a": b"1"})
        changes = changes_of(puts, ["a"], {}, 2)
        manifest = client.manifest()
        client.begin(TXID, base)
        client.stage(TXID, changes, puts)
        record = client.prepare(TXID, merged(manifest, changes))
        filler = fill(small_disk)
        done = client.call(Commit(repo=1, txid=TXID, record=record.digest))
        assert any("could not finish" in note for note in done.notes)
        # It is committed: readers see it whole, before anybody recovers, and on a full disk.
        with Client("--role", "read") as reader:
            assert reader.open(repo) == record
            assert reader.get(2, reader.manifest()) == puts
        filler.unlink()
        client.call(Recover(repo=1))
    assert tree_of(repo) == puts


def test_a_disk_that_a_killed_agent_left_full(small_disk: Path) -> None:
    """The next agent can take the lock and clean up, although not even the lock's note fits."""
    repo = small_disk / "repo"
    big = os.urandom(12 << 20)
    with Client() as client:
        client.init(repo)
        client.open(repo)
        base = client.sync("tx-faults-000", {"a": b"1"})
    killed = Client(failpoints="uploaded=kill")
    killed.open(repo)
    with pytest.raises(AgentGone):
        killed.sync(TXID, {"big": big})
    killed.process.wait()
    fill(small_disk)
    with Client() as client:
        assert client.open(repo) == base
        client.sync("tx-faults-002", {"big": big[: 1 << 20]})
    assert tree_of(repo) == {"a": b"1", "big": big[: 1 << 20]}


def test_a_read_only_disk(small_disk: Path) -> None:
    repo = small_disk / "repo"
    with Client() as client:
        client.init(repo)
        client.open(repo)
        base = client.sync("tx-faults-000", {"a": b"1"})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Client() as client:
        client.open(repo)
        assert client.get(1, client.manifest()) == {"a": b"1"}, "reading goes on"
        with pytest.raises(RemoteStorageError, match="read-only"):
            client.begin(TXID, base)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_killed_at_random_moments(tmp_path: Path, rng: random.Random) -> None:
    """Twenty-five agents killed at any moment of a transaction; each time all as before, or all as after."""
    repo = tmp_path / "repo"
    with Client() as client:
        client.init(repo)
        client.open(repo)
        client.sync("tx-faults-000", {f"d{n % 5}/f{n}": b"0" for n in range(60)})
    state = tree_of(repo)
    ended = {"committed": 0, "aborted": 0}
    for turn in range(25):
        puts = {f"d{n % 5}/f{n}": b"%d in %d" % (n, turn) for n in rng.sample(range(80), 30)}
        deletes = [path for path in rng.sample(sorted(state), min(10, len(state))) if path not in puts]
        txid = f"tx-random-{turn:03d}"
        victim = Client()
        timer = threading.Timer(rng.uniform(0.02, 0.25), victim.process.kill)
        timer.start()
        seq = 0
        try:
            seq = victim.open(repo).seq
            victim.sync(txid, puts, deletes)
        except (AgentGone, OSError, TimeoutError):
            pass
        timer.join()
        victim.process.wait()
        with Client() as client:
            head = client.open(repo)
            outcome = client.call(GetOutcome(repo=1, txid=txid, seq=(seq or head.seq) + 1)).outcome
            client.call(Recover(repo=1))
        ended[outcome] += 1
        if outcome == "committed":
            state = {**{p: c for p, c in state.items() if p not in deletes}, **puts}
        assert tree_of(repo) == state, (turn, outcome)
    print(ended)


def test_links_that_flip_under_the_agent(tmp_path: Path) -> None:
    """A folder of the repository is swapped with a link that leads out: nothing out there changes."""
    repo, outside = tmp_path / "repo", tmp_path / "outside"
    outside.mkdir()
    for n in range(10):
        (outside / f"f{n}").write_bytes(b"precious")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_mode) for p in outside.iterdir()}
    with Client() as client:
        client.init(repo)
        client.open(repo)
        client.sync("tx-faults-000", {f"d/f{n}": b"0" for n in range(10)})
    over = threading.Event()

    def flip() -> None:
        real, link = repo / "d", repo / "d-away"
        while not over.is_set():
            try:
                real.rename(link)
                real.symlink_to(outside)
                time.sleep(0.0005)
                real.unlink()
                link.rename(real)
            except OSError:
                time.sleep(0.001)

    racer = threading.Thread(target=flip)
    racer.start()
    tried = committed = 0
    deadline = time.monotonic() + 8
    try:
        while time.monotonic() < deadline:
            with Client() as client:
                try:
                    client.open(repo)
                    for _ in range(10):
                        tried += 1
                        changes = {f"d/f{n}": b"%d" % tried for n in range(10)}
                        client.sync(f"tx-race-{tried:06d}", changes)
                        committed += 1
                except DsgError:
                    pass
    finally:
        over.set()
        racer.join()
    after = {p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_mode) for p in outside.iterdir()}
    assert after == before
    assert tried > 10

"""``python -m tests.bench``: see ``docs/performance.md`` for how the figures are made."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import frozen

from tests.bench.contestants import Contestant, Dsg, Place, Rsync
from tests.bench.measure import put_aside, run_timed, run_watched
from tests.bench.promote import promotions
from tests.bench.report import Result, Row, machine, render, slower_rows
from tests.bench.steps import Step, steps_of
from tests.bench.stores import BACKENDS, Door, Store, ZfsStore, open_store
from tests.bench.workloads import SETS, Dataset, settle_clock, tiny_files
from tests.demo.server import find_sshd
from tests.hosts.proxy import Proxy
from tests.trees import first_difference

DIRECT = "bench-direct"
PROXIED = "bench-proxied"


@frozen
class Bench:
    """One run of the benchmark: everything that its parts need."""

    folder: Path
    home: Path
    store: Store
    proxy: Proxy
    contestants: Sequence[Contestant]
    timed_host: str

    def place(self, dataset: Dataset, contestant: Contestant, host: str) -> Place:
        name = contestant.name.replace(" ", "")
        base = self.folder / dataset.name / name
        return Place(
            source=base / "local",
            store=self.store,
            name=f"{dataset.name}-{name}",
            clone=base / "clone",
            host=host,
            ssh_config=self.home / ".ssh" / "config",
            env={
                "HOME": str(self.home),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "LANG": "C.UTF-8",
                "DSG_USER_NAME": "bench",
            },
        )

    def run(self, dataset: Dataset, pairs: int) -> list[Row]:
        """One watched round through the counting proxy, then ``pairs`` timed rounds."""
        rows = {
            (step, contestant.name): Row(dataset.title, step, contestant.name)
            for step in dataset.steps
            for contestant in self.contestants
        }
        for contestant in self.contestants:
            dataset.write(self.place(dataset, contestant, PROXIED).source / "input")
        for turn in range(pairs + 1):
            # Rotated, so that nobody always runs first after the data was made or the caches were warmed.
            first = turn % len(self.contestants)
            order = [*self.contestants[first:], *self.contestants[:first]]
            for step in dataset.steps:
                self._set_up(dataset, step, order, turn)
                for contestant in order:
                    self._measure(dataset, step, contestant, turn, rows[step, contestant.name])
            _note(f"  {dataset.title}: " + (f"round {turn} of {pairs}" if turn else "bytes and memory"))
        return list(rows.values())

    def _set_up(self, dataset: Dataset, step: str, order: Sequence[Contestant], turn: int) -> None:
        """Bring every contestant's place to just before ``step``."""
        for contestant in order:
            place = self.place(dataset, contestant, self.timed_host if turn else PROXIED)
            if step == "first upload":
                contestant.prepare(place)
            elif step == "clone":
                put_aside(place.clone, self.folder / "aside")
        if step == "1% changed":
            settle_clock()
            for contestant in order:
                dataset.change(self.place(dataset, contestant, PROXIED).source / "input", turn)
            settle_clock()

    def _measure(self, dataset: Dataset, step: str, contestant: Contestant, turn: int, row: Row) -> None:
        place = self.place(dataset, contestant, self.timed_host if turn else PROXIED)
        argv = contestant.clone(place) if step == "clone" else contestant.upload(place)
        cwd = place.clone.parent if step == "clone" else place.source
        self.store.settle()  # what the one before left to be done or written is not this one's
        if turn:
            row.seconds.append(run_timed(argv, cwd, place.env))
            return
        sent, received = self.proxy.up, self.proxy.down
        memory = run_watched(argv, cwd, place.env, self.store.door.pid)
        row.sent, row.received = self.proxy.up - sent, self.proxy.down - received
        row.client_memory, row.server_memory = memory.client, memory.server
        self._compare(place, place.clone if step == "clone" else contestant.arrived(place), step, contestant)

    def _compare(self, place: Place, other: Path, step: str, contestant: Contestant) -> None:
        copies = self.folder / "copies"
        copies.mkdir()
        if step != "clone":
            other = self.store.look(other, copies)
        difference = first_difference(place.source / "input", other / "input")
        if difference:
            raise RuntimeError(f"{contestant.name}, {step}: {difference}")
        shutil.rmtree(copies)

    def steps(self, dataset: Dataset, dsg: Contestant, syncs: int) -> list[Step]:
        """What the server does in each of ``syncs`` syncs of one changed file."""
        assert isinstance(self.store, ZfsStore)
        place = self.place(dataset, dsg, DIRECT)
        dataset.write(place.source / "input")
        dsg.prepare(place)
        run_timed(dsg.upload(place), place.source, place.env)
        log = self.store.zfs.mountpoint / "agent.log"
        logged = {"DSG_AGENT_COMMAND": f"dsg-remote-agent --log-level debug --log-file {log}"}
        changed = next((place.source / "input").rglob("*.bin"))
        for turn in range(syncs):
            self.store.settle()
            changed.write_bytes(f"changed {turn}".encode())
            run_timed(dsg.upload(place), place.source, {**place.env, **logged})
        self.store.settle()
        return steps_of(self.store.read_text(log).splitlines())


def _ssh_home(home: Path, door: Door, proxy_port: int) -> None:
    """A home folder whose SSH configuration names the server, and the proxy before it."""
    ssh = home / ".ssh"
    known = ssh / "known_hosts"
    kind, public, *_comment = door.host_key.with_suffix(".pub").read_text().split()
    ports = {DIRECT: door.port, PROXIED: proxy_port}
    known.write_text("".join(f"[127.0.0.1]:{port} {kind} {public}\n" for port in ports.values()))
    (ssh / "config").write_text(
        "".join(
            f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  User {door.user}\n"
            f"  IdentityFile {door.key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n"
            for name, port in ports.items()
        )
    )
    (ssh / "config").chmod(0o600)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@frozen
class Size:
    """How much is measured unless told otherwise."""

    pairs: int
    files: int
    mib: int
    syncs: int
    snapshots: Sequence[int]
    promotions: int


SIZES = {
    "directory": Size(5, 20_000, 512, 0, (), 0),
    "zfs-fuse": Size(5, 2_000, 64, 12, (1, 10, 100, 500, 1000), 7),
    "openzfs": Size(3, 200, 4, 5, (1, 10, 100, 400), 5),
}
SLOW = (
    "The server's processor is emulated, the client's is not: small sets and few rounds (--files, --mib,",
    "--pairs scale them), and no figure says how long a real server takes. Compare them with each other.",
)
PARTS = (*SETS, "steps", "promote")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="See docs/performance.md for how the figures are made.",
        epilog="defaults that differ: "
        + "; ".join(
            f"{name}: {size.pairs} rounds, {size.files} files, {size.mib} MiB" for name, size in SIZES.items()
        ),
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="directory",
        help="where the server keeps what is synced (also: make bench BACKEND=...)",
    )
    parser.add_argument("--pairs", type=int, help="timed rounds")
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=PARTS,
        help="what to measure: many small files, one large file; and on ZFS the server's steps of a sync, "
        "and promote by the number of snapshots (default: all)",
    )
    parser.add_argument("--files", type=int, help="how many small files")
    parser.add_argument("--mib", type=int, help="size of the large file")
    parser.add_argument("--syncs", type=int, help="syncs whose steps are told")
    parser.add_argument("--snapshots", type=int, nargs="+", help="numbers of snapshots to promote")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="added each way to every byte")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="on the file system to measure")
    parser.add_argument("--gate", action="store_true", help="exit 1 when a row is slower than rsync --fsync")
    found = parser.parse_args()
    for name in ("pairs", "files", "mib", "syncs", "snapshots"):
        if getattr(found, name) is None:
            setattr(found, name, getattr(SIZES[found.backend], name))
    usual = SETS if found.backend == "directory" else PARTS
    found.sets = found.sets or list(usual)
    if not set(found.sets) <= set(usual):
        parser.error("steps and promote are of ZFS: --backend zfs-fuse or openzfs")
    return found


def _measured(bench: Bench, arguments: argparse.Namespace) -> Result:
    """All that was asked for."""
    sizes = {"small": arguments.files, "large": arguments.mib}
    rows = [
        row
        for name in arguments.sets
        if name in SETS
        for row in bench.run(SETS[name](sizes[name]), arguments.pairs)
    ]
    steps_text, steps = "", list[Step]()
    if "steps" in arguments.sets:
        dataset = tiny_files(arguments.files)
        steps_text = f"1 of {arguments.files:,} files changed; medians of {arguments.syncs}"
        steps = bench.steps(dataset, bench.contestants[0], arguments.syncs)
        _note("  the server's steps of a sync")
    promoted: dict[int, list[float]] = {}
    if "promote" in arguments.sets:
        assert isinstance(bench.store, ZfsStore)
        times = SIZES[arguments.backend].promotions
        for number, seconds in promotions(bench.store.zfs, arguments.snapshots, times):
            promoted[number] = seconds
            _note(f"  promote: {number} snapshots")
    return Result(
        machine=machine(bench.folder, bench.store.facts),
        delay_ms=arguments.delay,
        pairs=arguments.pairs,
        rows=rows,
        steps_of=steps_text,
        steps=steps,
        promotions=promoted,
        notes=SLOW if arguments.backend == "openzfs" else (),
    )


def main() -> int:
    arguments = _arguments()
    if find_sshd() is None or shutil.which("rsync") is None:
        _note("the benchmark needs both; to have them: sudo apt-get install -y openssh-server rsync")
        return 2
    # Ending by signal, too, goes through the clean-up below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bin_folder = Path(sys.executable).parent
    contestants: list[Contestant] = [
        Dsg("dsg", bin_folder / "dsg"),
        Rsync("rsync", ()),
        Rsync("rsync --fsync", ("--fsync",)),
    ]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=arguments.folder.resolve()))
    try:
        home = folder / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        with (
            open_store(arguments.backend, folder / "server", bin_folder) as store,
            Proxy(store.door.port, delay=arguments.delay / 1000) as proxy,
        ):
            _ssh_home(home, store.door, proxy.port)
            timed = PROXIED if arguments.delay else DIRECT
            result = _measured(Bench(folder, home, store, proxy, contestants, timed), arguments)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        # What starts a ZFS is made for tests, and says so when it cannot.
        _note(f"no such backend here: {error}")
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result.to_map(), indent=2) + "\n")
    print(render(result))
    print(f"\nAll figures: {arguments.json}")
    slower = slower_rows(result)
    for text in slower:
        print(f"slower than rsync --fsync: {text}")
    return 1 if slower and arguments.gate else 0


if __name__ == "__main__":
    sys.exit(main())

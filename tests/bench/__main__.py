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

from attrs import frozen

from tests.bench.contestants import Contestant, Dsg, Place, Rsync
from tests.bench.measure import run_timed, run_watched
from tests.bench.report import Result, Row, machine, render, slower_rows
from tests.bench.workloads import SETS, Dataset, settle_clock
from tests.demo.server import (
    Server,
    find_sshd,
    free_port,
    make_key,
    session_environment,
    start_openssh,
    stop,
)
from tests.hosts.proxy import Proxy
from tests.trees import first_difference

DIRECT = "bench-direct"
PROXIED = "bench-proxied"


@frozen
class Bench:
    """One run of the benchmark on one data set: everything that its steps need."""

    folder: Path
    home: Path
    server: Server
    proxy: Proxy
    contestants: Sequence[Contestant]
    timed_host: str

    def place(self, dataset: Dataset, contestant: Contestant, host: str) -> Place:
        base = self.folder / dataset.name / contestant.name.replace(" ", "")
        return Place(
            source=base / "local",
            remote=base / "remote",
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
                shutil.rmtree(place.clone, ignore_errors=True)
        if step == "1% changed":
            settle_clock()
            for contestant in order:
                dataset.change(self.place(dataset, contestant, PROXIED).source / "input", turn)
            settle_clock()

    def _measure(self, dataset: Dataset, step: str, contestant: Contestant, turn: int, row: Row) -> None:
        place = self.place(dataset, contestant, self.timed_host if turn else PROXIED)
        argv = contestant.clone(place) if step == "clone" else contestant.upload(place)
        cwd = place.clone.parent if step == "clone" else place.source
        os.sync()  # what the one before left unwritten is not this one's to write
        if turn:
            row.seconds.append(run_timed(argv, cwd, place.env))
            return
        sent, received = self.proxy.up, self.proxy.down
        memory = run_watched(argv, cwd, place.env, self.server.pid)
        row.sent, row.received = self.proxy.up - sent, self.proxy.down - received
        row.client_memory, row.server_memory = memory.client, memory.server
        other = place.clone if step == "clone" else place.remote
        difference = first_difference(place.source / "input", other / "input")
        if difference:
            raise RuntimeError(f"{contestant.name}, {step}: {difference}")


def _ssh_home(home: Path, key: Path, server: Server, proxy_port: int) -> None:
    """A home folder whose SSH configuration names the server, and the proxy before it."""
    ssh = home / ".ssh"
    known = ssh / "known_hosts"
    kind, public, *_comment = server.host_key.with_suffix(".pub").read_text().split()
    ports = {DIRECT: server.port, PROXIED: proxy_port}
    known.write_text("".join(f"[127.0.0.1]:{port} {kind} {public}\n" for port in ports.values()))
    (ssh / "config").write_text(
        "".join(
            f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  User {server.user}\n"
            f"  IdentityFile {key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n"
            for name, port in ports.items()
        )
    )
    (ssh / "config").chmod(0o600)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=list(SETS), help="what to sync")
    parser.add_argument("--files", type=int, default=20_000, help="how many small files (default 20000)")
    parser.add_argument("--mib", type=int, default=512, help="size of the large file (default 512)")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="added each way to every byte")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="on the file system to measure")
    parser.add_argument("--gate", action="store_true", help="exit 1 when a row is slower than rsync --fsync")
    return parser.parse_args()


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
        key = home / ".ssh" / "id_ed25519"
        make_key(key, "bench", lambda argv: None)
        server = start_openssh(
            folder / "server",
            free_port(),
            [key.with_suffix(".pub")],
            session_environment(bin_folder),
            lambda argv: None,
        )
        try:
            with Proxy(server.port, delay=arguments.delay / 1000) as proxy:
                _ssh_home(home, key, server, proxy.port)
                timed = PROXIED if arguments.delay else DIRECT
                bench = Bench(folder, home, server, proxy, contestants, timed)
                sizes = {"small": arguments.files, "large": arguments.mib}
                rows = [
                    row
                    for name in arguments.sets
                    for row in bench.run(SETS[name](sizes[name]), arguments.pairs)
                ]
        finally:
            stop(server)
        result = Result(
            machine=machine(folder, server.name),
            delay_ms=arguments.delay,
            pairs=arguments.pairs,
            rows=rows,
        )
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

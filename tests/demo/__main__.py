"""``python -m tests.demo``: two people sync a real data set through a server on this machine.

Everything happens below one folder, ``./demo`` unless told otherwise, and
stays there to look at; running it again starts afresh. No service, account or
setting of this machine is changed; the server listens on loopback only and
ends with the demo.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.demo.server import (
    Server,
    find_sshd,
    free_port,
    make_key,
    session_environment,
    start_asyncssh,
    start_openssh,
    stop,
)
from tests.demo.stage import DemoError, Stage
from tests.demo.story import tell

MARKER = ".made-by-make-demo"
DATASET = "bokeh-sampledata"


def dataset_folder(stage: Stage) -> Path:
    """The public data set, installed into the environment that runs this (28 MB, for the demo alone)."""
    if importlib.util.find_spec("bokeh_sampledata") is None:
        # Without its dependencies: the files are wanted, not the code that reads them.
        argv = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", DATASET]
        stage.command("you", argv)
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        importlib.invalidate_caches()
    found = importlib.util.find_spec("bokeh_sampledata")
    if found is None or found.origin is None:
        raise DemoError(f"the package {DATASET} is installed, and its folder is not to be found")
    return Path(found.origin).parent / "_data"


def clear(folder: Path) -> None:
    """An empty ``folder``: what an earlier demo left is removed, anything else is not touched."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise DemoError(f"{folder} holds something that no demo made; use --folder for another place")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def start_server(stage: Stage, kind: str) -> Server:
    """OpenSSH's server where there is one, else asyncssh's; says which."""
    persons = [stage.person(name) for name in ("ada", "ben")]
    for person in persons:
        (person.home / ".ssh").mkdir(parents=True, mode=0o700)
        key = person.home / ".ssh" / "id_ed25519"
        make_key(key, person.name, lambda argv: stage.command("you", argv))
    if kind == "auto":
        kind = "openssh" if find_sshd() else "asyncssh"
    start = start_openssh if kind == "openssh" else start_asyncssh
    server = start(
        stage.folder / "server" / "sshd",
        free_port(),
        [person.home / ".ssh" / "id_ed25519.pub" for person in persons],
        session_environment(Path(sys.executable).parent),
        lambda argv: stage.command("you", argv),
    )
    stage.say(
        f"SSH server: {server.name} on 127.0.0.1:{server.port}, process {server.pid}, account {server.user}"
    )
    for person in persons:
        person.settle_in(server)
    return server


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where it plays (default ./demo)")
    parser.add_argument("--server", choices=["auto", "openssh", "asyncssh"], default="auto")
    arguments = parser.parse_args()
    # Ending by signal, too, goes through the clean-up below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stage = Stage(arguments.folder.resolve())
    server = None
    try:
        clear(stage.folder)
        stage.title("A server on this machine, and the keys of two people")
        data = dataset_folder(stage)
        server = start_server(stage, arguments.server)
        tell(stage, data)
    except DemoError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            stop(server)
            print(f"\n(ended the SSH server, process {server.pid})", flush=True)
    shown = arguments.folder
    stage.title("To look at")
    stage.say(f"  {shown}/ada/atlas      Ada's folder")
    stage.say(f"  {shown}/ben/atlas      Ben's folder")
    stage.say(f"  {shown}/server/atlas   the repository; its history is in .dsg")
    return 0


if __name__ == "__main__":
    sys.exit(main())

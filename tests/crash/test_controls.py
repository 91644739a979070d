"""Does the lane notice? One safety is taken out of ``dsg`` or its agent, and a test of the lane must fail.

Each control starts the real program through a small script that replaces one
function first. The same case is run with nothing taken out, too: it must pass,
so that it is the missing safety and nothing else that is noticed.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.crash.conftest import Line
from tests.crash.scene import Scene, everything, until
from tests.e2e.world import LAUNCHER, World
from tests.hosts.sshd import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh-keygen")]

NO_LAST_LOOK = """
from dsg_client.sync.localside import LocalSide
LocalSide.check_unchanged = lambda self: None
"""
NO_JOURNAL = """
import dsg_client.sync.localside as m
m.write_prepared = lambda tree, journal: None
"""
DECIDED_TOO_EARLY = """
import dsg_client.sync.transaction as m
asked = m.Transaction._decide_remote
async def decide(self):
    self._local.decide()
    await asked(self)
m.Transaction._decide_remote = decide
"""
NO_DIGESTS = """
import protocol.tree.arrive as m
class Any(bytes):
    def __ne__(self, other):
        return False
def hasher(algorithm, real=m.hasher):
    sums = real(algorithm)
    class Never:
        update = sums.update
        def digest(self):
            return Any(sums.digest())
    return Never()
m.hasher = hasher
"""
NO_CHAIN = """
from dsg_remote_agent.storage.chain import Chain
Chain.holds = lambda self, head, digest: True
"""
NO_LOCK = """
import dsg_remote_agent.storage.directory as m
from dsg_remote_agent.lock import Held
class Nothing:
    def fileno(self):
        return -1
    def release(self):
        pass
m.take = lambda tree, claim, shown, now: Held(tree, Nothing(), claim)
"""
LYING = """
import dsg_remote_agent.repositories as m
told = m.payloads
class Lying:
    def __init__(self, file):
        self.file = file
    def __getattr__(self, name):
        return getattr(self.file, name)
    def read(self, size):
        content = self.file.read(size)
        return bytes([content[0] ^ 1]) + content[1:] if content else content
def lie(open_read, sources, expected):
    return told(lambda path: Lying(open_read(path)), sources, expected)
m.payloads = lie
"""

AGENT = """\
import sys
sys.path[1:1] = {folders!r}
sys.argv[0] = "dsg-remote-agent"
{patch}
from dsg_remote_agent.main import main
sys.exit(main())
"""


def client_without(scene: Scene, patch: str) -> None:
    """Ann's ``dsg`` from now on."""
    program = scene.world.folder / "patched.py"
    text = LAUNCHER.format(checkout=str(REPOSITORY))
    first, main = text.split("from dsg_client.cli.start", 1)
    program.write_text(f"{first}{patch}\nfrom dsg_client.cli.start{main}")
    scene.who.program = program


def agent_without(scene: Scene, line: Line, patch: str) -> dict[str, str]:
    """The variables with which a command starts another agent on the server."""
    import attr
    import msgpack

    folders = [str(REPOSITORY)]
    folders += [str(Path(m.__file__ or "").resolve().parents[1]) for m in (attr, msgpack)]
    program = scene.world.folder / "patched_agent.py"
    program.write_text(AGENT.format(folders=folders, patch=patch))
    started = scene.world.folder / "patched-agent"
    note = f"echo $$ > {line.people.host.agents}/$$\n"
    started.write_text(f"#!/bin/sh\n{note}exec {shlex.quote(sys.executable)} -I {program}\n")
    started.chmod(0o755)
    return {"DSG_AGENT_COMMAND": str(started)}


def both(patch: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("patch", ["", patch], ids=["whole", "without"])


def noticed(patch: str, case: object) -> None:
    """Run a case of the lane; it must pass exactly when nothing was taken out."""
    assert callable(case)
    if not patch:
        case()
        return
    with pytest.raises(AssertionError):
        case()


@both(NO_LAST_LOOK)
def test_no_last_look(patch: str, base: World, folder: Path) -> None:
    """An edit while the sync runs: without the last look it succeeds, and L is not what it says."""
    scene = everything(base, folder)
    client_without(scene, patch)

    def case() -> None:
        with scene.stopped("local-flushed", there=False) as (running, _):
            scene.who.write("input/mine.csv", b"an edit in the last moment")
        ended = running.end()
        assert ended.status == 15, ended
        assert scene.world.remote().check().records == scene.before.records

    noticed(patch, case)


@both(NO_JOURNAL)
def test_no_journal(patch: str, base: World, folder: Path) -> None:
    """The client dies once the server has decided: nobody brings L forward."""
    scene = everything(base, folder)
    client_without(scene, patch)

    def case() -> None:
        running = scene.start("sync", "--json", here="commit-sent=hang:60")
        # Once the records are one more, the agent has decided, applied and published.
        records = scene.world.repository / ".dsg" / "records"
        until(lambda: len(list(records.iterdir())) > len(scene.before.records), "the decision")
        until(lambda: not (records.parent / "lock.holder").exists(), "the agent's end")
        running.process.kill()
        running.end()
        assert scene.settle("recover", "--json").status == 0
        assert scene.verdict() == "after"

    noticed(patch, case)


@both(DECIDED_TOO_EARLY)
def test_decided_before_the_server(patch: str, base: World, folder: Path) -> None:
    """The agent dies before its decision: L must not go ahead of it."""
    scene = everything(base, folder)
    client_without(scene, patch)

    def case() -> None:
        ended = scene.run("sync", "--json", there="remote-checked=kill")
        assert ended.status == 6, ended
        assert scene.settle("recover", "--json").status == 0
        assert scene.verdict() == "before"

    noticed(patch, case)


@both(NO_CHAIN)
def test_no_chain_check(patch: str, line: Line, base: World, folder: Path) -> None:
    """The repository was restored from an older copy: what came since would be deleted here."""
    scene = everything(base, folder)
    backup = folder / "backup"
    shutil.copytree(scene.world.repository, backup, symlinks=True)
    scene.who.must("sync")
    shutil.rmtree(scene.world.repository)
    shutil.copytree(backup, scene.world.repository, symlinks=True)

    def case() -> None:
        ended = scene.who.dsg("sync", "--json", variables=agent_without(scene, line, patch))
        assert ended.status == 8, ended
        assert scene.who.local() == scene.after

    noticed(patch, case)


@both(NO_LOCK)
def test_recovery_without_the_lock(patch: str, line: Line, base: World, folder: Path) -> None:
    """Another's staging is another's life: bob's agent must not clear away what ann's works on."""
    scene = everything(base, folder)
    bob = scene.world.clients["bob"]
    bob.write("input/of bob", b"x")

    def case() -> None:
        with scene.stopped("uploaded", there=True) as (running, _):
            refused = bob.dsg("sync", "--json", variables=agent_without(scene, line, patch))
        ended = running.end()
        assert refused.status == 5, refused
        assert ended.status == 0, ended
        assert scene.verdict() == "after"

    noticed(patch, case)


@both(NO_DIGESTS)
def test_no_digests(patch: str, line: Line, base: World, folder: Path) -> None:
    """An agent that changes a bit of every file that it sends."""
    scene = everything(base, folder)
    client_without(scene, patch)

    def case() -> None:
        ended = scene.who.dsg("sync", "--json", variables=agent_without(scene, line, LYING))
        assert ended.status == 8, ended
        assert scene.untouched_here()
        assert scene.settle("sync", "--json").status == 0
        assert scene.verdict() == "after"

    noticed(patch, case)

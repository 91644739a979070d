"""A world for end-to-end tests: a real sshd, people with machines of their own, one repository.

    world = World(people, folder)          # the fixture ``world`` makes one
    ann = world.init("ann")                # `dsg init data-host:/…`, in ann's own folder
    ann.write("input/x.csv", b"1,2\\n")
    assert ann.sync().status == 0
    bob = world.clone("bob")

Everybody runs the real ``dsg`` of this checkout as a process, with an own
HOME, keys, ``~/.ssh/config`` and name. L, C and R are read by
:mod:`tests.e2e.oracle`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from attrs import define, frozen

from tests.e2e.oracle import Cache, File, Repository, Tree, Version, read_cache, read_repository, read_tree
from tests.hosts.sshd import REPOSITORY, SshClient, SshHost

__all__ = ["Client", "Ended", "People", "Running", "World"]

LIMIT = 120.0  # seconds that any one command may take
LAUNCHER = """\
import sys
sys.path.insert(0, {checkout!r})
sys.argv[0] = "dsg"
from dsg_client.cli.start import main
main()
"""


@frozen
class Ended:
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What ``--json`` printed."""
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"exit status {self.status}\n{self.out}{self.err}"


@define
class Running:
    """A command that runs; :meth:`end` waits for it."""

    process: subprocess.Popen[str]
    ended: Ended | None = None

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait for the end; a command that takes longer, in seconds, is killed, and fails the test."""
        if self.ended is None:
            self.ended = self._wait(limit)
        return self.ended

    def _wait(self, limit: float) -> Ended:
        try:
            out, err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"{self.process.args!r} did not end in {limit:.0f} s\n{out}{err}") from None
        return Ended(self.process.returncode, out, err)


class People:
    """Who can sign in to a host: one machine each, for all worlds of a test run."""

    def __init__(self, host: SshHost) -> None:
        self.host = host
        self._known: dict[str, SshClient] = {}
        self.program = host.folder / "dsg.py"
        self.program.write_text(LAUNCHER.format(checkout=str(REPOSITORY)))

    def machine(self, name: str) -> SshClient:
        """The machine of ``name``, set up at first use."""
        if name not in self._known:
            self._known[name] = self.host.client(name)
        return self._known[name]


class World:
    """One repository on the server and the working folders of those who sync with it."""

    def __init__(self, people: People, folder: Path) -> None:
        self.people = people
        self.folder = folder
        self.repository = folder / "server" / "repo"
        self.repository.parent.mkdir(parents=True)
        self.clients: dict[str, Client] = {}
        self.origin: World | None = None  # what this one is a copy of

    @property
    def address(self) -> str:
        """What people type for the repository."""
        return f"data-host:{self.repository}"

    def client(self, name: str, *, working: str | None = None) -> Client:
        """A person with an empty folder; ``working`` is the folder's name when it is not the person's."""
        folder = self.folder / (working or name)
        folder.mkdir()
        client = Client(name, folder, self.people.machine(name), self.people.program)
        self.clients[working or name] = client
        return client

    def init(self, name: str, *options: str) -> Client:
        """A person who makes the repository."""
        client = self.client(name)
        client.must("init", self.address, *options)
        return client

    def clone(self, name: str, *, working: str | None = None) -> Client:
        """A person who clones it."""
        client = self.client(name, working=working)
        client.must("clone", self.address, ".")
        return client

    def copy(self, folder: Path) -> Self:
        """This world once more, as it is now, in another folder: much quicker than making it again."""
        copy = type(self)(self.people, folder)
        copy.origin = self
        self.copy_repository(copy)
        for key, client in self.clients.items():
            shutil.copytree(client.folder, folder / key, symlinks=True)
            settings = folder / key / ".dsgconfig.yml"
            settings.write_text(settings.read_text().replace(self.address, copy.address))
            copy.clients[key] = Client(client.name, folder / key, client.machine, client.program)
            copy.clients[key].variables = dict(client.variables)
        return copy

    def copy_repository(self, copy: Self) -> None:
        """Make the repository of ``copy`` like this one."""
        shutil.copytree(self.repository, copy.repository, symlinks=True)

    def remote(self) -> Repository:
        """R, read from the server's disk."""
        return read_repository(self.repository)


class Client:
    """One person's working folder."""

    def __init__(self, name: str, folder: Path, machine: SshClient, program: Path) -> None:
        self.name = name
        self.folder = folder
        self.machine = machine
        self.program = program
        self.variables = {"DSG_USER_NAME": name, "DSG_USER_ID": f"{name}@lab.example"}

    # What this person types

    def start(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Running:
        """Start ``dsg ARGUMENTS`` in the working folder."""
        return Running(
            subprocess.Popen(
                [sys.executable, str(self.program), *arguments],
                cwd=self.folder,
                env=self.machine.environment | self.variables | dict(variables or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def dsg(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Ended:
        """Run ``dsg ARGUMENTS`` to its end."""
        return self.start(*arguments, variables=variables).end()

    def must(self, *arguments: str) -> Ended:
        """Run ``dsg ARGUMENTS``, which must succeed."""
        ended = self.dsg(*arguments)
        assert ended.status == 0, f"dsg {' '.join(arguments)} of {self.name}: {ended}"
        return ended

    def sync(self, *options: str) -> Ended:
        """Run ``dsg sync --json``."""
        return self.dsg("sync", "--json", *options)

    # What this person does with files

    def path(self, path: str) -> Path:
        return self.folder / path

    def put(self, path: str, version: Version | None) -> None:
        """Make ``path`` this version, whatever was there; None removes it, and folders left empty."""
        target = self.folder / path
        self._clear(target)
        if version is None:
            for parent in target.parents:
                if parent == self.folder or not parent.is_dir() or any(parent.iterdir()):
                    break
                parent.rmdir()
            return
        for parent in reversed(target.relative_to(self.folder).parents):
            here = self.folder / parent
            if here.is_symlink() or (here.exists() and not here.is_dir()):
                here.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(version, File):
            target.write_bytes(version.content)
            target.chmod(0o755 if version.executable else 0o644)
        else:
            target.symlink_to(version.target)

    def write(self, path: str, content: bytes) -> None:
        """Write a file in place, as an editor does: its mode stays."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def put_all(self, tree: Mapping[str, Version | None]) -> None:
        """Make every path its version."""
        for path, version in tree.items():
            if version is None:
                self.put(path, None)
        for path, version in tree.items():
            if version is not None:
                self.put(path, version)

    @staticmethod
    def _clear(target: Path) -> None:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            try:
                target.unlink()
            except (FileNotFoundError, NotADirectoryError):
                pass

    # What is there

    def local(self) -> Tree:
        """L, read from this disk."""
        return read_tree(self.folder)

    def cache(self) -> Cache:
        """C."""
        return read_cache(self.folder)

    def replaced(self) -> Tree:
        """What syncs moved to ``.dsg/replaced``, by the path that it had."""
        found: Tree = {}
        for transaction in sorted((self.folder / ".dsg" / "replaced").glob("*")):
            found |= read_tree(transaction)
        return found

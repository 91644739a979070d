"""Where the demo plays: persons with homes of their own, and every command shown before it runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, field

from tests.demo.server import Server
from tests.trees import first_difference

__all__ = ["DemoError", "Person", "Stage"]


class DemoError(Exception):
    """A command ended otherwise than the demo tells."""


@define
class Stage:
    """The demo's folder, and what is shown on the terminal."""

    folder: Path
    persons: dict[str, Person] = field(factory=dict)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def title(self, text: str) -> None:
        bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
        self.say(f"\n{bold}== {text}{plain}")

    def command(self, who: str, argv: Sequence[str]) -> None:
        """Show a command that is about to run."""
        bold, plain = ("\x1b[36m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
        self.say(f"{bold}{who}$ {shlex.join(argv)}{plain}")

    def person(self, name: str) -> Person:
        if name not in self.persons:
            self.persons[name] = Person(name, self)
        return self.persons[name]

    def expect_equal(self, left: Path, right: Path) -> None:
        """DemoError unless both folders hold the same."""
        difference = first_difference(left, right)
        if difference:
            raise DemoError(difference)


@define
class Person:
    """Someone with a machine: a home folder, SSH keys and settings, and one project."""

    name: str
    stage: Stage

    @property
    def home(self) -> Path:
        return self.stage.folder / self.name

    @property
    def project(self) -> Path:
        return self.home / "atlas"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the account that runs the demo but its PATH and language."""
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TERM", "TZ") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "DSG_USER_NAME": self.name.capitalize(),
            "DSG_USER_ID": f"{self.name}@lab.example",
        }

    def settle_in(self, server: Server) -> None:
        """Write ``~/.ssh/config``: the server is called ``lab``."""
        config = self.home / ".ssh" / "config"
        config.write_text(
            f"Host lab\n"
            f"  HostName 127.0.0.1\n"
            f"  Port {server.port}\n"
            f"  User {server.user}\n"
            f'  IdentityFile "{self.home / ".ssh" / "id_ed25519"}"\n'
            f"  IdentitiesOnly yes\n"
        )
        config.chmod(0o600)

    def run(self, *argv: str, cwd: Path | None = None, expect: int = 0) -> None:
        """Show a command and run it in the project's folder; DemoError unless it exits with ``expect``."""
        place = cwd or self.project
        folder = "~" if place == self.home else f"~/{place.relative_to(self.home)}"
        self.stage.command(f"{self.name}:{folder}", argv)
        done = subprocess.run(
            argv, cwd=place, env=self.environment, stdin=subprocess.DEVNULL, check=False, timeout=300
        )
        if expect:
            self.stage.say(f"(exit status {done.returncode})")
        if done.returncode != expect:
            raise DemoError(f"{shlex.join(argv)} exited with {done.returncode}, expected {expect}")

    def edit(self, path: str, change: Callable[[bytes], bytes]) -> None:
        """Change a file of the project as an editor would."""
        self.stage.say(f"({self.name.capitalize()} edits {path})")
        target = self.project / path
        target.write_bytes(change(target.read_bytes()))

    def write(self, path: str, text: str) -> None:
        """Write a new file of the project."""
        self.stage.say(f"({self.name.capitalize()} writes {path})")
        target = self.project / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

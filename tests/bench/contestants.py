"""Who is measured: dsg, and rsync with and without ``--fsync``, over one sshd."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from attrs import frozen

from tests.bench.stores import Store

__all__ = ["Contestant", "Dsg", "Place", "Rsync"]


@frozen
class Place:
    """Where a contestant works: its own source, place in the server's store and clone, and how it gets there.

    ``host`` is a name of ``ssh_config``: the server itself, or the proxy
    before it.
    """

    source: Path
    store: Store
    name: str
    clone: Path
    host: str
    ssh_config: Path
    env: Mapping[str, str]


class Contestant(Protocol):
    """How one tool does each step; every command is the tool's own, as a user would type it."""

    @property
    def name(self) -> str: ...

    def prepare(self, place: Place) -> None:
        """Bring ``place`` to just before a first upload: an empty remote, nothing remembered."""

    def upload(self, place: Place) -> list[str]:
        """The command that brings the source to the server; run in ``place.source``."""

    def clone(self, place: Place) -> list[str]:
        """The command that makes ``place.clone``; run in the folder above it."""

    def arrived(self, place: Place) -> Path:
        """The folder on the server in which what was uploaded is seen."""


@frozen
class Rsync:
    """``rsync -a --delete``, and with ``--fsync`` where asked."""

    name: str
    options: tuple[str, ...]

    def _start(self, place: Place) -> list[str]:
        # ssh finds its settings by the account's home folder, not by $HOME.
        return [
            "rsync",
            "-a",
            "--delete",
            *self.options,
            "-e",
            f"ssh -F {shlex.quote(str(place.ssh_config))}",
        ]

    def prepare(self, place: Place) -> None:
        place.store.make_folder(place.name)

    def upload(self, place: Place) -> list[str]:
        return [*self._start(place), "./", f"{place.host}:{self.arrived(place)}/"]

    def clone(self, place: Place) -> list[str]:
        return [*self._start(place), f"{place.host}:{self.arrived(place)}/", f"{place.clone}/"]

    def arrived(self, place: Place) -> Path:
        return place.store.folder(place.name)


@frozen
class Dsg:
    """``dsg sync`` and ``dsg clone``. ``dsg init``, once in a repository's life, is not measured."""

    name: str
    command: Path

    def prepare(self, place: Place) -> None:
        place.store.clear(place.name)
        shutil.rmtree(place.source / ".dsg", ignore_errors=True)
        (place.source / ".dsgconfig.yml").unlink(missing_ok=True)
        made = subprocess.run(
            [self.command, "init", "--quiet", f"{place.host}:{place.store.address(place.name)}"],
            cwd=place.source,
            env=place.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"dsg init exited with {made.returncode}:\n{made.stdout}{made.stderr}")

    def upload(self, place: Place) -> list[str]:
        return [str(self.command), "sync", "--quiet"]

    def clone(self, place: Place) -> list[str]:
        address = f"{place.host}:{place.store.address(place.name)}"
        return [str(self.command), "clone", "--quiet", address, str(place.clone)]

    def arrived(self, place: Place) -> Path:
        return place.store.live(place.name)

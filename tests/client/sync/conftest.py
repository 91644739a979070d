"""Working folders and a repository on this machine, used from inside the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dsg_client.sync.clone import clone
from dsg_client.sync.events import ignore
from dsg_client.sync.setup import init
from dsg_client.sync.site import Site, open_site
from dsg_client.sync.target import clone_target


class Ground:
    """A repository at ``remote`` and people's folders beside it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.remote = folder / "server" / "repo"
        self.remote.parent.mkdir()
        self._patch = patch
        self._sites: list[Site] = []

    async def init(self, name: str) -> Site:
        """A person who makes the repository."""
        root = self.folder / name
        root.mkdir()
        self._patch.chdir(root)
        await init(
            str(self.remote),
            name="project",
            data_dirs=(),
            ignore=(),
            group="",
            algorithm="sha256",
            transport=None,
            agent_command=None,
            accept_new_host_key=False,
            emit=ignore,
        )
        return self.site(name)

    async def clone(self, name: str) -> Site:
        """A person who clones it."""
        await clone(clone_target(str(self.remote), str(self.folder / name)), ignore)
        return self.site(name)

    def site(self, name: str) -> Site:
        """A person's working folder, opened anew."""
        site = open_site(self.folder / name)
        self._sites.append(site)
        return site

    def close(self) -> None:
        for site in self._sites:
            site.workdir.close()


@pytest.fixture
async def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ground]:
    """No repository and nobody yet."""
    made = Ground(tmp_path, monkeypatch)
    yield made
    made.close()

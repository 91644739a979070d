from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.storage.ground import Ground


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """A new, empty repository."""
    made = Ground(tmp_path / "repo")
    made.init()
    return made

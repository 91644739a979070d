"""Renaming to NFC: everything that can be cured is, and nothing is ever replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsg_client.local.normalize import normalize_names, plan_normalization
from dsg_client.local.scan import Scan
from dsg_client.local.scope import Scope
from dsg_client.local.workdir import Workdir
from protocol.errors import LocalStorageError, PathsRefusedError
from protocol.paths import PathProblem

NFD, NFC = "e\u0301", "\u00e9"


def problems(root: Path) -> list[PathProblem]:
    scan = Scan(root, Scope())
    try:
        list(scan)
    except PathsRefusedError:
        pass
    return scan.findings.refused


def test_names_are_cured_at_every_depth(workdir: Workdir) -> None:
    folder = workdir.root / f"code-{NFD}" / "input" / NFD / f"b{NFD}"
    folder.mkdir(parents=True)
    (folder / f"{NFD}.csv").write_bytes(b"deep")
    (folder.parent / "plain").write_bytes(b"plain")
    (workdir.root / "input" / f"x{NFD}").write_bytes(b"top")
    planned = plan_normalization(workdir.tree, problems(workdir.root))
    assert planned.blocked == ()
    assert len(planned.renames) == 5
    normalize_names(workdir.tree, planned.renames)
    assert problems(workdir.root) == []
    assert (workdir.root / f"code-{NFC}" / "input" / NFC / f"b{NFC}" / f"{NFC}.csv").read_bytes() == b"deep"
    assert (workdir.root / "input" / f"x{NFC}").read_bytes() == b"top"


def test_a_taken_name_blocks(workdir: Workdir) -> None:
    for name, content in ((NFD, b"decomposed"), (NFC, b"composed")):
        (workdir.root / "input" / name).write_bytes(content)
    (workdir.root / "input" / "bad\n").touch()
    (workdir.root / "input" / f"free{NFD}").touch()
    planned = plan_normalization(workdir.tree, problems(workdir.root))
    assert [r.new for r in planned.renames] == [f"input/free{NFC}"]
    assert {f"input/{NFD}", "input/bad\n"} <= {p.path for p in planned.blocked}
    normalize_names(workdir.tree, planned.renames)
    assert (workdir.root / "input" / NFD).read_bytes() == b"decomposed"
    assert (workdir.root / "input" / NFC).read_bytes() == b"composed"


def test_two_names_that_would_become_one(workdir: Workdir) -> None:
    # Two spellings of one name, neither of them NFC: marks in either order.
    for name in ("a\u0323\u0307x", "a\u0307\u0323x"):
        (workdir.root / "input" / name).write_bytes(name.encode())
    planned = plan_normalization(workdir.tree, problems(workdir.root))
    assert len(planned.renames) == 1
    assert len({p.path for p in planned.blocked}) == 1
    normalize_names(workdir.tree, planned.renames)
    assert len(os.listdir(workdir.root / "input")) == 2


def test_a_name_taken_in_the_meantime_is_not_replaced(workdir: Workdir) -> None:
    (workdir.root / "input" / NFD).write_bytes(b"mine")
    planned = plan_normalization(workdir.tree, problems(workdir.root))
    (workdir.root / "input" / NFC).write_bytes(b"just made")
    with pytest.raises(LocalStorageError, match="cannot be renamed"):
        normalize_names(workdir.tree, planned.renames)
    assert (workdir.root / "input" / NFC).read_bytes() == b"just made"
    assert (workdir.root / "input" / NFD).read_bytes() == b"mine"

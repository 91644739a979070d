"""What is kept by its content's name is kept once, and the older copy is the one that stays."""

from __future__ import annotations

from pathlib import Path

from protocol.tree.change import (
    Action,
    Expected,
    Journal,
    Staging,
    Unexpected,
    apply,
    decide,
    finish,
    read_journal,
    write_prepared,
)
from protocol.tree.posix import PosixTree


def test_a_file_that_rotted_does_not_replace_the_good_copy_in_history(tmp_path: Path) -> None:
    (tmp_path / ".dsg").mkdir()
    keep = ".dsg/history/objects/ab/abcd"
    (tmp_path / keep).parent.mkdir(parents=True)
    (tmp_path / keep).write_bytes(b"good")
    (tmp_path / "data").write_bytes(b"rot!")
    tree = PosixTree.open_tree(str(tmp_path))
    staging = Staging(tree, "tx1")
    staging.open()
    written = staging.create(0)
    written.write(b"new")
    staged = staging.staged(0, written.finish(executable=False, mtime_ns=None))
    action = Action("data", Expected.of(tree.stat("data")), staged, keep)
    top = tree.stat("")
    write_prepared(tree, Journal("tx1", "here", (top.device, top.inode), {}, [action]))
    decide(tree)
    found = read_journal(tree)
    assert found is not None
    apply(tree, found[1], Unexpected.RESCUE)
    finish(tree, found[1], Unexpected.RESCUE)
    assert (tmp_path / keep).read_bytes() == b"good"
    assert (tmp_path / "data").read_bytes() == b"new"
    assert not list((tmp_path / ".dsg" / "staging").iterdir())
    tree.close()

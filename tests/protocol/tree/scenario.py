"""One transaction with every kind of change in it, and what the tree must look like before and after."""

from __future__ import annotations

from typing import Any

from protocol.paths import sort_key
from protocol.tree.change import (
    Action,
    Applied,
    Expected,
    Journal,
    JournalState,
    Staged,
    Staging,
    Unexpected,
    apply,
    decide,
    discard_prepared,
    finish,
    read_journal,
    sweep,
    write_prepared,
)
from protocol.tree.fs import Kind

TXID = "tx1"
# path -> (content, executable) of a file, or a link's target
Content = tuple[bytes, bool] | str

BEFORE: dict[str, Content] = {
    "untouched.csv": (b"untouched", False),
    "changed.csv": (b"old contents", False),
    "deleted.csv": (b"deleted", False),
    "going/one.csv": (b"same bytes", False),
    "going/deeper/two.csv": (b"same bytes", False),
    "file-to-link": (b"was a file", False),
    "link-to-file": "untouched.csv",
    "link-retargeted": "untouched.csv",
    "link-deleted": "deleted.csv",
    "run.sh": (b"#!/bin/sh\n", False),
    "file-to-folder": (b"was a file here", False),
    "folder-to-file/a": (b"a", False),
    "folder-to-file/b/c": (b"c", True),
    "emptied.csv": (b"will be empty", False),
    "choice.csv": (b"mine, no snapshot has it", False),
}
AFTER: dict[str, Content] = {
    "untouched.csv": (b"untouched", False),
    "changed.csv": (b"new contents", False),
    "file-to-link": "untouched.csv",
    "link-to-file": (b"was a link", False),
    "link-retargeted": "changed.csv",
    "run.sh": (b"#!/bin/sh\n", True),
    "file-to-folder/inside/x.csv": (b"inside", False),
    "folder-to-file": (b"is a file", False),
    "emptied.csv": (b"", False),
    "choice.csv": (b"theirs", False),
    "created/deep/empty.csv": (b"", False),
    "created/deep/full.csv": (b"full", False),
    "\U0001f600 é 'quoted'\n.csv": (b"odd name", False),
}


def write(tree: Any, path: str, content: Content) -> None:
    """Make a file or link, and its folders."""
    tree.make_folders(path.rpartition("/")[0])
    if isinstance(content, str):
        tree.symlink(content, path)
        return
    made = tree.create(path)
    made.write(content[0])
    made.finish(executable=content[1], mtime_ns=None)


def build(tree: Any, contents: dict[str, Content] = BEFORE) -> None:
    """Lay the tree out, durable."""
    tree.make_folders(".dsg/tmp")
    for path, content in contents.items():
        write(tree, path, content)
    tree.flush()


def contents(tree: Any, folder: str = "") -> dict[str, Content]:
    """Everything below ``folder`` but ``.dsg``; an empty folder appears as ``path/``."""
    found: dict[str, Content] = {}
    listing = list(tree.scan(folder))
    for name, stat in listing:
        path = f"{folder}/{name}" if folder else name
        if path == ".dsg":
            continue
        if stat.kind is Kind.FOLDER:
            found.update(contents(tree, path))
        elif stat.kind is Kind.LINK:
            found[path] = tree.readlink(path)
        else:
            found[path] = (tree.read_bytes(path, 1 << 20), stat.executable)
    if folder and not listing:
        found[f"{folder}/"] = ""
    return found


def stage(tree: Any, unexpected: Unexpected = Unexpected.KEEP) -> Journal:
    """Stage what turns BEFORE into AFTER."""
    staging = Staging(tree, TXID)
    staging.open()
    actions = []
    for number, path in enumerate(sorted({*BEFORE, *AFTER}, key=sort_key)):
        old, new = BEFORE.get(path), AFTER.get(path)
        if old == new:
            continue
        before = keep = None
        if old is not None:
            before = Expected.of(tree.stat(path), old if isinstance(old, str) else "")
            keep = f".dsg/trash/{TXID}/{number}"
            if unexpected is Unexpected.RESCUE and isinstance(old, tuple):
                keep = f".dsg/history/objects/{old[0].hex()[:2]}/{old[0].hex()}"
            elif path == "choice.csv":
                keep = f".dsg/replaced/{TXID}/{path}"
        after = None if new is None else _staged(tree, staging, number, path, old, new, before)
        actions.append(Action(path, before, after, keep))
    stat = tree.stat("")
    return Journal(TXID, "this machine", (stat.device, stat.inode), {"seq": 7, "who": ["ann", "é"]}, actions)


def _staged(
    tree: Any,
    staging: Staging,
    number: int,
    path: str,
    old: Content | None,
    new: Content,
    before: Expected | None,
) -> Staged:
    if isinstance(new, str):
        return staging.link(number, new)
    if isinstance(old, tuple) and old[0] == new[0]:
        return staging.copy(number, path, before, executable=new[1], mtime_ns=10**18 + number)
    made = staging.create(number)
    if new[0]:
        made.write(new[0])
    return staging.staged(number, made.finish(executable=new[1], mtime_ns=10**18 + number))


def commit(tree: Any, unexpected: Unexpected, progress: list[str]) -> Applied:
    """The whole transaction; ``progress`` tells what has returned."""
    journal = stage(tree, unexpected)
    progress.append("staged")
    tree.flush()
    write_prepared(tree, journal)
    progress.append("prepared")
    decide(tree)
    progress.append("decided")
    applied = apply(tree, journal, unexpected)
    progress.append("applied")
    finish(tree, journal, unexpected)
    progress.append("finished")
    return applied


def recover(tree: Any, unexpected: Unexpected) -> Applied | None:
    """What the next holder of the lock does."""
    applied = None
    found = read_journal(tree)
    if found is not None:
        state, journal = found
        if state is JournalState.PREPARED:
            discard_prepared(tree)
        else:
            applied = apply(tree, journal, unexpected)
            finish(tree, journal, unexpected)
    sweep(tree)
    return applied


def problems(tree: Any, unexpected: Unexpected, progress: list[str]) -> list[str]:
    """The oracle: all before or all after, whichever was promised; nothing lost; nothing left behind."""
    found = []
    now = contents(tree)
    if now not in (BEFORE, AFTER):
        odd = {p for p in {*now, *BEFORE, *AFTER} if not now.get(p) == BEFORE.get(p) == AFTER.get(p)}
        found.append(f"a mixed tree: { {p: now.get(p) for p in sorted(odd)} }")
    elif "decided" in progress and now != AFTER:
        found.append("all before, although the decision was durable")
    elif "prepared" not in progress and now != BEFORE:
        found.append("all after, although nothing was decided")
    for folder in (".dsg/staging", ".dsg/trash", ".dsg/tmp"):
        left = [name for name, _ in tree.scan(folder)] if _exists(tree, folder) else []
        if left:
            found.append(f"{folder} still holds {left}")
    if {"journal.prepared", "journal.decided"} & tree.names(".dsg"):
        found.append("a journal is left")
    if now == AFTER:
        if unexpected is Unexpected.RESCUE:
            for path, old in BEFORE.items():
                if isinstance(old, tuple) and old != AFTER.get(path):
                    name = f".dsg/history/objects/{old[0].hex()[:2]}/{old[0].hex()}"
                    if not _exists(tree, name) or tree.read_bytes(name, 1 << 20) != old[0]:
                        found.append(f"history has lost the old {path}")
        else:
            name = f".dsg/replaced/{TXID}/choice.csv"
            if not _exists(tree, name) or (tree.read_bytes(name, 1 << 20), False) != BEFORE["choice.csv"]:
                found.append("the replaced local file was lost")
    return found


def _exists(tree: Any, path: str) -> bool:
    try:
        tree.stat(path)
    except FileNotFoundError:
        return False
    return True

"""Random edits of working folders, as people make them: to the files on disk and to a dictionary alike."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from attrs import frozen

from tests.e2e.model import clashes
from tests.e2e.oracle import File, Link, Tree, Version
from tests.e2e.world import Client

__all__ = ["KINDS", "Step", "edit", "grow", "paths_for"]

ANCHOR = "input/anchor"
NAMES = [
    *("a", "b.csv", "c.csv", "B.csv", "raw", "Raw", "out", "2024"),
    *("-rf", "--", " x y ", "it's", 'say "hi"', "$HOME;*?", ".hidden", "back\\slash", "%s{}", "a:b"),
    *("é", "\U0001f600", "名前", "ü" * 127 + "x"),
]
TARGETS = ["anchor", "a", "raw/b.csv", "nowhere", "./a", "é/\U0001f600"]
KINDS = ("write", "rewrite", "touch up", "flip", "link", "retype", "delete", "delete folder", "move", "case")


@frozen
class Step:
    """One edit: what becomes of which paths (None: they go)."""

    kind: str
    changes: Mapping[str, Version | None]

    def __str__(self) -> str:
        return f"{self.kind}: " + ", ".join(f"{path!r} {_shown(v)}" for path, v in self.changes.items())


def _shown(version: Version | None) -> str:
    if isinstance(version, File):
        return f"= {version.content[:12]!r}({len(version.content)}){'x' * version.executable}"
    return "goes" if version is None else f"-> {version.target!r}"


def paths_for(rng: random.Random, count: int) -> list[str]:
    """The paths that a script is about: few enough that several people edit the same."""
    found: set[str] = set()
    while len(found) < count:
        names = [rng.choice(NAMES) for _ in range(rng.choice([1, 1, 2, 2, 3]))]
        found.add("input/" + "/".join(names))
    return sorted(found)


def any_file(rng: random.Random) -> File:
    size = rng.choice([0, 1, 5, 5, 5, 5, 4000, 150_000])
    return File(rng.choice([b"1", b"2", b"3", b"4"]) * size, rng.random() < 0.25)


def any_version(rng: random.Random) -> Version:
    return Link(rng.choice(TARGETS)) if rng.random() < 0.25 else any_file(rng)


def grow(rng: random.Random, paths: list[str], least: int) -> Tree:
    """A tree of at least ``least`` entries, an anchor among them, for which ``paths`` have room."""
    tree: Tree = {ANCHOR: File(b"nobody touches this\n")}
    for path in rng.sample(paths, len(paths)):
        if rng.random() < 0.7 or len(tree) < least:
            tree = _with(tree, {path: any_version(rng)})
    number = 0
    while len(tree) < least:
        tree[f"input/rest/{number}/x"] = any_version(rng)
        number += 1
    return tree


def edit(rng: random.Random, client: Client, tree: Tree, paths: list[str]) -> tuple[Tree, Step]:
    """Make one random edit in ``client``'s folder, which holds ``tree``; the new tree, and what was done."""
    while True:
        kind = rng.choice(KINDS)
        changes = _draw(rng, kind, tree, paths)
        if changes:
            break
    new = _with(tree, changes)
    changed = {path: new.get(path) for path in {*tree, *new} if tree.get(path) != new.get(path)}
    if kind == "rewrite":
        for path, version in changes.items():
            assert isinstance(version, File)
            client.write(path, version.content)
    elif kind == "touch up":
        for path, version in changes.items():
            assert isinstance(version, File)
            before = client.path(path).stat()
            client.write(path, version.content)
            os.utime(client.path(path), ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        client.put_all(changed)
    return new, Step(kind, changed)


def _draw(rng: random.Random, kind: str, tree: Tree, paths: list[str]) -> dict[str, Version | None]:
    """The changes of one edit of this kind; empty when the tree has nothing for it."""
    own = [path for path in sorted(tree) if path != ANCHOR]
    # Half of the time at a path that others edit, too.
    near = [path for path in paths if path in tree] if rng.random() < 0.5 else own
    path = rng.choice(near or own or paths)
    files = [p for p in (near or own) if isinstance(tree[p], File)]
    file = rng.choice(files) if files else ""
    here = tree.get(file)
    if kind == "write":
        return {rng.choice(paths): any_file(rng)}
    if kind == "link":
        return {rng.choice(paths): Link(rng.choice(TARGETS))}
    if kind == "retype" and path in tree:
        if rng.random() < 0.5:
            return {path: None, f"{path}/{rng.choice(NAMES[:4])}": any_version(rng)}
        folder = path.rpartition("/")[0]
        into = folder if folder not in ("", "input") else path
        return {into: any_file(rng) if isinstance(tree[path], Link) else Link(rng.choice(TARGETS))}
    if kind == "delete" and path in tree:
        return {path: None}
    if kind == "delete folder":
        folder = path.rpartition("/")[0]
        return {p: None for p in own if p.startswith(f"{folder}/")} if folder not in ("", "input") else {}
    if kind == "move" and path in tree:
        return {path: None, rng.choice(paths): tree[path]}
    if kind == "case" and path in tree:
        other = path[:6] + path[6:].swapcase()
        return {path: None, other: tree[path]} if other.casefold() == path.casefold() != other else {}
    if isinstance(here, File):
        if kind == "rewrite":
            return {file: File(here.content + b"+", here.executable)}
        if kind == "flip":
            return {file: File(here.content, not here.executable)}
        if kind == "touch up" and here.content:
            return {file: File(b"5" * len(here.content), here.executable)}
    return {}


def _with(tree: Tree, changes: Mapping[str, Version | None]) -> Tree:
    """The tree after changes; what is in the way of a new path goes, as a person would have it."""
    new = {path: version for path, version in tree.items() if path not in changes}
    for path, version in changes.items():
        if version is None or ANCHOR in {p for pair in clashes([path, ANCHOR]) for p in pair}:
            continue
        for other in list(new):
            if clashes([path, other]):
                del new[other]
        new[path] = version
    return new

"""What the demo tells: two people, one data set, a server between them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

from tests.demo.stage import Stage

__all__ = ["tell"]


def tell(stage: Stage, dataset: Path) -> None:
    """Play it all. DemoError when a command does not end as the story says."""
    ada, ben = stage.person("ada"), stage.person("ben")
    remote = f"lab:{stage.folder / 'server' / 'atlas'}"
    there = stage.folder / "server" / "atlas"

    stage.title("Ada has a folder of real data: the public sample data of the Bokeh project")
    ada.run("mkdir", "-p", "atlas/input", "atlas/output", cwd=ada.home)
    ada.run("cp", "-r", f"{dataset}/.", "atlas/input/", cwd=ada.home)
    ada.run("du", "-sh", "input")

    stage.title("She makes a repository for it on the server, and looks before she sends")
    ada.run("dsg", "init", "--accept-new-host-key", remote)
    ada.run("dsg", "status")
    ada.run("dsg", "sync", "-m", "the sample data as published")
    ada.run("dsg", "sync")
    ada.run("dsg", "list-files", "-l", "input/movies.db", "input/iris.csv")

    stage.title("Ben takes a copy onto his own machine")
    ben.run("dsg", "clone", "--accept-new-host-key", remote, "atlas", cwd=ben.home)
    stage.expect_equal(ada.project / "input", ben.project / "input")

    stage.title("Both work at the same time, on different files")
    ada.edit("input/iris.csv", _append("7.9,3.8,6.4,2.0,virginica\n"))
    ada.write("output/largest-files.txt", _largest(ada.project / "input"))
    ben.edit("input/penguins.csv", _append("Adelie,Dream,41.5,18.5,201,4000,MALE\n"))
    ben.run("rm", "input/les_mis.json")
    ben.run("mv", "input/sprint.csv", "input/olympic-sprint.csv")
    ben.run("dsg", "sync", "-m", "one more penguin; sprint under its full name")
    ada.run("dsg", "status")
    ada.run("dsg", "sync", "-m", "one more iris, and the largest files")
    ben.run("dsg", "sync")
    stage.expect_equal(ada.project / "input", ben.project / "input")
    stage.expect_equal(ada.project / "output", ben.project / "output")
    ben.run("cat", "output/largest-files.txt")

    stage.title("Both change the same file: nothing moves until someone decides")
    ada.edit("input/elements.csv", _replace("Hydrogen", "Hydrogen (Ada)"))
    ben.edit("input/elements.csv", _replace("Hydrogen", "Hydrogen (Ben)"))
    ben.write("output/notes.txt", "Ben's notes wait with the rest: a sync is whole or not at all.\n")
    ada.run("dsg", "sync", "-m", "hydrogen, as Ada has it")
    ben.run("dsg", "sync", expect=3)
    ben.run("grep", "Hydrogen", "input/elements.csv")
    ben.run("dsg", "status", "--check", expect=3)
    stage.say("Ben takes the server's version; his own is kept beside it:")
    ben.run("dsg", "sync", "--prefer", "remote", "-m", "Ben's notes")
    ben.run("grep", "-r", "Hydrogen", "input/elements.csv", ".dsg/replaced")
    ada.run("dsg", "sync")

    stage.title("What happened, for everyone to see")
    ada.run("dsg", "log")
    ada.run("dsg", "status")
    for person in (ada, ben):
        for part in ("input", "output"):
            stage.expect_equal(person.project / part, there / part)
    stage.say("Both folders and the server hold the same bytes: compared file by file.")


def _append(text: str) -> Callable[[bytes], bytes]:
    return lambda old: old + text.encode()


def _replace(old_word: str, new_word: str) -> Callable[[bytes], bytes]:
    def change(old: bytes) -> bytes:
        new = old.replace(old_word.encode(), new_word.encode(), 1)
        assert new != old, f"{old_word} is not in the file"
        return new

    return change


def _largest(folder: Path) -> str:
    """A result made from the data: the largest files, packed ones by what they unpack to."""
    sizes = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                sizes.append((sum(len(block) for block in iter(lambda: file.read(1 << 20), b"")), path.name))
        elif path.is_file():
            sizes.append((path.stat().st_size, path.name))
    return "".join(f"{size:>12,} {name}\n" for size, name in sorted(sizes, reverse=True)[:5])

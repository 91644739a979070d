"""A ``zfs`` for the server's PATH that writes down each command, and kills the agent around one of them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import find_program

__all__ = ["ZfsWrapper", "forbidden"]

# Its parent is the agent itself: nothing stands between the two.
SCRIPT = """\
#!/bin/sh
read n < {folder}/count; n=$((n + 1)); echo $n > {folder}/count
echo "$*" >> {folder}/log
if [ -e {folder}/before-$n ]; then kill -9 $PPID; exit 1; fi
if [ -e {folder}/busy-$1 ]; then echo "cannot $1 '$2': dataset is busy" >&2; exit 1; fi
if [ -e {folder}/fails-$n ]; then cat {folder}/fails-$n >&2; exit 1; fi
{zfs} "$@"
status=$?
if [ -e {folder}/after-$n ] || [ -e {folder}/kill-$1 ]; then kill -9 $PPID; fi
if [ -e {folder}/lies-$n ]; then cat {folder}/lies-$n >&2; exit 1; fi
exit $status
"""


class ZfsWrapper:
    """The wrapper in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        program = folder / "bin" / "zfs"
        program.parent.mkdir()
        program.write_text(SCRIPT.format(folder=folder, zfs=find_program("zfs")))
        program.chmod(0o755)
        self.reset()

    @property
    def environment(self) -> dict[str, str]:
        """For the agent that is to use it."""
        return {"PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', os.defpath)}"}

    def reset(self, **points: tuple[int, str]) -> None:
        """Begin counting at 1. ``before``, ``after``: kill the agent around that command; ``fails``,
        ``lies``: it fails with this text, without or with having been carried out.
        """
        self.free()
        for old in self.folder.glob("*-*"):
            old.unlink()
        (self.folder / "count").write_text("0\n")
        (self.folder / "log").write_text("")
        for kind, (number, text) in points.items():
            (self.folder / f"{kind}-{number}").write_text(f"{text}\n")

    def busy(self, command: str) -> None:
        """Let every such command find its dataset busy from now on."""
        (self.folder / f"busy-{command}").touch()

    def kill_after(self, command: str) -> None:
        """Kill the agent after every such command from now on."""
        (self.folder / f"kill-{command}").touch()

    def free(self) -> None:
        """Nothing is busy any more."""
        for old in self.folder.glob("busy-*"):
            old.unlink()

    def commands(self) -> list[list[str]]:
        """The words of each command since the last reset."""
        return [line.split() for line in (self.folder / "log").read_text().splitlines()]


def forbidden(words: list[str], taking: str = "") -> bool:
    """Whether a command could destroy more than the one thing that it names, or does so by force.

    ``taking``: the dataset that is taken over as a repository: it may be
    renamed and unmounted, and neither it nor what it became may be destroyed.
    """
    flags = "".join(word for word in words[1:] if word.startswith("-"))
    if words[0] == "destroy":
        return (
            bool(flags) or "%" in words[-1] or "," in words[-1] or (bool(taking) and _is_taken(words, taking))
        )
    if words[0] == "rename" and taking:
        return len(words) != 3 or words[1] != taking or not words[2].endswith("/g0")
    if words[0] in ("unmount", "umount", "rollback", "rename", "upgrade"):
        return words[0] != "unmount" or bool(flags)
    return False


def _is_taken(words: list[str], taking: str) -> bool:
    dataset, _, snapshot = words[-1].partition("@")
    return dataset == taking or (dataset.endswith("/g0") and snapshot != "s0")

"""The entry point of ``dsg``: what an everyday command begins ahead is begun before click is imported.

That import takes a tenth of a small sync. Only command lines that leave no
doubt are read here; click reads all of them, and has the words for what is
wrong with one.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

from dsg_client.sync.ahead import Ahead, ahead_of

__all__ = ["EVERYDAY", "main"]

_COMMON = frozenset({"--json", "-q", "--quiet", "-v", "--verbose", "--accept-new-host-key"})
# Command -> who takes the folder's lock; options without, and with a value, that change nothing about what
# is begun ahead.
EVERYDAY = {
    "status": (None, _COMMON | {"--check"}, frozenset[str]()),
    "sync": (
        "dsg sync",
        _COMMON | {"--allow-mass-delete"},
        frozenset({"-m", "--message", "--retries", "--prefer"}),
    ),
}


def main() -> None:
    """Run one command and exit with its status."""
    _open_standard_streams()
    with _begin_ahead(sys.argv[1:]) as ahead:
        from dsg_client.cli.main import main as run

        run(ahead)


def _begin_ahead(words: list[str]) -> Ahead | nullcontext[None]:
    name, *options = words or [""]
    if name in EVERYDAY:
        command, flags, valued = EVERYDAY[name]
        if _are_plain(options, flags, valued):
            return ahead_of(command)
    return nullcontext()


def _are_plain(options: list[str], flags: frozenset[str], valued: frozenset[str]) -> bool:
    words = iter(options)
    for word in words:
        if word in valued:
            next(words, None)
        elif word not in flags:
            return False
    return True


def _open_standard_streams() -> None:
    """Open those that whoever started us had closed, on nothing.

    Else the next file or socket would get the number 1 or 2, to be written to by whatever prints there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this
            setattr(sys, name, open(number, mode))  # noqa: SIM115  for as long as we live


if __name__ == "__main__":
    main()

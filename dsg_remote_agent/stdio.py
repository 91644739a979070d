"""The protocol's two descriptors, taken away from everything else in the process."""

from __future__ import annotations

import os

from protocol.preamble import Preamble, have_zstd, preamble_bytes
from protocol.version import VERSION

__all__ = ["announce", "claim"]


def claim() -> tuple[int, int]:
    """Take descriptors 0 and 1 for the protocol; returns (input, output), both close-on-exec.

    Afterwards 0 reads from /dev/null and 1 writes to stderr, so that neither a
    stray ``print`` nor a child process can write into the protocol or eat it.
    """
    source = os.dup(0)
    sink = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        os.dup2(2, 1)
    except OSError:  # started without a stderr
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        if nowhere > 2:
            os.close(nowhere)
    return source, sink


def announce(sink: int) -> Preamble:
    """Write the preamble: the first bytes that a client looks for. Returns what it says."""
    preamble = Preamble(dsg=VERSION, features=frozenset(["zstd"] if have_zstd() else ()))
    os.write(sink, preamble_bytes(preamble))
    return preamble

"""The command ``dsg-remote-agent``: serves one client on its standard input and output."""

from __future__ import annotations

import gc
import signal
import sys

__all__ = ["main"]


def _check_protocol() -> None:
    """PyPI has an unrelated project that installs the same top-level name as our package."""
    try:
        from protocol import SENTINEL
    except ImportError:
        SENTINEL = ""  # noqa: N806  the name it has there
    if SENTINEL != "dsg-sync protocol":
        sys.stderr.write(
            "dsg-remote-agent: another package named 'protocol' stands in the way of DSG's own.\n"
            "Remove it (python3 -m pip uninstall protocol) and reinstall dsg-sync, or install dsg-sync "
            "in a virtual environment of its own.\n"
        )
        raise SystemExit(7)


def main(argv: list[str] | None = None) -> int:
    """Run the agent until its client is gone; the process's exit status."""
    # Hardly anything here forms cycles, and at the usual threshold (700) the search for them is a tenth
    # of the start.
    gc.set_threshold(100_000, 20, 100)
    _check_protocol()
    from dsg_remote_agent.options import read_options

    options = read_options(argv)
    from dsg_remote_agent.stdio import announce, claim

    # Ctrl-C in the terminal of a client on this machine is the client's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = claim()
    preamble = announce(sink)
    # Only now what takes longer to import: the client reads the preamble meanwhile.
    from dsg_remote_agent.serve import serve

    return serve(source, sink, preamble, options)


if __name__ == "__main__":
    raise SystemExit(main())

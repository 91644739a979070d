"""The agent's command line and environment, read once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from protocol.value import Value
from protocol.version import VERSION

__all__ = ["Options", "read_options"]

_ABOUT = """
Serves one DSG client on standard input and output. Usually started by the
client over SSH, or pinned to a key in ~/.ssh/authorized_keys:

  command="dsg-remote-agent --root /srv/dsg --role write",restrict ssh-ed25519 ...

What is given here cannot be widened by a client.
"""


class Options(Value):
    """What the agent was started with."""

    roots: tuple[str, ...] = ()
    role: str = "admin"
    log_file: str | None = None
    log_level: str = "warning"
    failpoints: str = ""


def read_options(argv: Sequence[str] | None) -> Options:
    """The options; exits with status 2 and a message when they are wrong.

    ``SSH_ORIGINAL_COMMAND``, which a client chooses, is not looked at.
    """
    arguments = sys.argv[1:] if argv is None else argv
    failpoints = os.environ.get("DSG_FAILPOINTS", "")
    if not arguments:
        return Options(failpoints=failpoints)
    import argparse  # a fifth of the time to the preamble, and usually there is nothing to parse

    parser = argparse.ArgumentParser(
        prog="dsg-remote-agent",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 the client is gone, 2 bad options, 7 protocol error, 75 could not end cleanly",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="serve only what lies in DIR, or in the dataset of zfs:DATASET; may be given several times "
        "(default: all the account may use)",
    )
    parser.add_argument(
        "--role",
        choices=("read", "write", "admin"),
        default=Options.role,
        help="read: status, clone; write: sync too; admin: also init (default)",
    )
    parser.add_argument(
        "--log-file", metavar="FILE", help="append the log to FILE too (it always goes to stderr)"
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default=Options.log_level
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"dsg-remote-agent {VERSION}",
        help="print the version and exit",
    )
    found = parser.parse_args(arguments)
    for root in found.root:
        if not os.path.isabs(root) and not root.startswith("zfs:"):
            parser.error(f"--root {root}: neither an absolute path nor zfs:DATASET")
    return Options(
        roots=tuple(found.root),
        role=found.role,
        log_file=found.log_file,
        log_level=found.log_level,
        failpoints=failpoints,
    )

"""The agent's command line and environment, read once."""

from __future__ import annotations

import argparse
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

    roots: tuple[str, ...]
    role: str
    log_file: str | None
    log_level: str
    failpoints: str


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"dsg-remote-agent {VERSION}\n")
        parser.exit(0)


def read_options(argv: Sequence[str] | None) -> Options:
    """The options; exits with status 2 and a message when they are wrong.

    ``SSH_ORIGINAL_COMMAND``, which a client chooses, is not looked at.
    """
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
        help="serve only what lies in DIR; may be given several times (default: all the account may use)",
    )
    parser.add_argument(
        "--role",
        choices=("read", "write", "admin"),
        default="admin",
        help="read: status, clone; write: sync too; admin: also init (default)",
    )
    parser.add_argument(
        "--log-file", metavar="FILE", help="append the log to FILE too (it always goes to stderr)"
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="warning")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    found = parser.parse_args(argv)
    for root in found.root:
        if not os.path.isabs(root):
            parser.error(f"--root {root}: not an absolute path")
    return Options(
        roots=tuple(found.root),
        role=found.role,
        log_file=found.log_file,
        log_level=found.log_level,
        failpoints=os.environ.get("DSG_FAILPOINTS", ""),
    )

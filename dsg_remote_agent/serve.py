"""Putting an agent together and running it."""

from __future__ import annotations

import fcntl
import os
import sys
import time

from dsg_remote_agent import keeping, repositories, transactions
from dsg_remote_agent.dispatch import Agent, Policy
from dsg_remote_agent.log import open_log
from dsg_remote_agent.options import Options
from dsg_remote_agent.roots import Roots
from dsg_remote_agent.session import Session
from protocol.connection import Connection
from protocol.failpoints import parse_failpoints
from protocol.messages import Role
from protocol.preamble import Preamble
from protocol.version import VERSION

__all__ = ["serve"]

# Importing them registers their methods.
_METHODS = (keeping, repositories, transactions)

_PIPE_BYTES = 1 << 20
_MACHINE_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")


def serve(source: int, sink: int, preamble: Preamble, options: Options) -> int:
    """Serve the client on two descriptors; the exit status."""
    # What is made in a shared repository must be writable by its group.
    os.umask(0o002)
    _widen(source, sink)
    log = open_log(options.log_file, options.log_level)
    try:
        failpoints = parse_failpoints(options.failpoints)
    except ValueError as error:
        sys.stderr.write(f"dsg-remote-agent: DSG_FAILPOINTS: {error}\n")
        return 2
    agent = Agent(
        policy=Policy(Role(options.role), Roots(options.roots)),
        now=lambda: int(time.time()),
        failpoints=failpoints,
        machine=_machine(),
        debug=log.debug,
    )
    log.debug("starts", version=VERSION)
    connection = Connection.agent(preamble.features, preamble.limits)
    status = Session(source, sink, connection, log).run(agent)
    # Threads that hang in a system call must not keep the process, and with it the lock.
    sys.stderr.flush()
    os._exit(status)


def _widen(*descriptors: int) -> None:
    """Let the pipes hold more, where they are pipes and the system allows it."""
    for descriptor in descriptors:
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except (OSError, AttributeError):
            pass


def _machine() -> str:
    """A name of this machine that stays."""
    for path in _MACHINE_FILES:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                return file.read(64).strip()
        except OSError:
            continue
    return os.uname().nodename

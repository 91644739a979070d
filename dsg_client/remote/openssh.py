"""A server reached through the system's ``ssh``: for what asyncssh cannot do, with the same byte stream.

``ssh`` reads its own configuration, checks host keys and asks its questions on
the terminal by itself. What went wrong is read from what it prints; its
messages are English whatever the locale.
"""

from __future__ import annotations

import re

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.child import ChildTransport
from dsg_client.remote.dial import unknown_host
from dsg_client.remote.settings import LinkSettings
from dsg_client.remote.transport import ExitStatus
from protocol.errors import (
    AgentStartError,
    ConfigError,
    DsgError,
    HostKeyChangedError,
    HostKeyUnknownError,
    LinkError,
    LinkLostError,
    RefusedError,
    SignInError,
)
from protocol.paths import escape

__all__ = ["explain_ssh", "open_openssh"]

SSH_FAILED = 255  # ssh's own failures; everything else is the remote command's


def open_openssh(address: RemoteAddress, command: str, settings: LinkSettings) -> ChildTransport:
    """Start ``ssh`` with ``command``. AgentStartError when there is no ``ssh`` here.

    That it fails to connect shows only later, as the missing preamble:
    :func:`explain_ssh` then says why.
    """
    assert address.host is not None
    try:
        transport = ChildTransport(
            ssh_command(address, command, settings),
            name=address.host,
            # With a terminal, ssh asks its questions there, and only the foreground group may read it.
            own_group=settings.ask is None,
        )
    except AgentStartError as error:
        raise AgentStartError(
            "the program 'ssh' cannot be started",
            hint="install OpenSSH's client, or set 'transport: asyncssh' in the configuration",
            facts=error.facts,
        ) from None
    return transport


def ssh_command(address: RemoteAddress, command: str, settings: LinkSettings) -> list[str]:
    """The whole command line. Ctrl-C is left to DSG: a signal that is ignored stays so over exec."""
    assert address.host is not None
    options = ["-T", "-x", "-a", "-e", "none", "-o", "ClearAllForwardings=yes", "-o", "RequestTTY=no"]
    options += ["-o", f"ConnectTimeout={max(1, round(settings.connect_limit))}"]
    if settings.ask is None:
        options += ["-o", "BatchMode=yes"]
    if settings.accept_new_host_key:
        options += ["-o", "StrictHostKeyChecking=accept-new"]
    if address.user is not None:
        options += ["-l", address.user]
    return ["/bin/sh", "-c", "trap '' INT; exec ssh \"$@\"", "ssh", *options, "--", address.host, command]


def explain_ssh(
    stderr: bytes, status: ExitStatus | None, address: RemoteAddress, again: str
) -> DsgError | None:
    """Why ``ssh`` failed; None when it did not, and the matter is the agent's."""
    if status is None or status.code != SSH_FAILED:
        return None
    host = escape(address.host or "")
    lines = [line.strip() for line in stderr.decode("utf-8", "surrogateescape").splitlines() if line.strip()]
    text = "\n".join(lines)
    last = escape(lines[-1]) if lines else "it printed nothing"
    facts = {"host": address.host, "stderr": [escape(line) for line in lines[-40:]]}
    if "Could not resolve hostname" in text:
        return unknown_host(address.host or "", last.rpartition(": ")[2])
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text or "host key has been revoked" in text.lower():
        print_ = _first(r"(SHA256:\S+?)\.?$", text)
        where = _first(r"Offending .*key in (\S+)", text)
        return HostKeyChangedError(
            f"the host key of {host} is not the one that is known: it shows {print_}; "
            f"the known one is in {where}",
            hint="somebody may be between you and the server. Ask its administrator; when the key was really "
            "replaced, remove that line, then connect again",
            facts=facts | {"fingerprint": print_},
        )
    if "Host key verification failed" in text or "strict checking" in text:
        print_ = _first(r"(SHA256:\S+?)\.?$", text)
        return HostKeyUnknownError(
            f"the host key of {host} is not known yet" + (f": {print_}" if print_ != "?" else ""),
            hint=f"compare its fingerprint ('ssh-keyscan {host} | ssh-keygen -lf -') with the one that the "
            f"server's administrator tells you; when they are equal: {again} --accept-new-host-key",
            facts=facts | {"fingerprint": print_},
        )
    if "Permission denied" in text or "Too many authentication failures" in text:
        return SignInError(
            f"{host} does not let you in: {last}",
            hint="add your public key to ~/.ssh/authorized_keys there, load it with ssh-add, or name it with "
            f"IdentityFile in ~/.ssh/config; 'ssh -v {host}' shows which keys are tried",
            facts=facts,
        )
    refused = {
        "Connection refused": ("refused", "refused the connection: nothing listens there"),
        "timed out": ("time-out", "does not answer"),
        "No route to host": ("unreachable", "cannot be reached"),
        "Network is unreachable": ("unreachable", "cannot be reached"),
    }
    for mark, (why, what) in refused.items():
        if mark in text:
            return RefusedError(
                f"{host} {what}: {last}",
                hint="check that the SSH server runs, its port, and the network",
                facts=facts | {"reason": why},
            )
    if "Bad configuration option" in text or "no argument after keyword" in text or "terminating," in text:
        return ConfigError(
            f"ssh cannot use its configuration: {last}", hint="correct ~/.ssh/config", facts=facts
        )
    if re.search(r"Connection (closed|reset)|kex_exchange_identification|Broken pipe", text):
        return LinkLostError(
            f"{host} closed the connection: {last}",
            hint="the server may be overloaded or may not allow this address; then run the command again",
            facts=facts,
        )
    return LinkError(f"ssh could not connect to {host}: {last}", hint=f"try 'ssh {host}'", facts=facts)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return escape(found.group(1)) if found else "?"

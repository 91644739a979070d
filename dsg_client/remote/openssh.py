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
from dsg_client.remote.transport import STDERR_KEPT, ExitStatus, Tail
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

__all__ = ["SshMessages", "explain_ssh", "open_openssh"]

# Time for ssh to pass the goodbye on. Then it is killed: the agent sees the end of its input either way.
ENDING_LIMIT = 0.02
SSH_FAILED = 255  # ssh's own failures; everything else is the remote command's


class SshMessages(Tail):
    """What ``ssh -v`` and the program behind it print on stderr: its debug lines apart from all else."""

    def __init__(self) -> None:
        super().__init__()
        self.debug = Tail()
        self._begun = b""

    def add(self, chunk: bytes) -> None:
        *lines, self._begun = (self._begun + chunk).split(b"\n")
        for line in lines:
            add = self.debug.add if line.startswith(b"debug1: ") else super().add
            add(line.rstrip(b"\r") + b"\n")
        if len(self._begun) > STDERR_KEPT:
            super().add(self._begun)
            self._begun = b""

    def __bytes__(self) -> bytes:
        return super().__bytes__() + self._begun

    def told(self, pattern: str) -> list[str]:
        """What ``pattern`` finds in the debug lines."""
        text = bytes(self.debug).decode("utf-8", "surrogateescape")
        return [escape(found) for found in re.findall(pattern, text, re.MULTILINE)]


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
            stderr=SshMessages(),
            ending_limit=ENDING_LIMIT,
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
    # -v: only its debug lines name the host's key and the keys that were offered.
    options = ["-v", "-T", "-x", "-a", "-e", "none", "-o", "ClearAllForwardings=yes", "-o", "RequestTTY=no"]
    options += ["-o", f"ConnectTimeout={max(1, round(settings.connect_limit))}"]
    if settings.ask is None:
        options += ["-o", "BatchMode=yes"]
    if settings.accept_new_host_key:
        options += ["-o", "StrictHostKeyChecking=accept-new"]
    if address.user is not None:
        options += ["-l", address.user]
    return ["/bin/sh", "-c", "trap '' INT; exec ssh \"$@\"", "ssh", *options, "--", address.host, command]


def explain_ssh(
    messages: SshMessages, status: ExitStatus | None, address: RemoteAddress, again: str
) -> DsgError | None:
    """Why ``ssh`` failed; None when it did not, and the matter is the agent's."""
    if status is None or status.code != SSH_FAILED:
        return None
    host = escape(address.host or "")
    lines = bytes(messages).decode("utf-8", "surrogateescape").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    text = "\n".join(lines)
    last = escape(lines[-1]) if lines else "it printed nothing"
    facts = {"host": address.host, "stderr": [escape(line) for line in lines[-40:]]}
    shown = " ".join(messages.told(r"Server host key: \S+ (SHA256:\S+)")[-1:]) or "not told"
    if "Could not resolve hostname" in text:
        return unknown_host(address.host or "", last.rpartition(": ")[2])
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text or "revoked" in text.lower():
        known = re.search(r"Offending .*key in (.+?):?(\d*)$", text, re.MULTILINE)
        where = f"; {escape(known.group(1))}, line {known.group(2)}, has another" if known else ""
        return HostKeyChangedError(
            f"the host key of {host} is not the one that is known, or was revoked: it shows {shown}{where}",
            hint="somebody may be between you and the server. Ask its administrator; when the key was really "
            "replaced, remove that line, then connect again",
            facts=facts | {"fingerprint": shown},
        )
    if "Host key verification failed" in text or "strict checking" in text:
        return HostKeyUnknownError(
            f"the host key of {host} is not known yet: {shown}",
            hint="compare this fingerprint with the one that the server's administrator tells you; "
            f"when they are equal: {again} --accept-new-host-key",
            facts=facts | {"fingerprint": shown},
        )
    if "Permission denied" in text or "Too many authentication failures" in text:
        tried = messages.told(r"Offering public key: (.+)$")
        return SignInError(
            f"{host} does not let you in: {last} Tried: {'; '.join(tried) or 'no key, for none was found'}",
            hint="add the public key to ~/.ssh/authorized_keys there, load the right key with ssh-add, "
            "or name it with IdentityFile (and the account with User) in ~/.ssh/config",
            facts=facts | {"tried": tried},
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
        named = next((escape(line) for line in lines if re.search(r" line \d+: ", line)), last)
        return ConfigError(
            f"ssh cannot use its configuration: {named}", hint="correct ~/.ssh/config", facts=facts
        )
    if re.search(r"Connection (closed|reset)|kex_exchange_identification|Broken pipe", text):
        return LinkLostError(
            f"{host} closed the connection: {last}",
            hint="the server may be overloaded or may not allow this address; then run the command again",
            facts=facts,
        )
    return LinkError(f"ssh could not connect to {host}: {last}", hint=f"try 'ssh {host}'", facts=facts)

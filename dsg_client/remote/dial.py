"""A TCP connection to a server, with failures that say what is the matter."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence

from protocol.errors import HostUnknownError, LinkError, RefusedError
from protocol.paths import escape

__all__ = ["acknowledge", "dial", "dial_error", "unknown_host"]

# RFC 8305 (Happy Eyeballs) recommends 250 ms before the next address is tried beside the first.
STAGGER = 0.25

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux has it
_UNREACHABLE = frozenset(
    [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EACCES]
)


async def dial(
    host: str, port: int, *, family: int = socket.AF_UNSPEC, local: tuple[str, int] | None = None
) -> socket.socket:
    """A connected socket. The time limit is the caller's.

    HostUnknownError when the name does not resolve; RefusedError when nothing
    listens or nothing can be reached, whatever was tried. All addresses of
    the host are tried, in turn, the next one not later than after 250 ms.
    """
    loop = asyncio.get_running_loop()
    # Bytes need no IDNA, whose tables take 3 ms to import.
    name = host.encode("ascii") if host.isascii() else host
    try:
        found = await loop.getaddrinfo(name, port, family=family, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise unknown_host(host, getattr(error, "strerror", None) or str(error)) from None
    begun: list[asyncio.Task[socket.socket]] = []
    pending: set[asyncio.Task[socket.socket]] = set()
    won: asyncio.Task[socket.socket] | None = None
    errors: list[OSError] = []
    addresses = list(found)
    try:
        while addresses or pending:
            if addresses:
                kind, _, number, _, address = addresses.pop(0)
                begun.append(asyncio.create_task(_connect(kind, number, address, local)))
                pending.add(begun[-1])
            done, pending = await asyncio.wait(
                pending, timeout=STAGGER if addresses else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                try:
                    end = task.result()
                    won = task
                    return end
                except OSError as error:
                    errors.append(error)
    finally:
        # Also those that are done: two can connect in the same instant.
        others = [task for task in begun if task is not won]
        for task in others:
            task.cancel()
        for result in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(result, socket.socket):
                result.close()
    raise dial_error(host, port, errors)


async def _connect(
    family: int, number: int, address: Sequence[object], local: tuple[str, int] | None
) -> socket.socket:
    end = socket.socket(family, socket.SOCK_STREAM, number)
    try:
        end.setblocking(False)
        if local is not None:
            end.bind(local)
        await asyncio.get_running_loop().sock_connect(end, tuple(address))
    except BaseException:
        end.close()
        raise
    return end


def acknowledge(end: socket.socket) -> None:
    """Have the kernel acknowledge at once what has come by now; it lasts until more is sent (``tcp(7)``).

    Until a session runs, sshd leaves Nagle's algorithm on (RFC 896): its
    second message after the sign-in waits until the first is acknowledged,
    and a kernel that sees questions and answers take turns lets that wait for
    40 ms.
    """
    if _QUICKACK is not None:
        try:
            end.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        except OSError:
            pass  # closed; whoever reads finds out


def unknown_host(host: str, reason: str) -> HostUnknownError:
    """The error for a name that does not resolve."""
    return HostUnknownError(
        f"the host {escape(host)} is not known: {reason}",
        hint=f"check its spelling, the network's name service, or 'Host {escape(host)}' in ~/.ssh/config",
        facts={"host": host},
    )


def dial_error(host: str, port: int, errors: Sequence[OSError]) -> LinkError:
    """The error for a host that no address of could be connected to."""
    where = f"{escape(host)}, port {port}"
    numbers = [error.errno for error in errors]
    facts = {"host": host, "port": port}
    if errno.ECONNREFUSED in numbers:
        return RefusedError(
            f"{where}, refused the connection: nothing listens there",
            hint="check that the SSH server runs, and its port ('Port' in ~/.ssh/config)",
            facts=facts | {"reason": "refused"},
        )
    if errno.ETIMEDOUT in numbers:
        return silent_host(host, port, None)
    reason = errors[0].strerror or str(errors[0]) if errors else "it has no address"
    if any(number in _UNREACHABLE for number in numbers):
        return RefusedError(
            f"{where}, cannot be reached: {reason}",
            hint="check the network, a VPN that must be on, or a ProxyJump in ~/.ssh/config",
            facts=facts | {"reason": "unreachable"},
        )
    known = numbers and numbers[0] is not None
    return LinkError(
        f"no connection to {where}: {reason}",
        hint="check the network",
        facts=facts | {"reason": errno.errorcode.get(numbers[0] or 0, "") if known else os.name},
    )


def silent_host(host: str, port: int, limit: float | None) -> RefusedError:
    """The error for a host that does not answer at all."""
    within = f" within {limit:.0f} s" if limit is not None else ""
    return RefusedError(
        f"{escape(host)}, port {port}, does not answer{within}",
        hint="check the network, a VPN that must be on, or a firewall; the server may be down",
        facts={"host": host, "port": port, "reason": "time-out"},
    )

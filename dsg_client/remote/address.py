"""REMOTE as the user writes it: ``[user@]host:/path``, ``[user@]host:zfs:pool/dataset``, or without a host.

Hostile until parsed: a :class:`RemoteAddress` cannot hold a host or user that a
program would take for an option, a control character, or a path that means
different folders on different days.
"""

from __future__ import annotations

import os
import re

from protocol.errors import UsageError
from protocol.paths import escape
from protocol.value import Value

__all__ = ["RemoteAddress", "parse_address"]

# What OpenSSH refuses in hosts and users since 9.6 (CVE-2023-51385), and what no shell should see.
_UNSAFE = re.compile(r"[\s'\"`$\\;&<>|(){},*?!\[\]#\x00-\x1f\x7f]")
_MAX_HOST = 255
_MAX_USER = 255
_MAX_PATH = 4000
_ZFS = "zfs:"
_DATASET_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_MAX_DATASET = 200


class RemoteAddress(Value):
    """Where a repository is: ``host`` None means this machine.

    ``path`` is absolute, without a slash at its end, or ``zfs:`` and a dataset.
    ``user`` None leaves the choice to ``~/.ssh/config``, else to the login name.
    """

    path: str
    host: str | None = None
    user: str | None = None

    @property
    def local(self) -> bool:
        """Whether the repository is on this machine, reached without SSH."""
        return self.host is None

    @property
    def folder(self) -> str | None:
        """The repository's folder on this machine; None when it is elsewhere, or a dataset."""
        return None if self.host is not None or self.is_dataset else self.path

    @property
    def is_dataset(self) -> bool:
        """Whether it names a dataset, and not a folder."""
        return self.path.startswith(_ZFS)

    def __str__(self) -> str:
        """The text that :func:`parse_address` reads back."""
        if self.host is None:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.path}" if self.user else f"{host}:{self.path}"


def parse_address(text: str, *, folder: str | None = None) -> RemoteAddress:
    """``text`` as an address; UsageError, with what to write instead, when it is not one.

    A relative path on this machine is taken from ``folder`` (default: the
    current folder). As with scp, a colon makes it remote unless a slash stands
    before it.
    """
    shown = escape(text)
    if not text.strip():
        raise _refusal(
            text, "it is empty", "write [user@]host:/path, or the path of a folder on this machine"
        )
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise _refusal(text, "it has control characters or is not UTF-8", "write it without them")
    if re.match(r"^(?:ssh|sftp|scp|rsync|https?|ftp|file)://", text, re.IGNORECASE):
        raise _refusal(
            text,
            "it is a URL",
            "write [user@]host:/path; a port is set with 'Port' in ~/.ssh/config",
        )
    if re.match(r"^[A-Za-z]:[\\/]", text) or text.startswith("\\\\"):
        raise _refusal(
            text,
            "it looks like a Windows path",
            "DSG's repositories live on Unix servers: write [user@]host:/path "
            "(a host whose name is one letter needs its user: user@h:/path)",
        )
    colon = _colon(text)
    if colon is None:
        if text.startswith("-"):
            raise _refusal(text, "it begins with '-'", f"write ./{shown} if a folder has that name")
        return RemoteAddress(_path_here(text, folder))
    if text.startswith(_ZFS):
        return RemoteAddress(_dataset(text, text))
    user, host = _user_and_host(text, text[:colon])
    path = text[colon + 1 :]
    if path.startswith(_ZFS):
        return RemoteAddress(_dataset(text, path), host, user)
    if not path.startswith("/"):
        raise _not_absolute(text, host, path)
    return RemoteAddress(_tidy(text, path), host, user)


def _colon(text: str) -> int | None:
    """Where the host ends, or None when the text is a path on this machine."""
    bracket = re.match(r"^(?:[^/\[\]]*@)?\[[^/\]]*\](?=:)", text)
    if bracket:
        return bracket.end()
    colon = text.find(":")
    slash = text.find("/")
    return None if colon < 0 or 0 <= slash < colon else colon


def _user_and_host(text: str, before: str) -> tuple[str | None, str]:
    user, at, host = before.rpartition("@")
    if host.startswith("["):
        import ipaddress  # 5 ms that most addresses do without

        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise _refusal(
                text, "what stands in brackets is not an IPv6 address", "write [::1]:/path"
            ) from None
    else:
        _check_name(text, "host", host, _MAX_HOST)
    if at:
        _check_name(text, "user", user, _MAX_USER)
    return (user if at else None), host


def _check_name(text: str, what: str, name: str, limit: int) -> None:
    if not name:
        raise _refusal(text, f"its {what} is empty", "write [user@]host:/path")
    if name.startswith("-"):
        raise _refusal(
            text, f"its {what} begins with '-'", "a program could take it for an option; DSG refuses it"
        )
    bad = _UNSAFE.search(name)
    if bad or len(name) > limit:
        found = f"has {bad.group()!r} in it" if bad else "is too long"
        raise _refusal(text, f"its {what} {found}", "write [user@]host:/path")


def _path_here(text: str, folder: str | None) -> str:
    path = os.path.expanduser(text) if text.startswith("~") else text
    return _tidy(text, os.path.normpath(os.path.join(folder or os.getcwd(), path)))


def _tidy(text: str, path: str) -> str:
    if len(path.encode()) > _MAX_PATH:
        raise _refusal(text, f"its path is longer than {_MAX_PATH} bytes", "use a shorter one")
    if ".." in path.split("/"):
        raise _refusal(text, "its path has a '..' in it", "write the path as it is without '..'")
    parts = [name for name in path.split("/") if name not in ("", ".")]
    if not parts:
        raise _refusal(
            text, "it is the root of the file system", "name a folder for the repository, as in /srv/data"
        )
    return "/" + "/".join(parts)


def _not_absolute(text: str, host: str, path: str) -> UsageError:
    if re.match(r"^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?::/|$)", text.rpartition("@")[2]) and text.count(":") > 2:
        return _refusal(text, "it looks like an IPv6 address", "write it in brackets: [2001:db8::1]:/path")
    if re.match(r"^[0-9]{1,5}(?::?/|$)", path):
        return _refusal(
            text,
            "it has a port in it",
            f"write {host}:/path, and the port under 'Host {host}' in ~/.ssh/config",
        )
    rest = path.removeprefix("~/") if path.startswith("~/") else path
    example = f"/home/you/{rest}" if rest and not rest.startswith("~") else "/srv/data"
    return _refusal(
        text,
        "its path on the server is not absolute",
        f"write it from the root, as in {host}:{escape(example)}",
    )


def _dataset(text: str, path: str) -> str:
    dataset = path.removeprefix(_ZFS)
    example = "as in host:zfs:tank/dsg/survey"
    if dataset.startswith("/"):
        raise _refusal(text, "a dataset's name does not begin with '/'", f"write pool/…/name, {example}")
    parts = dataset.split("/")
    if len(dataset) > _MAX_DATASET or not all(map(_DATASET_PART.fullmatch, parts)):
        raise _refusal(
            text,
            "it is no name of a ZFS dataset",
            f"such names consist of letters, digits, '-', '_', '.' and ':', {example}",
        )
    if len(parts) < 2:
        raise _refusal(text, "it names a pool; a repository lies below one", f"write pool/…/name, {example}")
    return _ZFS + dataset


def _refusal(text: str, why: str, hint: str) -> UsageError:
    shown = escape(text[:200])
    return UsageError(
        f"{shown!r} is not an address of a repository: {why}", hint=hint, facts={"address": text[:200]}
    )

"""Who is syncing: for attribution in manifests and records, never for permission."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from dsg_client.local.config import Config
from dsg_client.local.machine import host_name, login_name
from protocol.value import Value

__all__ = ["Identity", "find_identity"]

_LIMIT = 200  # characters of an entry's ``who``
_GIT_SECONDS = 5.0


class Identity(Value):
    """A person, as others will see them: a name, and an id such as an address; and from which host."""

    user_name: str
    user_id: str
    host: str

    @property
    def who(self) -> str:
        """One line of at most 200 characters, for entries and records."""
        if self.user_name and self.user_id and self.user_name != self.user_id:
            line = f"{self.user_name} <{self.user_id}>"
            return line if len(line) <= _LIMIT else self.user_id[:_LIMIT]
        return (self.user_id or self.user_name)[:_LIMIT]


def find_identity(config: Config, folder: str | os.PathLike[str] | None = None) -> Identity:
    """Who is syncing: configured, else git's ``user.name`` and ``user.email``, else login@host.

    Asks git, in ``folder`` (which may have an identity of its own), only for
    what is not configured. Never fails.
    """
    host = _clean(host_name())
    name, user_id = config.user_name, config.user_id
    if not (name and user_id):
        git = _git_identity(folder)
        name = name or git.get("user.name", "")
        user_id = user_id or git.get("user.email", "")
    login = login_name()
    return Identity(_clean(name) or _clean(login), _clean(user_id) or _clean(f"{login}@{host}"), host)


def _git_identity(folder: str | os.PathLike[str] | None) -> dict[str, str]:
    try:
        asked = subprocess.run(
            ["git", "config", "--null", "--get-regexp", r"^user\.(name|email)$"],
            cwd=folder if folder is not None and Path(folder).is_dir() else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for record in asked.stdout.decode("utf-8", "replace").split("\0"):
        key, newline, value = record.partition("\n")
        if newline:
            found[key.lower()] = value  # of several the last counts, as for git
    return found


def _clean(text: str) -> str:
    """One line without control characters; others will see it on their terminals."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LIMIT]

"""What the system's errors mean to somebody who syncs: the way from OSError to DsgError."""

from __future__ import annotations

import errno
import os

from protocol.errors import DsgError, NotPermittedError, RemoteStorageError
from protocol.paths import escape

__all__ = ["explain"]

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a limit on file size was met",
}
_RIGHTS = {errno.EACCES, errno.EPERM}


def explain(error: OSError, shown: str) -> DsgError:
    """The error to report for ``error``, which arose in the repository at ``shown``."""
    where = _where(error, shown)
    text = os.strerror(error.errno) if error.errno else str(error)
    facts = {"path": where, "errno": errno.errorcode.get(error.errno or 0, "")}
    if error.errno in _RIGHTS:
        return NotPermittedError(
            f"the server's account may not use {where}: {text}",
            hint="the repository's folders must belong to a group that this account is in, be writable "
            "by it and have the setgid bit; 'dsg doctor' shows what is missing",
            facts=facts,
        )
    if error.errno in _FULL:
        return RemoteStorageError(
            f"{_FULL[error.errno]} on the server, at {where}",
            hint="free space there ('df', 'quota') and sync again; nothing was changed",
            facts=facts,
        )
    if error.errno == errno.EROFS:
        return RemoteStorageError(
            f"the file system of {where} is mounted read-only",
            hint="an administrator must mount it writable again; look for disk errors in the server's log",
            facts=facts,
        )
    if error.errno == errno.EIO:
        return RemoteStorageError(
            f"the server's disk failed at {where}",
            hint="look for disk errors in the server's log before anything else",
            facts=facts,
        )
    if error.errno == errno.EXDEV:
        return RemoteStorageError(
            f"{where} is on another file system than the repository",
            hint="a repository and everything in it must be on one file system",
            facts=facts,
        )
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return RemoteStorageError(
            f"{where} does not lead where the repository expects it: {text}",
            hint="somebody replaced a folder of the repository by a link or a file; put it back",
            facts=facts,
        )
    return RemoteStorageError(f"{where}: {text}", hint="see the agent's log on the server", facts=facts)


def _where(error: OSError, shown: str) -> str:
    """The place as the system names it: often only a name inside some folder of the repository."""
    named = []
    for name in (error.filename, error.filename2):
        if isinstance(name, str | bytes) and name:
            text = os.fsdecode(name)
            if text.startswith("/"):
                named.append(escape(text))
            else:
                named.append(
                    f"{escape(shown)}/{escape(text)}"
                    if "/" in text
                    else f"'{escape(text)}' in {escape(shown)}"
                )
    return " and ".join(named) or escape(shown)

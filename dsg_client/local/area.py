"""Small files of the working folder's ``.dsg``, and what to say when the disk refuses."""

from __future__ import annotations

import errno
import os
import secrets

from protocol.errors import LocalStorageError
from protocol.paths import escape
from protocol.tree.actions import TMP
from protocol.tree.fs import TreeFS

__all__ = ["replace_small", "storage_error"]


def replace_small(tree: TreeFS, path: str, content: bytes, *, durable: bool = True) -> None:
    """Replace a small file of the area at once; OSError leaves the old one.

    ``durable``: its content is flushed before it gets its name; flushing the
    folder is the caller's.
    """
    temporary = f"{TMP}/{path.rpartition('/')[2]}.{secrets.token_hex(4)}"
    tree.make_folders(TMP)
    try:
        if durable:
            tree.write_bytes(temporary, content)
        else:
            file = tree.create(temporary)
            try:
                file.write(content)
                file.finish(executable=False, mtime_ns=None)
            finally:
                file.close()
        tree.move(temporary, path)
    except BaseException:
        try:
            tree.unlink(temporary)
        except FileNotFoundError:
            pass
        raise


def storage_error(path: str, error: OSError) -> LocalStorageError:
    """The error for a path of the working folder that the system refused."""
    reason = error.strerror or os.strerror(error.errno or errno.EIO)
    return LocalStorageError(
        f"'{escape(path)}' cannot be used: {reason}",
        hint="Check the rights of the folder, the space on the disk and its health.",
        facts={"path": path, "reason": reason},
    )

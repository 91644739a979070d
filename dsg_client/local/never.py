"""Names that are never synced, whatever the rules say, and why.

Three groups:

* *reserved*: DSG's own folder and configuration, and the folders of version
  control. A repository could plant a program through these (git and Mercurial
  run hooks, ``.dsgconfig.yml`` names a command), so they are refused in every
  case and normal form that some file system takes for the same name;
* *temporary*: what editors, office programs and network file systems put
  beside an open file, and take away again;
* *system*: what an operating system or a storage box puts into every folder,
  or at the top of every volume.

A journal or write-ahead log of a database (``x.sqlite-wal``) is not here: it
is part of the data.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["LIST_VERSION", "OUTSIDE_ONLY", "is_never_synced"]

# Part of the rules' digest: raise it when a name is added or removed below.
LIST_VERSION = 1

_RESERVED = frozenset([".dsg", ".dsgconfig.yml", ".git", ".hg", ".svn", ".bzr"])

_NAMES = frozenset(
    [
        "4913",  # vim asks with this file whether a folder can be written
        ".ds_store",  # macOS
        ".appledouble",
        ".apdisk",
        ".documentrevisions-v100",
        ".fseventsd",
        ".localized",
        ".spotlight-v100",
        ".temporaryitems",
        ".trashes",
        ".volumeicon.icns",
        "icon\r",
        "thumbs.db",  # Windows
        "thumbs.db:encryptable",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "lost+found",  # Unix file systems, at their top
        ".snapshot",  # NetApp, and
        ".zfs",  # ZFS: every older version again
        "@eadir",  # Synology
        "#recycle",
    ]
)

_PATTERN = (
    r"~\$.*"  # Microsoft Office: the lock beside an open document
    r"|\.~lock\..*#"  # LibreOffice: the same
    r"|\.#.*"  # Emacs: lock (a dangling link)
    r"|#.*#"  # Emacs: automatic copy
    r"|.*~"  # Emacs, vim, gedit: the copy before the last save
    r"|.*\.swp|\..*\.sw[a-p]"  # vim: swap
    r"|\..*\.kate-swp"
    r"|\.goutputstream-.*"  # GLib: a save in progress
    r"|~.*\.tmp"  # Microsoft Office: a save in progress
    r"|.*___jb_(?:tmp|old)___"  # JetBrains: a safe write
    r"|\.nfs[0-9a-f]+"  # NFS: deleted while open
    r"|\.fuse_hidden.*"  # FUSE: the same
    r"|\.smbdelete.*|\.cifs[0-9a-f]+"  # SMB: the same
    r"|\._.*"  # macOS: a resource fork on a foreign file system
    r"|\.trash-[0-9]+"  # the desktop's bin on a removable volume
)
_match = re.compile(_PATTERN, re.IGNORECASE | re.DOTALL).fullmatch

# Quick tests: a name that neither begins nor ends like this is none of the above.
_FIRST = frozenset(".~#$@4tTeEdDsSlLiI")
_LAST = ("~", ".swp", ".SWP", "___")

# Folders that package installers fill, often with subfolders called "input" or "output". Outside a data
# folder nothing below them is looked for; inside one they are data like any other.
OUTSIDE_ONLY = frozenset(["node_modules", "site-packages", "dist-packages", "__pycache__"])

# HFS+ ignores these inside names, so that ".g\u200cit" is ".git" there (git CVE-2014-9390).
_IGNORABLE = dict.fromkeys(
    [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0x00AD]
)


def is_never_synced(name: str) -> bool:
    """Whether one component of a path is never in scope, and nothing below it."""
    if name.isascii():
        if name[0] not in _FIRST and not name.endswith(_LAST):
            return False
        folded = name.lower()
    else:
        # Surrogates stand for bytes that are not UTF-8; NFKC leaves them alone.
        folded = unicodedata.normalize("NFKC", name).translate(_IGNORABLE).casefold()
    return folded.rstrip(" .") in _RESERVED or folded in _NAMES or _match(name) is not None

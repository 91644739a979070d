"""Running a part of a test as another account of this machine."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path


def as_account(uid: int, gid: int, groups: Sequence[int], umask: int, call: Callable[[], object]) -> None:
    """Run ``call`` in a child process with these ids; AssertionError when it fails there."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups(list(groups))
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.umask(umask)
            call()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"it failed as account {uid}; see the captured stderr"


def reachable(folder: Path) -> None:
    """Let other accounts pass through a test's temporary folders."""
    for above in [*reversed(folder.parents), folder]:
        mode = above.stat().st_mode
        if above.stat().st_uid == os.geteuid() and mode & 0o5 != 0o5:
            above.chmod(mode | 0o5)

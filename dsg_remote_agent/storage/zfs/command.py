"""Running ``zfs``: the one door to it. Time limits, the lock for children that change something, errors."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import IO

from protocol.errors import DsgError, NotPermittedError, RemoteStorageError
from protocol.paths import escape
from protocol.value import Value

__all__ = ["Answer", "Noted", "Trouble", "Zfs", "failure"]

READ_LIMIT = 60.0  # seconds; of a command that only looks
CHANGE_LIMIT = 300.0  # one that waits for the pool, however busy that is
_LAST_WAIT = 1.0  # for a child that was killed; one that sleeps in the kernel may not die
_SHOWN = 500


class Trouble(Enum):
    """Why a command failed, as far as anybody here acts on it."""

    NONE = "none"
    BUSY = "busy"
    EXISTS = "exists"
    MISSING = "missing"
    DENIED = "denied"
    FULL = "full"
    READ_ONLY = "read-only"
    KEY = "key"
    LACKING = "lacking"  # this ZFS has no such property or option
    HAS_CHILDREN = "has children"
    NO_ORIGIN = "no origin"
    NO_TAG = "no tag"
    ABSENT = "absent"  # no ZFS here, or its service does not answer
    TIMEOUT = "timeout"
    OTHER = "other"


# By what the commands of OpenZFS 2.1 to 2.4 and zfs-fuse 0.7 print in the C locale; the first that fits.
_WORDS = (
    (Trouble.ABSENT, ("modules are not loaded", "module is not loaded", "/dev/zfs", "zfs-fuse daemon")),
    (Trouble.DENIED, ("permission denied", "operation not permitted", "must be root", "mounted by root")),
    (Trouble.DENIED, ("insufficient privileges", "must be superuser")),
    (Trouble.DENIED, ("dsg-zfs-mount: refused", "dsg-zfs-mount: not configured", "sudo: ")),
    (Trouble.NO_ORIGIN, ("not a cloned filesystem",)),
    (Trouble.NO_TAG, ("no such tag",)),
    (Trouble.HAS_CHILDREN, ("has children", "has dependent clones")),
    (Trouble.EXISTS, ("already exists", "already mounted", "conflicting snapshot")),
    (Trouble.MISSING, ("does not exist", "no such pool", "not currently mounted", "no such file")),
    (Trouble.BUSY, ("busy",)),
    (Trouble.FULL, ("out of space", "no space left", "quota exceeded", "disc quota", "disk quota")),
    (Trouble.KEY, ("key not loaded", "encryption key", "key must be loaded")),
    (Trouble.LACKING, ("invalid property", "invalid option", "bad property", "must be one of", "'-p'")),
    (Trouble.READ_ONLY, ("read-only", "readonly", "read only")),
)


class Answer(Value):
    """What a command said; ``status`` None: it did not end in time."""

    words: tuple[str, ...]
    status: int | None
    out: str
    err: str

    @property
    def good(self) -> bool:
        """Whether it succeeded."""
        return self.status == 0

    @property
    def trouble(self) -> Trouble:
        """Why it failed."""
        if self.status is None:
            return Trouble.TIMEOUT
        if self.status == 0:
            return Trouble.NONE
        said = self.err.lower()
        for trouble, signs in _WORDS:
            if any(sign in said for sign in signs):
                return trouble
        return Trouble.OTHER

    @property
    def said(self) -> str:
        """Its complaint in one line, for people."""
        if self.status is None:
            return "it did not end in time"
        return escape(" ".join(self.err.split())[:_SHOWN]) or f"it ended with status {self.status}"


# Told of each command that has ended: its answer, and the seconds that it took.
Noted = Callable[[Answer, float], None]


def _unnoted(_answer: Answer, _seconds: float) -> None:
    pass


class Zfs:
    """The ``zfs`` command of this machine. ``lacking``: properties that it turned out not to have."""

    def __init__(self, program: str, way: tuple[str, ...] = (), noted: Noted = _unnoted) -> None:
        self._program = program
        self._way = way
        self._noted = noted
        self.lacking: set[str] = set()

    @classmethod
    def find(cls, noted: Noted = _unnoted) -> Zfs:
        """The one on PATH, or where administrators' programs are; RemoteStorageError when there is none."""
        path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
        program = shutil.which("zfs", path=path)
        if program is None:
            raise RemoteStorageError(
                "the server has no program zfs",
                hint="install ZFS there, or keep the repository in a folder: host:/path",
            )
        return cls(program, noted=noted)

    def through(self, way: Sequence[str]) -> Zfs:
        """The ``zfs`` on another machine: ``way`` (as in ``ssh HOST``) gives a line to its shell."""
        return Zfs("zfs", tuple(way), self._noted)

    def where(self, dataset: str) -> str:
        """A dataset that this one sees, for people."""
        return f"{' '.join(self._way)}: {dataset}" if self._way else dataset

    def _command(self, words: Sequence[str]) -> list[str]:
        if self._way:
            return [*self._way, shlex.join([self._program, *words])]
        return [self._program, *words]

    def start(
        self,
        *words: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes],
    ) -> subprocess.Popen[bytes]:
        """Start ``zfs WORDS`` for a stream, which takes as long as it takes."""
        return subprocess.Popen(
            self._command(words),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "LC_ALL": "C"},
            cwd="/",
        )

    def run(self, *words: str, lock: int | None = None, limit: float | None = None) -> Answer:
        """Run ``zfs WORDS`` to its end.

        ``lock``: the descriptor of the repository's lock, for a command that
        changes something: the child holds it too, so that nobody else begins
        before it has ended, whatever becomes of this process. One that does
        not end within ``limit`` seconds is killed when it only looks, and left
        to itself with the lock when it changes something.
        """
        return self._execute(self._command(words), words, b"", lock, limit)

    def mounting(self, verb: str, name: str, *, lock: int | None, limit: float | None = None) -> Answer:
        """``mount`` or ``unmount`` the dataset ``name``, in the way that this account has. See :meth:`run`.

        One that is not root on Linux asks the program dsg-zfs-mount, where it
        is: then what is mounted, or not, already is no error.
        """
        if os.geteuid() != 0:
            from dsg_remote_agent.storage.zfs.privileges import mounter

            program = mounter()
            if program is not None:
                request = json.dumps({"version": 1, "verb": verb, "dataset": name}).encode()
                # sudo hands no descriptors on: the shell keeps the lock until all is done.
                command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *program]
                return self._execute(command, (verb, name), request, lock, limit)
        return self.run(verb, name, lock=lock, limit=limit)

    def must(self, *words: str, lock: int | None = None, shown: str) -> str:
        """What ``zfs WORDS`` prints; :func:`failure` when it fails. ``shown``: the repository's name."""
        answer = self.run(*words, lock=lock)
        if not answer.good:
            raise failure(answer, shown)
        return answer.out

    def _execute(
        self, command: list[str], words: tuple[str, ...], told: bytes, lock: int | None, limit: float | None
    ) -> Answer:
        began = time.monotonic()
        answer = _execute(command, words, told, lock, limit)
        self._noted(answer, time.monotonic() - began)
        return answer


def _execute(
    command: list[str], words: tuple[str, ...], told: bytes, lock: int | None, limit: float | None
) -> Answer:
    """Run ``command``, which is told ``told``; the answer bears ``words``. See :meth:`Zfs.run`."""
    usual = READ_LIMIT if lock is None else CHANGE_LIMIT
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if told else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        pass_fds=() if lock is None else (lock,),
        start_new_session=True,
        cwd="/",
    )
    try:
        out, err = child.communicate(told or None, timeout=limit or usual)
    except subprocess.TimeoutExpired:
        if lock is None:
            child.kill()
            try:
                child.communicate(timeout=_LAST_WAIT)
            except subprocess.TimeoutExpired:
                pass
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        return Answer(words, None, "", "")
    return Answer(words, child.returncode, _text(out), _text(err))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def failure(answer: Answer, shown: str, does: str = "") -> DsgError:
    """The error to report for a command that failed; nothing holds of what it should have done."""
    what = does or f"zfs {answer.words[0]}"
    message = f"{what} failed for {shown}: {answer.said}"
    facts = {"command": ["zfs", *answer.words], "why": answer.trouble.value}
    if answer.trouble is Trouble.DENIED:
        from dsg_remote_agent.storage.zfs.privileges import advice

        root = shown.removeprefix("zfs:").rpartition("/")[0]
        return NotPermittedError(message, hint=advice(root), facts=facts)
    hints = {
        Trouble.FULL: "free space in the pool or raise the quota ('zfs list -o space'), and sync again; "
        "nothing was changed",
        Trouble.BUSY: "somebody uses it: end what does, or try again later",
        Trouble.READ_ONLY: "an administrator must make the pool or dataset writable again",
        Trouble.KEY: "an administrator must load its key: zfs load-key",
        Trouble.ABSENT: "an administrator must start ZFS on the server ('zpool list' shows its pools)",
        Trouble.MISSING: "check the name; is the pool imported ('zpool list')?",
        Trouble.TIMEOUT: "look at the pool's health on the server: zpool status",
    }
    hint = hints.get(answer.trouble, "see the agent's log on the server, and zpool status there")
    return RemoteStorageError(message, hint=hint, facts=facts)

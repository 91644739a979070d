"""What a command begins before all else, in a process of its own: its configuration, lock, and look at L.

Reading the configuration takes as long as importing asyncio, and a look at L as
long as importing asyncssh and signing in; all of them want an interpreter. So
one process is forked off as soon as the command line is understood, for an
everyday one even before click is imported (:mod:`dsg_client.cli.start`), while
there is one thread, no event loop and no connection. It opens the folder, and
tells, in this order:

* on a socket, the configuration: where to connect is all that this process
  waits for;
* on the same socket, the folder's lock, which it took for this process and
  keeps no share in, and whether it looks;
* on a pipe, the look (:mod:`dsg_client.sync.beside`).

The news for the stat index it saves when it is told so, by the one word that
is sent to it: sooner it would take a core from the sync.

It holds no terminal, and Ctrl-C is none of its business: it stops when the
socket ends. So it does also when the process that it works for is killed; then
it writes nothing any more, as nobody waits for its end. An unfinished transaction is never looked
at: where there is a journal, nothing but the lock is taken, and the look is
made in due time.

Where a process cannot be forked safely, finds anything that is not as it should
be, or ends without a word, this process does all of that itself, in due
time, and has the words for it.

Cheap to import: what the other process needs, that one imports.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from dsg_client.local.workdir import LocalLock
    from dsg_client.remote.address import RemoteAddress
    from dsg_client.sync.beside import BesideLook
    from dsg_client.sync.looking import Looking
    from dsg_client.sync.site import Site

__all__ = ["SAVE", "Ahead", "Direction", "ahead_of"]

_PIPE_BYTES = 1 << 20
_WORD_BYTES = 1 << 18
SAVE = b"s"  # the one word to the other process; without it that one's parent is dead
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Forking is not safe on macOS once its own frameworks have been used, and nobody can tell.
_MAY_FORK = hasattr(os, "fork") and hasattr(socket, "SOCK_SEQPACKET") and sys.platform != "darwin"


class Direction(NamedTuple):
    """Where to connect, and how; the configuration says so."""

    address: RemoteAddress
    transport: str
    agent_command: str
    connect_timeout: float


class Ahead:
    """What was begun for one command, in the folder around ``start``; nothing where nothing could be."""

    def __init__(self, start: str | os.PathLike[str], verify: bool, other: Other | None) -> None:
        self._start = start
        self._verify = verify
        self._other = other
        self._opened: tuple[Any, ...] | None = None  # the root, the configuration's fields, the address's
        self._lock: LocalLock | None = None
        self._look: BesideLook | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def direction(self) -> Direction | None:
        """Where the folder's repository is; None where this process must find that out itself.

        Waits until the other process has read the configuration.
        """
        if self._other is None:
            return None
        word, _ = self._other.word()
        if word is None:
            return None
        self._opened = word
        _, config, address = word
        if address is None:
            return None
        from dsg_client.remote.address import RemoteAddress

        return Direction(
            RemoteAddress(*address), config["transport"], config["agent_command"], config["connect_timeout"]
        )

    def open(self, *, accept_new_host_key: bool = False) -> Site:
        """The working folder around ``start``, after :meth:`direction`; ConfigError says what is missing.

        Waits until the other process has taken the lock.
        """
        from dsg_client.sync.site import Site, open_site

        if self._opened is None:
            self._give_up()
            return open_site(self._start, accept_new_host_key=accept_new_host_key, ahead=self)
        from dsg_client.local.config import Config
        from dsg_client.local.workdir import open_workdir

        root, config, _ = self._opened
        site = Site(open_workdir(root), Config(**config), accept_new_host_key=accept_new_host_key, ahead=self)
        self._take_over(site)
        return site

    def _take_over(self, site: Site) -> None:
        assert self._other is not None
        word, fds = self._other.word()
        looks, clock = word or (False, None)
        if fds:
            self._lock = site.workdir.received_lock(fds[0])
        if not looks:
            self._give_up()  # it may have a share in the lock to its very end
            return
        if clock is not None:
            from dsg_client.local.index import FileClock

            site.clock = FileClock(*clock)
        from dsg_client.sync.beside import BesideLook

        self._look = BesideLook(site, self._other, self._verify)

    def take_lock(self) -> LocalLock | None:
        """The folder's lock, held since before the look began; the caller lets it go."""
        lock, self._lock = self._lock, None
        return lock

    def take_look(self) -> Looking | None:
        """The look that is under way, once."""
        look, self._look = self._look, None
        return look

    def stop(self) -> None:
        """Have the other process end soon, and nobody wait for its word; from any thread."""
        if self._other is not None:
            self._other.stop()

    def save(self) -> None:
        """Have the other process save what it learnt for the stat index: now is a good time."""
        if self._other is not None:
            self._other.save()

    def over(self) -> None:
        """Wait until the other process changes nothing any more: it may be saving the stat index."""
        if self._other is not None:
            self._other.over()

    def close(self) -> None:
        """Give up what nobody took, and wait for its end. Repeatable."""
        self._give_up()
        lock = self.take_lock()
        if lock is not None:
            lock.release()

    def _give_up(self) -> None:
        if self._other is not None:
            self._other.close()


def ahead_of(
    command: str | None,
    *,
    verify: bool = False,
    start: str | os.PathLike[str] = ".",
    begin: bool = True,
) -> Ahead:
    """Begin what a command in the folder around ``start`` will need. Close it; a context manager.

    ``command`` is who takes the lock, None for nobody. Without ``begin``
    nothing is begun.
    """
    may = begin and _MAY_FORK and threading.active_count() == 1
    return Ahead(start, verify, _fork(start, command, verify) if may else None)


class Other:
    """The other process, from this one's side."""

    def __init__(self, pid: int, words: socket.socket, answers: int) -> None:
        self._pid = pid
        self._words = words
        self._answers = answers
        self._lock = threading.Lock()

    def word(self) -> tuple[tuple[Any, ...] | None, list[int]]:
        """Its next word, and the descriptors that came with it; None when it ended without one."""
        try:
            data, fds, _, _ = socket.recv_fds(
                self._words, _WORD_BYTES, 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
            )
            word: tuple[Any, ...] = marshal.loads(data)  # noqa: S302  written by our own process
        except (OSError, EOFError, ValueError, TypeError):
            return None, []
        return word, fds

    def take_answers(self) -> int:
        """The pipe through which the look comes. To be closed."""
        fd, self._answers = self._answers, -1
        return fd

    def stop(self) -> None:
        """Have it end soon, and save what it learnt; from any thread."""
        with suppress(OSError):
            self._words.send(SAVE)
        with suppress(OSError):
            self._words.shutdown(socket.SHUT_RDWR)  # whoever waits for a word is told, too

    def save(self) -> None:
        """Have it save what it learnt, when it has told what it found."""
        with suppress(OSError):
            self._words.send(SAVE)
            self._words.shutdown(socket.SHUT_WR)

    def over(self) -> None:
        """Wait for its end."""
        self.save()
        with self._lock:
            pid, self._pid = self._pid, 0
            if pid:
                with suppress(ChildProcessError):  # whoever started us has the system forget its children
                    os.waitpid(pid, 0)

    def close(self) -> None:
        """Stop it, whatever it is at, and wait for its end."""
        self.stop()
        if self._answers >= 0:
            os.close(self._answers)  # or it would wait for somebody to read what it found
            self._answers = -1
        self.over()
        self._words.close()


def _fork(start: str | os.PathLike[str], command: str | None, verify: bool) -> Other | None:
    try:
        words, its_words = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answers, its_answers = os.pipe()
    except OSError:
        return None
    with suppress(OSError, AttributeError):
        fcntl.fcntl(its_answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    parent = os.getpid()
    # A signal between here and the child's own settings would be taken by handlers that mean the parent.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        pid = os.fork()
        if not pid:
            words.close()
            os.close(answers)
            _child(start, command, verify, parent, its_words, its_answers)
    except OSError:
        words.close()
        os.close(answers)
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        its_words.close()
        os.close(its_answers)
    return Other(pid, words, answers)


def _child(
    start: str | os.PathLike[str],
    command: str | None,
    verify: bool,
    parent: int,
    words: socket.socket,
    answers: int,
) -> NoReturn:
    try:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
        # Where the standard descriptors were closed, these may be among them.
        words = socket.socket(fileno=fcntl.fcntl(words.detach(), fcntl.F_DUPFD_CLOEXEC, 3))
        answers = fcntl.fcntl(answers, fcntl.F_DUPFD_CLOEXEC, 3)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        from dsg_client.sync.lookout import look_out

        look_out(start, command, verify, parent, words, answers)
    except BaseException:  # noqa: BLE001  an end without an answer says enough
        os._exit(1)
    os._exit(0)

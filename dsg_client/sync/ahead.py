"""What a sync begins before all else: the folder's lock, and the look at L in a process of its own.

A look takes this process's one interpreter as long as signing in does, and
both want it at the same time. So it is forked off while there is one thread,
no event loop and no connection, and works on another core while asyncssh is
imported. It is the same :class:`~dsg_client.sync.looking.Look`, under the
lock of the process that waits for it:

* its answers come through a pipe: news, then what it found, or why it failed;
* it holds neither the lock nor the terminal, and Ctrl-C is none of its
  business: it stops when the other pipe, on which nothing is ever sent, ends.
  So it does also when the process it works for is killed;
* an unfinished transaction is never looked at: where there is a journal,
  nothing is begun, and the look is made in due time.

Where a process cannot be forked safely, or ends without an answer, the look
is made in the process that wants it.
"""

from __future__ import annotations

import fcntl
import gc
import marshal
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from dsg_client.sync.looking import Look, Looked, Looking, Stopped
from protocol.codec import Buffer
from protocol.errors import DsgError, error_from_wire
from protocol.tree.actions import JOURNAL_DECIDED, JOURNAL_PREPARED
from protocol.tree.staging import sweep

if TYPE_CHECKING:
    from dsg_client.local.workdir import LocalLock
    from dsg_client.sync.site import Site

__all__ = ["Ahead", "ahead_of"]

_PIPE_BYTES = 1 << 20
_TELL_EVERY = 0.1  # seconds between two news of a look that is hashing
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Forking is not safe on macOS once its own frameworks have been used, and nobody can tell.
_MAY_FORK = hasattr(os, "fork") and sys.platform != "darwin"


class Ahead:
    """What was begun for one command; empty where nothing could be."""

    def __init__(self, lock: LocalLock | None = None, look: BesideLook | None = None) -> None:
        self._lock = lock
        self._look = look
        self._taken = False

    def take_lock(self) -> LocalLock | None:
        """The folder's lock, held since before the look began; the caller lets it go."""
        lock, self._lock = self._lock, None
        return lock

    def take_look(self) -> Looking | None:
        """The look that is under way, once."""
        if self._taken:
            return None
        self._taken = True
        return self._look

    def over(self) -> None:
        """Wait until the other process changes nothing any more: it may be saving the stat index."""
        if self._look is not None:
            self._look.over()

    def close(self) -> None:
        """Give up what nobody took, and wait for its end."""
        if self._look is not None:
            self._look.close()
        if self._lock is not None:
            self._lock.release()


@contextmanager
def ahead_of(site: Site, command: str | None, *, verify: bool = False) -> Iterator[None]:
    """Begin what ``site`` will need within the context; ``command`` is who takes the lock, None for nobody.

    Where the lock is taken, or anything else is not as it should be, nothing
    is begun: whoever comes to it in due time has the words for it.
    """
    site.ahead = ahead = _begin(site, command, verify)
    try:
        yield
    finally:
        site.ahead = None
        ahead.close()


def _begin(site: Site, command: str | None, verify: bool) -> Ahead:
    lock = None
    try:
        if command is not None:
            lock = site.workdir.lock(command)
        if any(_stands(site, path) for path in (JOURNAL_PREPARED, JOURNAL_DECIDED)):
            return Ahead(lock)
        if lock is not None:
            sweep(site.tree)
        return Ahead(lock, _fork(site, lock, verify))
    except (DsgError, OSError):
        if lock is not None:
            lock.release()
        return Ahead()


def _stands(site: Site, path: str) -> bool:
    try:
        site.tree.stat(path)
    except FileNotFoundError:
        return False
    return True


def _fork(site: Site, lock: LocalLock | None, verify: bool) -> BesideLook | None:
    if not _MAY_FORK or threading.active_count() > 1:
        return None
    site.clock  # noqa: B018  measured once, for both
    answers, to_us = os.pipe()
    held_by_child, hold = os.pipe()
    with suppress(OSError, AttributeError):
        fcntl.fcntl(to_us, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal between here and the child's own settings would be taken by handlers that mean the parent.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        pid = os.fork()
        if not pid:
            _child(site, lock, verify, to_us, held_by_child, (answers, hold))
    except OSError:
        for descriptor in (answers, hold):
            os.close(descriptor)
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        for descriptor in (to_us, held_by_child):
            os.close(descriptor)
    return BesideLook(site, pid, answers, hold, verify)


class BesideLook:
    """A look in a process of its own; see :class:`~dsg_client.sync.looking.Looking`."""

    def __init__(self, site: Site, pid: int, answers: int, hold: int, verify: bool) -> None:
        self._site = site
        self._verify = verify
        self._pid = pid
        self._answers = answers
        self._hold = hold
        self._lock = threading.Lock()
        self._stopped = False
        self._here: Look | None = None
        self.seen = 0
        self.bytes_read = 0
        self.differs = False

    def run(self, news: Callable[[], None]) -> Looked:
        answers, self._answers = self._answers, -1
        with open(answers, "rb", buffering=_PIPE_BYTES) as pipe:
            try:
                found = self._found(pipe, news)
            except (EOFError, ValueError, TypeError):
                found = None  # it was ended, by whomever
        if found is not None:
            return found
        self.over()
        if self._stopped:
            raise Stopped
        self._here = here = Look(self._site, self._site.cache().manifest.algorithm, verify=self._verify)

        def told() -> None:
            self.seen, self.bytes_read, self.differs = here.seen, here.bytes_read, here.differs
            news()

        return here.run(told)

    def _found(self, pipe: BinaryIO, news: Callable[[], None]) -> Looked:
        while True:
            kind, *told = marshal.load(pipe)  # noqa: S302  written by our own process
            if kind == "news":
                self.seen, self.bytes_read, self.differs = told
                news()
            elif kind == "looked":
                return Looked.received(told, pipe.read)
            elif kind == "stopped":
                raise Stopped
            else:
                raise error_from_wire(told[0])

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            hold, self._hold = self._hold, -1
        if hold >= 0:
            os.close(hold)
        if self._here is not None:
            self._here.stop()

    def over(self) -> None:
        """Wait for the end of the process."""
        with self._lock:
            pid, self._pid = self._pid, 0
            if pid:
                with suppress(ChildProcessError):  # whoever started us has the system forget its children
                    os.waitpid(pid, 0)

    def close(self) -> None:
        """Give it up, whatever it is at, and wait for its end."""
        self.stop()
        if self._answers >= 0:
            os.close(self._answers)  # or it would wait for somebody to read what it found
            self._answers = -1
        self.over()


# In the other process.


def _child(
    site: Site, lock: LocalLock | None, verify: bool, to_us: int, held: int, not_ours: tuple[int, ...]
) -> NoReturn:
    try:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
        gc.disable()
        for descriptor in (*not_ours, *([lock.fileno()] if lock is not None else ())):
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        with open(to_us, "wb", buffering=_PIPE_BYTES) as pipe:
            _look(site, verify, _Teller(pipe), held)
    except BaseException:  # noqa: BLE001  an end without an answer says enough
        os._exit(1)
    os._exit(0)


class _Teller:
    """Sends what the look tells, from whichever thread."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def tell(self, *what: Any, parts: Iterable[Buffer] = ()) -> None:
        with self._lock:
            marshal.dump(what, self._pipe)
            for part in parts:
                self._pipe.write(part)
            self._pipe.flush()


def _look(site: Site, verify: bool, teller: _Teller, held: int) -> None:
    try:
        cache = site.cache().manifest
        look = Look(site, cache.algorithm, verify=verify)
        told = False

        def news() -> None:
            nonlocal told
            if look.differs and not told:
                told = True
                tell()

        def tell() -> None:
            teller.tell("news", look.seen, look.bytes_read, look.differs)

        threading.Thread(target=_watch, args=(held, look, tell), daemon=True).start()
        try:
            looked = look.scan(news, cache)
            head, parts = looked.sent()
            teller.tell("looked", *head, parts=parts)
        finally:
            os.nice(10)  # the sync goes on; nobody waits for the index
            look.save()
    except Stopped:
        teller.tell("stopped")
    except DsgError as error:
        teller.tell("failed", error.to_wire())


def _watch(held: int, look: Look, tell: Callable[[], None]) -> None:
    """Stop the look when the process that wants it lets go of its end, or is no more; until then, tell."""
    poll = select.poll()
    poll.register(held, 0)  # nothing but its end
    try:
        while not poll.poll(_TELL_EVERY * 1000):
            tell()
    except OSError:
        pass  # nobody listens any more
    look.stop()

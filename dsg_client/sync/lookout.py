"""The process that :mod:`dsg_client.sync.ahead` forks off: the folder opened, locked, and looked at."""

from __future__ import annotations

import gc
import marshal
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dsg_client.local.config import Config, load_config
from dsg_client.local.workdir import find_root, open_workdir, refuse_overlap
from dsg_client.remote.address import parse_address
from dsg_client.sync.ahead import SAVE
from protocol.errors import DsgError
from protocol.tree.actions import JOURNAL_DECIDED, JOURNAL_PREPARED
from protocol.tree.staging import sweep

if TYPE_CHECKING:
    from dsg_client.sync.looking import Look
    from dsg_client.sync.site import Site
    from protocol.codec import Buffer

__all__ = ["look_out"]

_PIPE_BYTES = 1 << 20
_TELL_EVERY = 0.1  # seconds between two news of a look that is hashing


def look_out(
    start: str | os.PathLike[str],
    command: str | None,
    verify: bool,
    parent: int,
    words: socket.socket,
    answers: int,
) -> None:
    """Tell ``parent`` what it waits for; an exception tells it that it must do all that itself.

    Ends the process when the other end of ``words`` goes away before a look
    has begun, and the look when it has. What it learnt for the stat index is
    saved when that end says so: the sync goes on, and nobody waits for the
    index. For a ``parent`` that is dead nothing is saved: whoever killed it thinks
    that nobody writes here any more.
    """
    gc.disable()
    watch = _Watch(words)
    root = find_root(start)
    config = load_config(root)
    _tell_configuration(root, config, words)
    # With it comes all that a look needs; the other has what it waited for.
    from dsg_client.sync.site import Site

    site = Site(open_workdir(root), config)
    if not _prepare(site, command, parent, words):
        return
    teller = _Teller(open(answers, "wb", buffering=_PIPE_BYTES))  # noqa: SIM115  closed by close
    look = _look(site, verify, teller, watch)
    teller.close()
    if look is not None and words.recv(1) == SAVE:
        look.save()


def _tell_configuration(root: Path, config: Config, words: socket.socket) -> None:
    try:
        address = parse_address(config.require_repository(), folder=str(root))
        if address.folder is not None:
            refuse_overlap(root, address.folder)
    except DsgError:
        told = None  # the other has the words for it, if it wants to connect at all
    else:
        told = (address.path, address.host, address.user)
    words.send(marshal.dumps((str(root), config.to_map(), told)))


def _prepare(site: Site, command: str | None, parent: int, words: socket.socket) -> bool:
    """Take the lock, and tell so; whether there is something to look at."""
    if command is None:
        looks = not _unfinished(site)
        words.send(marshal.dumps((looks, None)))
        return looks
    lock = site.workdir.lock(command, pid=parent)
    if looks := not _unfinished(site):
        sweep(site.tree)
    clock = site.clock
    word = marshal.dumps((looks, tuple(clock.to_map().values()) if clock is not None else None))
    lock.hand_over(lambda fd: socket.send_fds(words, [word], [fd]))
    return looks


def _unfinished(site: Site) -> bool:
    return any(_stands(site, path) for path in (JOURNAL_PREPARED, JOURNAL_DECIDED))


def _stands(site: Site, path: str) -> bool:
    try:
        site.tree.stat(path)
    except FileNotFoundError:
        return False
    return True


class _Teller:
    """Sends what the look tells, from whichever thread."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def tell(self, *what: Any, parts: Iterable[Buffer] = ()) -> None:
        with self._lock, suppress(BrokenPipeError):  # nobody listens any more
            marshal.dump(what, self._pipe)
            for part in parts:
                self._pipe.write(part)
            self._pipe.flush()

    def close(self) -> None:
        with self._lock, suppress(BrokenPipeError):
            self._pipe.close()


class _Watch:
    """A thread that sees the other end of ``words`` go away: then it ends the process, or what is told it."""

    def __init__(self, words: socket.socket) -> None:
        self._words = words
        self._stop: Callable[[], None] = lambda: os._exit(1)
        self._tell: Callable[[], None] = lambda: None
        threading.Thread(target=self._run, daemon=True).start()

    def turn_to(self, stop: Callable[[], None], tell: Callable[[], None]) -> None:
        """From now on call ``stop`` at the end, and ``tell`` now and then until it comes."""
        self._stop, self._tell = stop, tell

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._words, 0)  # nothing but its end
        try:
            while not poll.poll(_TELL_EVERY * 1000):
                self._tell()
        except OSError:
            pass  # nobody listens any more
        self._stop()


def _look(site: Site, verify: bool, teller: _Teller, watch: _Watch) -> Look | None:
    """Look, and tell what came of it; the look that was begun, whose news of the stat index can be saved."""
    from dsg_client.sync.looking import Look, Stopped

    look = None
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

        watch.turn_to(look.stop, tell)
        looked = look.scan(cache, news)
        head, parts = looked.sent()
        teller.tell("looked", *head, parts=parts)
    except Stopped:
        teller.tell("stopped")
    except DsgError as error:
        teller.tell("failed", error.to_wire())
    return look

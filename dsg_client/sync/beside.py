"""A look at L that another process makes: for whoever waits for it, the same as one made here.

The other process (:mod:`dsg_client.sync.lookout`) works under the lock that this
one holds. Where it ends without an answer, the look is made here.
"""

from __future__ import annotations

import marshal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from dsg_client.sync.looking import Look, Looked, Stopped
from protocol.errors import error_from_wire

if TYPE_CHECKING:
    from dsg_client.sync.ahead import Other
    from dsg_client.sync.site import Site
    from protocol.manifest import Manifest

__all__ = ["BesideLook"]

_PIPE_BYTES = 1 << 20


class BesideLook:
    """See :class:`~dsg_client.sync.looking.Looking`. ``other``: the process that looks."""

    def __init__(self, site: Site, other: Other, verify: bool) -> None:
        self._site = site
        self._verify = verify
        self._other = other
        self._lock = threading.Lock()  # of the two below
        self._stopped = False
        self._here: Look | None = None
        self.seen = 0
        self.bytes_read = 0
        self.differs = False

    def run(self, cache: Manifest, news: Callable[[], None]) -> Looked:
        with open(self._other.take_answers(), "rb", buffering=_PIPE_BYTES) as pipe:
            try:
                found = self._found(pipe, cache, news)
            except (EOFError, ValueError, TypeError):
                found = None  # it was ended, by whomever, or C is another one now
        if found is not None:
            return found
        self._other.over()
        here = Look(self._site, cache.algorithm, verify=self._verify)
        with self._lock:
            if self._stopped:
                raise Stopped
            self._here = here

        def told() -> None:
            self.seen, self.bytes_read, self.differs = here.seen, here.bytes_read, here.differs
            news()

        return here.run(cache, told)

    def _found(self, pipe: BinaryIO, cache: Manifest, news: Callable[[], None]) -> Looked:
        while True:
            kind, *told = marshal.load(pipe)  # noqa: S302  written by our own process
            if kind == "news":
                self.seen, self.bytes_read, self.differs = told
                news()
            elif kind == "looked":
                return Looked.received(told, pipe.read, cache)
            elif kind == "stopped":
                raise Stopped
            else:
                raise error_from_wire(told[0])

    def stop(self) -> None:
        self._other.stop()
        with self._lock:
            self._stopped = True
            here = self._here
        if here is not None:
            here.stop()

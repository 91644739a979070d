"""A look at L: one scan, its entries and what was noticed, and the stat index brought up to date.

:class:`Look` runs it in the process it is made in. :mod:`dsg_client.sync.ahead`
runs one in a process of its own, which looks the same to whoever waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dsg_client.local.hashing import Stopped
from dsg_client.sync.localtree import LocalTree
from protocol.codec import Buffer
from protocol.manifest import Manifest
from protocol.paths import PathProblem
from protocol.value import Value

if TYPE_CHECKING:
    from dsg_client.sync.site import Site

__all__ = ["Look", "Looked", "Looking", "Stopped"]


class Looked(Value):
    """What a look found."""

    local: LocalTree
    #: Names that only Windows could not hold, and data folders that are links.
    warnings: tuple[PathProblem, ...]
    #: With ``verify``: paths whose content changed under unchanged numbers.
    rotten: tuple[str, ...]

    def sent(self) -> tuple[tuple[Any, ...], list[Buffer]]:
        """For another process: plain values, and what is large beside them."""
        head, parts = self.local.sent()
        warnings = tuple((w.path, w.reason, w.normalized) for w in self.warnings)
        return (head, warnings, self.rotten), parts

    @classmethod
    def received(cls, told: Sequence[Any], read: Callable[[int], bytes], cache: Manifest) -> Looked:
        """What :meth:`sent` gave; ``read`` gives the next so many bytes of the parts.

        EOFError when they end early, ValueError when it was compared with another C.
        """
        head, warnings, rotten = told
        return cls(LocalTree.received(head, read, cache), tuple(PathProblem(*w) for w in warnings), rotten)


class Looking(Protocol):
    """A look that is to be run, in a thread, or runs already; its properties may be read at any time."""

    @property
    def seen(self) -> int:
        """Entries found so far."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes hashed so far."""
        ...

    @property
    def differs(self) -> bool:
        """Whether something was met that the stat index does not know as it is."""
        ...

    def run(self, cache: Manifest, news: Callable[[], None]) -> Looked:
        """Look, to the end, once, and compare with C; ``news`` is called now and then.

        Raises what a scan raises, and Stopped.
        """
        ...

    def stop(self) -> None:
        """Have :meth:`run` raise Stopped soon; from any thread."""
        ...


class Look:
    """A look in this process."""

    def __init__(self, site: Site, algorithm: str, *, verify: bool = False) -> None:
        """``verify`` reads every byte, whatever the stat index says."""
        self._site = site
        self._algorithm = algorithm
        self._scan = site.scan(algorithm, verify=verify)
        self._stopped = False
        self._seen = 0

    @property
    def seen(self) -> int:
        return self._seen

    @property
    def differs(self) -> bool:
        return self._scan.differs

    @property
    def bytes_read(self) -> int:
        return self._scan.bytes_read

    def run(self, cache: Manifest, news: Callable[[], None]) -> Looked:
        """See :class:`Looking`. What was read goes into the stat index, also when the scan fails.

        That needs no lock: the index is replaced at once, and each of its rows is a fact.
        """
        try:
            return self.scan(cache, news)
        finally:
            self.save()

    def scan(self, cache: Manifest, news: Callable[[], None]) -> Looked:
        """The same without the index, which :meth:`save` brings up to date afterwards."""

        def tick(count: int) -> None:
            self._seen = count
            news()
            if self._stopped:
                raise Stopped

        local = LocalTree.read(self._scan.stretches(), cache, tick)
        return Looked(local, tuple(self._scan.warnings), tuple(self._scan.rotten))

    def save(self) -> None:
        """Put what was read into the stat index."""
        self._site.save_index(self._scan.changes, self._algorithm)

    def stop(self) -> None:
        self._stopped = True
        self._scan.stop()

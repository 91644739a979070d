"""L as it was scanned: its entries, and the numbers that tell whether a file was touched since."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Any

from dsg_client.local.scan import Scanned
from dsg_client.sync.since import Since
from protocol.codec import Buffer
from protocol.manifest import LINK, Entry, Manifest
from protocol.tree.change import Expected
from protocol.tree.fs import Kind
from protocol.value import Value

__all__ = ["LocalTree"]

_TELL_EVERY = 512  # entries


class LocalTree(Value):
    """One complete scan. Entries are kept encoded, identities as plain numbers: about 110 bytes an entry."""

    manifest: Manifest
    _numbers: array[int]  # size and inode of each entry
    _times: array[int]  # mtime_ns and ctime_ns of each entry; a time may lie before 1970
    since: Since | None = None

    @classmethod
    def read(
        cls, stretches: Iterable[Collection[Scanned]], algorithm: str, tick: Callable[[int], None]
    ) -> LocalTree:
        """Run the scan to its end; ``tick`` is told the number of entries so far, now and then."""
        numbers, times = array("Q"), array("q")

        def entries() -> Iterator[list[Entry]]:
            count = told = 0
            for stretch in stretches:
                numbers.extend([n for _, (size, _, _, inode) in stretch for n in (size, inode)])
                times.extend([n for _, (_, mtime_ns, ctime_ns, _) in stretch for n in (mtime_ns, ctime_ns)])
                yield [entry for entry, _ in stretch]
                count += len(stretch)
                if count - told >= _TELL_EVERY:
                    told = count
                    tick(count)
            tick(count)

        return cls(Manifest.from_entries(chain.from_iterable(entries()), algorithm), numbers, times)

    def sent(self) -> tuple[tuple[Any, ...], list[Buffer]]:
        """For another process on this machine: plain values, and what is large beside them."""
        manifest = self.manifest
        parts: list[Buffer] = [
            manifest.to_bytes(),
            memoryview(self._numbers).cast("B"),
            memoryview(self._times).cast("B"),
        ]
        since = self.since and self.since.sent()
        return (since, manifest.algorithm, manifest.count, manifest.digest, *map(len, parts)), parts

    @classmethod
    def received(cls, head: tuple[Any, ...], read: Callable[[int], bytes]) -> LocalTree:
        """What :meth:`sent` gave; EOFError when ``read`` has too little."""
        since, algorithm, count, digest, *lengths = head
        parts = []
        for length in lengths:
            part = read(length)
            if len(part) != length:
                raise EOFError
            parts.append(part)
        manifest = Manifest.known(algorithm, count, digest, parts[0])
        numbers, times = array("Q"), array("q")
        numbers.frombytes(parts[1])
        times.frombytes(parts[2])
        return cls(manifest, numbers, times, since and Since.received(since))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.manifest)

    def expected(self, paths: Collection[str]) -> dict[str, Expected]:
        """What stood at each of ``paths``; a path that L did not have is left out."""
        wanted = set(paths)
        found: dict[str, Expected] = {}
        if self.since is not None:
            for path in wanted & self.since.places.keys():
                number, entry = self.since.places[path]
                found[path] = self._expected(entry, number)
        wanted -= found.keys()
        if wanted:
            for number, entry in enumerate(self.manifest):
                if entry[0] in wanted:
                    found[entry[0]] = self._expected(entry, number)
        return found

    def _expected(self, entry: Entry, number: int) -> Expected:
        size, inode = self._numbers[2 * number : 2 * number + 2]
        mtime_ns, ctime_ns = self._times[2 * number : 2 * number + 2]
        link = entry.kind == LINK
        return Expected(
            kind=Kind.LINK if link else Kind.FILE,
            size=size,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
            inode=inode,
            target=entry.content.decode() if link else "",
        )

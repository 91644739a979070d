"""Reading L: one pass over the working folder that yields its entries in canonical order.

A file whose size, mtime, ctime and inode are those of its row in the stat
index is not read; the others are hashed in threads while the walk goes on,
and come out in order.

A scan is all or nothing: what cannot be synced is collected, *all of it*, and
raised at the end, when everything else has been yielded:

1. names, links and kinds that are refused: PathsRefusedError (exit 12);
2. files and folders that cannot be read, and file systems mounted inside:
   LocalStorageError (exit 10);
3. files that changed while they were read: LocalChangedError (exit 15).

A caller must therefore not act before the iteration has ended. The index
changes are good all the same, also after an error or an interruption, so that
hours of hashing are not done twice.
"""

from __future__ import annotations

import errno
import os
import stat as stat_bits
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from dsg_client.local.findings import Findings
from dsg_client.local.hashing import FileRead, HashPool, OpenFolder, identity_of
from dsg_client.local.index import FileClock, IndexChanges, IndexRow
from dsg_client.local.scope import Scope
from dsg_client.local.stretch import Scanned, Stretch
from dsg_client.local.walk import Run, Walk
from protocol.digest import DEFAULT
from protocol.manifest import FILE, LINK, Entry
from protocol.paths import PathProblem, check_link_target, sort_key
from protocol.tree.fs import Capabilities

__all__ = ["Scan"]

_STRETCH = 512  # entries looked at together
_LOOKAHEAD = 4096  # entries that may wait for a file before them to be hashed
_KINDS = {
    stat_bits.S_IFIFO: "is a fifo (named pipe)",
    stat_bits.S_IFSOCK: "is a socket",
    stat_bits.S_IFCHR: "is a device",
    stat_bits.S_IFBLK: "is a device",
}
_EFFECTIVE = os.access in os.supports_effective_ids
_NO_ROW: IndexRow = ("", 0, 0, 0, 0, b"")


class Scan:
    """One pass over a working folder. Iterate it once, to the end; then read the counters."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        scope: Scope,
        *,
        algorithm: str = DEFAULT,
        capabilities: Capabilities | None = None,
        index: Iterable[IndexRow] = (),
        clock: FileClock | None = None,
        portable_names: bool = False,
        verify: bool = False,
        threads: int | None = None,
    ) -> None:
        """A scan of ``root`` by the rules of ``scope``; nothing is read before it is iterated.

        ``index``: rows of the stat index, in canonical order. ``clock``: the
        file system's, without which no new row is trusted. ``verify`` reads
        every byte, whatever the index says. ``capabilities`` tells of a file
        system that hands back names in another normal form than it was given.
        ValueError when the digest algorithm is not installed.
        """
        self.findings = Findings(portable_names)
        #: What to change in the stat index; good also when the scan failed or was given up.
        self.changes = IndexChanges()
        self.files = self.links = self.bytes = 0
        self.hashed_files = self.hashed_bytes = 0
        #: Something was met that the stat index does not know as it is; may be read from any thread.
        self.differs = False
        #: With ``verify``: paths whose content changed under unchanged numbers. A failing disk, most likely.
        self.rotten: list[str] = []
        self._index = _Rows(index)
        self._clock = clock
        self._verify = verify
        self._walk = Walk(
            os.fspath(root),
            scope,
            self.findings,
            to_nfc=capabilities is not None and not capabilities.keeps_normal_form,
        )
        self._pool = HashPool(algorithm, threads or min(4, (os.cpu_count() or 1) + 1))
        # In canonical order: entries, files being read with their old row, paths to drop from the index.
        self._waiting: deque[Stretch | _Reading | str] = deque()
        self._queued = 0  # entries and files in it

    @property
    def warnings(self) -> list[PathProblem]:
        """Names that only Windows could not hold, and data folders that are links."""
        return self.findings.warnings

    @property
    def bytes_read(self) -> int:
        """Bytes hashed so far, also from another thread while the scan runs; for showing progress."""
        return self._pool.bytes_read

    def stop(self) -> None:
        """Have the iteration raise Stopped soon, even within a large file; from any thread."""
        self._pool.stop()

    def __iter__(self) -> Iterator[Scanned]:
        for stretch in self.stretches():
            yield from stretch.scanned()

    def stretches(self) -> Iterator[Stretch]:
        """The same by neighbours, of which whoever goes through all of them can do many at once."""
        try:
            for run in self._walk:
                for start in range(0, len(run.items), _STRETCH):
                    yield from self._visit(run, run.items[start : start + _STRETCH])
            while self._waiting:
                yield from self._ready(force=True)
            while self._index.path:
                self._skip_row()
            yield from self._ready(force=False)
        finally:
            self._pool.close()
            self._walk.close()
        self.findings.raise_if_any()

    def _visit(self, run: Run, items: list[os.DirEntry[str]]) -> Iterator[Stretch]:
        """A few neighbours: those that the index knows as they are go through at once."""
        known = self._known(run, items)
        if known is None:
            yield from self._one_by_one(run, items)
            return
        stretch, others = known
        at = 0
        for other in [*others, len(items)]:
            if at < other:
                self._index.drop(other - at)
                self.files += other - at
                self.bytes += sum(stretch.sizes[at:other])
                yield from self._passed(stretch.part(at, other) if others else stretch)
            if other < len(items):
                yield from self._one_by_one(run, [items[other]])
            at = other + 1

    def _known(self, run: Run, items: list[os.DirEntry[str]]) -> tuple[Stretch, list[int]] | None:
        """What is found where all of these are files that stand next in the index, in this order.

        With the positions of those that look otherwise than there. None where
        each must be looked at for itself.
        """
        if not run.fresh or self._verify or not self._walk.plain_spelling:
            return None
        rows = self._index.next_rows(len(items))
        prefix = run.prefix
        paths = [prefix + item.name for item in items]
        if [row[0] for row in rows] != paths:
            return None
        try:
            stats = [item.stat(follow_symlinks=False) for item in items]
        except OSError:
            return None
        modes = [found.st_mode for found in stats]
        executable = {mode: mode & 0o100 != 0 for mode in set(modes)}
        if any(mode & 0o170000 != stat_bits.S_IFREG for mode in executable):
            return None
        _, sizes, mtimes_ns, ctimes_ns, inodes, contents = map(list, zip(*rows, strict=True))
        stretch = Stretch(
            FILE,
            paths,
            contents,
            [executable[mode] for mode in modes],
            [found.st_size for found in stats],
            [found.st_mtime_ns for found in stats],
            [found.st_ctime_ns for found in stats],
            [found.st_ino for found in stats],
        )
        if (sizes, mtimes_ns, ctimes_ns, inodes) == stretch[4:]:
            return stretch, []
        identities = zip(*stretch[4:], strict=True)
        return stretch, [
            n for n, (row, identity) in enumerate(zip(rows, identities, strict=True)) if row[1:5] != identity
        ]

    def _one_by_one(self, run: Run, items: list[os.DirEntry[str]]) -> Iterator[Stretch]:
        prefix = run.prefix
        spell = None if self._walk.plain_spelling else self._walk.spell
        for item in items:
            name = item.name
            path = prefix + (name if spell is None else spell(item))
            try:
                if run.fresh:
                    found = item.stat(follow_symlinks=False)
                else:
                    found = os.stat(name, dir_fd=run.folder.fd, follow_symlinks=False)
            except OSError as error:
                self.findings.failed(path, error)
                continue
            mode = found.st_mode
            if self._index.path != path and self._index.path:
                self._seek_row(path)
            if mode & 0o170000 != stat_bits.S_IFREG:
                special = self._special(run.folder, name, path, found)
                if special is not None:
                    yield from self._passed(special)
                continue
            identity = identity_of(found)
            old = _NO_ROW
            if self._index.path == path:
                old = self._index.take()
            if old[1:5] == identity and not self._verify:
                self.files += 1
                self.bytes += identity[0]
                entry = Entry(path, FILE, old[5], mode & 0o100 != 0, identity[0], identity[1])
                yield from self._passed(Stretch.of_one(entry, identity))
                continue
            self.differs = True
            if not self.findings.refused:
                file = FileRead(run.folder, name, path, identity)
                self._pool.add(file)
                self._waiting.append(_Reading(file, old))
                self._queued += 1
                yield from self._ready(force=self._queued > _LOOKAHEAD)
            elif not os.access(name, os.R_OK, dir_fd=run.folder.fd, effective_ids=_EFFECTIVE):
                # The scan fails anyway and reads nothing more; the list is to be complete.
                self.findings.failed(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))

    def _passed(self, stretch: Stretch) -> Iterator[Stretch]:
        """Yield these, or have them wait for a file before them to be read."""
        if not self._waiting:
            yield stretch
            return
        self._waiting.append(stretch)
        self._queued += len(stretch.paths)
        if self._queued > _LOOKAHEAD:
            yield from self._ready(force=True)

    def _special(self, folder: OpenFolder, name: str, path: str, found: os.stat_result) -> Stretch | None:
        """A link; anything else is refused."""
        if not stat_bits.S_ISLNK(found.st_mode):
            kind = _KINDS.get(stat_bits.S_IFMT(found.st_mode))
            if kind is None:
                self.findings.changed.append((path, "became something else"))
            else:
                self.findings.refuse(PathProblem(path, f"{kind}; only files and links can be synced"))
            return None
        try:
            target = os.readlink(name, dir_fd=folder.fd)
        except OSError as error:
            self.findings.failed(path, error)
            return None
        reason = check_link_target(path, target)
        if reason is not None:
            self.findings.refuse(PathProblem(path, reason))
            return None
        self.links += 1
        return Stretch.of_one(Entry(path, LINK, target.encode(), False, 0, 0), identity_of(found))

    # The stat index

    def _seek_row(self, path: str) -> None:
        """Go on in the index to the first row that is not before ``path``."""
        key = sort_key(path)
        while self._index.path and sort_key(self._index.path) < key:
            self._skip_row()

    def _skip_row(self) -> None:
        self.differs = True
        path = self._index.take()[0]
        # In a scan that fails, a path may be missing only because its folder could not be read.
        if not self.findings.any:
            if self._waiting:
                self._waiting.append(path)
            else:
                self.changes.drop(path)

    # Files that were read

    def _ready(self, *, force: bool) -> Iterator[Stretch]:
        """What can be yielded now, in order; with ``force`` at least the first, after waiting for it."""
        waiting = self._waiting
        while waiting:
            first = waiting[0]
            if isinstance(first, Stretch):
                yield first
                self._queued -= len(first.paths)
            elif isinstance(first, str):
                self.changes.drop(first)
            else:
                file, old = first
                if force:
                    self._pool.wait(file)
                elif file.done is None or not file.done.done():
                    return
                scanned = self._finished(file, old)
                if scanned is not None:
                    yield scanned
                self._queued -= 1
            force = False
            waiting.popleft()

    def _finished(self, file: FileRead, old: IndexRow) -> Stretch | None:
        self._pool.check()
        if file.error is not None:
            self.findings.failed(file.path, file.error)
            return None
        if file.changed:
            self.findings.changed.append((file.path, file.changed))
            return None
        size, mtime_ns, ctime_ns, _ = file.identity
        self.files += 1
        self.bytes += size
        self.hashed_files += 1
        self.hashed_bytes += size
        if old[1:5] == file.identity:
            if old[5] == file.digest:
                return self._found(file)
            # The old row stays: with the new one the next sync would take the rot for an edit and send it.
            self.rotten.append(file.path)
            return self._found(file)
        if self._clock is not None and self._clock.settled(mtime_ns, ctime_ns, file.read_ns):
            self.changes.put(file.path, file.identity, file.digest)
        elif old[0]:
            self.changes.drop(file.path)
        return self._found(file)

    def _found(self, file: FileRead) -> Stretch:
        size, mtime_ns = file.identity[:2]
        entry = Entry(file.path, FILE, file.digest, file.executable, size, mtime_ns)
        return Stretch.of_one(entry, file.identity)


class _Reading(NamedTuple):
    """A file that is being read, and its row in the index."""

    file: FileRead
    old: IndexRow


class _Rows:
    """The rows of the stat index, read ahead by the run and gone through one after the other."""

    def __init__(self, rows: Iterable[IndexRow]) -> None:
        self._rest = iter(rows)
        self._read: list[IndexRow] = []
        self._at = 0
        self.path = ""  # the next row's; '' at the end
        self._look()

    def next_rows(self, count: int) -> list[IndexRow]:
        """The next rows, so many when there are, without going on to them."""
        lacking = self._at + count - len(self._read)
        if lacking > 0:
            self._read = [*self._read[self._at :], *islice(self._rest, max(lacking, _STRETCH))]
            self._at = 0
        return self._read[self._at : self._at + count]

    def take(self) -> IndexRow:
        """The next row, going on to the one after it."""
        row = self._read[self._at]
        self.drop(1)
        return row

    def drop(self, count: int) -> None:
        """Go on by so many rows, which :meth:`next_rows` has given."""
        self._at += count
        self._look()

    def _look(self) -> None:
        rows = self.next_rows(1)
        self.path = rows[0][0] if rows else ""

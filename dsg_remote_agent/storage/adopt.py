"""Taking in what was changed on the server outside DSG, as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsg_remote_agent.storage.content import version_of
from dsg_remote_agent.storage.statindex import UNKNOWN, IndexRow, StatIndex, row_of, settled_before
from protocol.errors import LocalProtocolError, OutsideChangeError, PathsRefusedError
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.paths import check_link_target, escape, sort_key
from protocol.tree.fs import Kind, TreeFS

__all__ = ["Adopted"]


class Adopted:
    """What one transaction has adopted. ``rows``: the stat of each path as it was read (unknown: gone)."""

    def __init__(self, tree: TreeFS, algorithm: str, seq: int) -> None:
        self._tree = tree
        self._algorithm = algorithm
        self._seq = seq
        self._changes: dict[str, Entry | str] = {}
        self.rows: dict[str, IndexRow] = {}

    def changes(self) -> Iterator[tuple[str, Entry | str]]:
        """The adopted changes in canonical order."""
        for path in sorted(self._changes, key=sort_key):
            yield path, self._changes[path]

    def settled_rows(self, looked_ns: int) -> dict[str, IndexRow]:
        """The rows for the stat index; unknown for what was being changed when the transaction began."""
        limit = settled_before(self._tree, looked_ns)
        return {path: row if row.ctime_ns < limit else UNKNOWN for path, row in self.rows.items()}

    def take(
        self, manifest: Manifest, index: StatIndex, paths: Iterable[str], who: str
    ) -> Iterator[Entry | str]:
        """Read what stands at ``paths`` (canonical order) and yield each change against ``manifest``.

        A path that is what the manifest says yields nothing. OutsideChangeError
        when one changes while it is read; PathsRefusedError for links that lead
        out of the repository and for what is neither file nor link.
        """
        entries = iter(manifest)
        entry = next(entries, None)
        refused: list[str] = []
        for path in paths:
            key = sort_key(path)
            while entry is not None and sort_key(entry.path) < key:
                entry = next(entries, None)
            was = entry if entry is not None and entry.path == path else None
            try:
                change = self._read(path, was, who)
            except ValueError as error:
                refused.append(f"{escape(path)}: {error}")
                continue
            if change is not None:
                self._changes[path] = change
                yield change
        if refused:
            raise PathsRefusedError(
                f"{len(refused)} paths on the server cannot be adopted; {'; '.join(refused[:5])}",
                hint="rename or remove them on the server",
                facts={"refused": refused[:1000]},
            )

    def _read(self, path: str, was: Entry | None, who: str) -> Entry | str | None:
        tree = self._tree
        try:
            stat = tree.stat(path)
        except OSError:
            stat = None
        if stat is None or stat.kind is Kind.FOLDER:
            self.rows[path] = UNKNOWN
            return path if was is not None else None
        version = version_of(tree, path, stat, self._algorithm, was)
        if version is None:
            raise ValueError("neither a file nor a link")
        after = tree.stat(path)
        if row_of(after) != row_of(stat):
            raise OutsideChangeError(
                f"{escape(path)} on the server changes while it is read",
                hint="adopt when nobody writes to it",
            )
        self.rows[path] = row_of(stat)
        if was is not None and was.version == version:
            return None
        kind, content, executable = version
        if kind == LINK:
            problem = check_link_target(path, content.decode("utf-8", "replace"))
            if problem:
                raise ValueError(problem)
            return Entry(path, LINK, content, False, 0, 0, who, self._seq)
        if kind != FILE:
            raise LocalProtocolError("unknown kind of entry")
        return Entry(path, FILE, content, executable, stat.size, stat.mtime_ns, who, self._seq)

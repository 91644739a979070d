"""Taking things out of the tree without losing any: first out, then judged, then kept or given back."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.tree.actions import OBJECTS, REPLACED, RESCUED, Action, Expected, Staged
from protocol.tree.folders import IN_THE_WAY, Folders, look
from protocol.tree.fs import Kind, TreeFS
from protocol.tree.report import HeldBackError, Report, Unexpected

__all__ = ["Taking", "rescue", "rescue_area"]

_CHANGED = "it was changed at that very moment"
_AREAS = 10_000


def rescue_area(txid: str, unexpected: Unexpected) -> str:
    """Where unexpected things of this transaction go."""
    return f"{REPLACED if unexpected is Unexpected.KEEP else RESCUED}/{txid}"


def _areas(area: str) -> Iterator[str]:
    yield area
    for attempt in range(2, _AREAS):
        yield f"{area}~{attempt}"


def rescue(tree: TreeFS, area: str, source: str, path: str) -> str | None:
    """Move ``source`` to ``{area}/{path}``, or ``{area}~2/…`` where that is taken; None when it vanished."""
    for base in _areas(area):
        target = f"{base}/{path}"
        try:
            tree.make_folders(target.rpartition("/")[0])
            if look(tree, target) is not None:
                continue
            # A plain rename: the only one that cannot drop a newer file put at ``source`` meanwhile,
            # and in DSG's own area nobody else makes names.
            tree.move(source, target)
        except FileNotFoundError:
            if look(tree, source) is None:
                return None
            raise
        except OSError as error:
            if error.errno in IN_THE_WAY:
                continue
            raise
        return target
    raise OSError(f"no free name below {area} to rescue {source!r} to")


class Taking:
    """Moves of one transaction out of the tree, and what to do with what came out."""

    def __init__(self, tree: TreeFS, txid: str, report: Report) -> None:
        self.tree = tree
        self.txid = txid
        self.report = report
        self.folders = Folders(tree, report, lambda path: self.rescue(path, path))
        self._area = rescue_area(txid, report.unexpected)

    def rescue(self, source: str, path: str) -> None:
        """Move an unexpected thing to safety and report it."""
        where = rescue(self.tree, self._area, source, path)
        if where is not None:
            self.report.rescued.append((path, where))

    def clear(self, path: str, reason: str) -> None:
        """An unexpected thing stands at ``path``: hold the action (HeldBackError), or move it away."""
        if self.report.keeps:
            self.report.hold(path, reason)
        self.rescue(path, path)

    def keep(self, source: str, action: Action) -> None:
        """Put a thing that was judged where it is kept."""
        keep = action.keep
        assert keep is not None
        try:
            self.tree.place(source, keep)
            return
        except FileExistsError:
            pass  # the same comes again
        except OSError:
            self.folders.make_own_for(keep)
        try:
            self.tree.place(source, keep)
        except FileExistsError:
            if not keep.startswith(f"{OBJECTS}/"):
                self.rescue(source, action.path)
                return
            # The same content by name. The older one stays: this one may have rotted since.
            self.tree.unlink(source)
        except OSError as error:
            if error.errno not in IN_THE_WAY:
                raise
            self.rescue(source, action.path)

    def take_out(self, out: str, action: Action, before: Expected) -> None:
        """Move what stands at the action's path to the free name ``out``, then :meth:`settle` it."""
        try:
            self.tree.move(action.path, out)
        except FileNotFoundError:
            if self.report.keeps and action.after is not None:
                self.report.hold(action.path, "it was deleted")
            return
        except OSError as error:
            self.report.hold_or_raise(action.path, error)
        self.settle(out, action, before)

    def settle(self, out: str, action: Action, before: Expected) -> None:
        """Keep what came out if it is what was expected; else give it back (HeldBackError), or rescue it."""
        came = look(self.tree, out)
        if came is None:
            return
        if before.came_out(came):
            self.keep(out, action)
            return
        if not self.report.keeps:
            self.rescue(out, action.path)
            return
        try:
            self.folders.make_for(action.path)
            self.tree.place(out, action.path)
        except (OSError, HeldBackError):
            self.rescue(out, action.path)
        self.report.hold(action.path, _CHANGED)

    def swap_back(self, slot: str, path: str, after: Staged) -> None:
        """``slot`` holds an unexpected thing that a swap with ``path`` brought out: the same for it."""
        tree = self.tree
        if not self.report.keeps:
            self.rescue(slot, path)
            return
        try:
            tree.swap(slot, path)
        except OSError:
            # The path went meanwhile, or cannot be written any more.
            try:
                tree.place(slot, path)
            except OSError:
                self.rescue(slot, path)
        else:
            if not after.is_at(tree.stat(slot)):
                # Edited again in between: the newest version belongs at the path.
                try:
                    tree.swap(slot, path)
                except OSError:
                    pass
                self.rescue(slot, path)
        self.report.hold(path, _CHANGED)

    def add_earlier_rescues(self, planned: set[str]) -> None:
        """Report what interrupted runs rescued; ``planned``: what was kept in the same area on purpose."""
        known = planned | {where for _, where in self.report.rescued}
        for base in _areas(self._area):
            if look(self.tree, base) is None:
                return
            folders = [base]
            for folder in folders:
                for name, stat in self.tree.scan(folder):
                    where = f"{folder}/{name}"
                    if where in known:
                        continue
                    if stat.kind is Kind.FOLDER:
                        folders.append(where)
                    else:
                        self.report.rescued.append((where[len(base) + 1 :], where))

"""How the head stands when a transaction begins: as its snapshot, or written to by somebody outside DSG.

What was written, be it adopted or merely beside the data, must be in the clone:
then the head is frozen at once, and a snapshot of it as it is becomes the
clone's origin. Otherwise people may go on until the commit freezes it, and
whatever they wrote meanwhile refuses the commit.
"""

from __future__ import annotations

from dsg_remote_agent.storage.base import Notice
from dsg_remote_agent.storage.chain import Head
from dsg_remote_agent.storage.looking import look_closely
from dsg_remote_agent.storage.zfs.deciding import freeze, thaw
from dsg_remote_agent.storage.zfs.names import base_snapshot, snapshot
from dsg_remote_agent.storage.zfs.site import Site, View
from dsg_remote_agent.storage.zfs.survey import Survey
from protocol.errors import OutsideChangeError
from protocol.messages import OutsideChanges
from protocol.paths import escape

__all__ = ["Standing"]


class Standing:
    """The head's generation ``view`` at the begin; ``outside``: how it differs from its manifest.

    ``dirty``: it holds, or may hold, what its snapshot does not.
    """

    def __init__(self, view: View, head: Head, outside: OutsideChanges, *, dirty: bool) -> None:
        self._view = view
        self._head = head
        self.outside = outside
        self.frozen = False
        self._dirty = dirty
        self._base = ""

    def origin(self, site: Site, txid: str, lock: int) -> str:
        """The snapshot to clone; of a head that was written to, one that is taken now."""
        name = self._view.generation.name
        if not self._dirty:
            return f"{name}@{snapshot(self._head.seq)}"
        self.freeze(site, lock)
        # People could write while it was looked at: what they wrote behind that look is in no snapshot.
        again = look_closely(self._view.place, self._head, lambda _: None).seen.outside
        if again != self.outside:
            raise _changed(site, "something was written while it was looked at")
        self._base = f"{name}@{base_snapshot(txid)}"
        site.zfs.must("snapshot", self._base, lock=lock, shown=site.shown)
        return self._base

    def freeze(self, site: Site, lock: int) -> None:
        """Let nobody write to the head any more."""
        self.frozen = True  # also when it fails half-way: then it is to be undone
        freeze(site, self._view.generation, self._view.tree, lock)

    def check(self, site: Site, survey: Survey, notice: Notice) -> None:
        """OutsideChangeError when anybody wrote to it since the clone's origin.

        ``survey``: made after the freeze.
        """
        if self._base:
            return  # frozen before that was taken
        current = survey.generations.get(self._view.generation.number)
        if current is not None and current.written is False:
            return
        # Not everything that counts as written is somebody's: a kernel may write after it mounted.
        outside = look_closely(self._view.place, self._head, notice).seen.outside
        if outside:
            paths = (*outside.modified, *outside.deleted, *outside.added)
            raise _changed(site, ", ".join(map(escape, paths[:5])), list(paths))

    def undo(self, site: Site, lock: int) -> None:
        """Let people write again; the snapshot for the clone goes. What fails is left to recovery."""
        try:
            if self._base:
                site.zfs.run("destroy", self._base, lock=lock)
        finally:
            if self.frozen:
                thaw(site, self._view.generation, lock)


def _changed(site: Site, what: str, paths: list[str] | None = None) -> OutsideChangeError:
    return OutsideChangeError(
        f"changed on the server while the sync ran: {what}",
        hint="sync again; if somebody works in the repository's folder itself, use 'dsg adopt'",
        facts={"paths": paths or [], "more": 0, "repository": site.shown},
    )

"""The clone that a transaction changes: made, opened, snapshotted, destroyed."""

from __future__ import annotations

import os
import stat

from dsg_remote_agent.storage.place import Place
from dsg_remote_agent.storage.zfs.command import failure
from dsg_remote_agent.storage.zfs.mounts import let_mount, open_root, open_tree
from dsg_remote_agent.storage.zfs.names import snapshot
from dsg_remote_agent.storage.zfs.settling import destroy_uncommitted
from dsg_remote_agent.storage.zfs.site import Site
from dsg_remote_agent.storage.zfs.survey import Generation, Survey
from protocol.errors import DsgError, IntegrityError, RemoteStorageError
from protocol.tree.posix import PosixTree

__all__ = ["Clone"]


class Clone:
    """A new generation, mounted and opened; until the decision it is this transaction's alone.

    It is mounted where everybody could come to it, and folders that a group
    shares are writable for its members. What they wrote there would be in the
    snapshot, and in no manifest. So its root is closed to others (``mode``: what
    is to be there again) until just before the snapshot is taken.
    """

    def __init__(
        self, site: Site, generation: Generation, tree: PosixTree, place: Place, mode: int | None
    ) -> None:
        self._site = site
        self.generation = generation
        self.tree = tree
        self.place = place
        self._mode = mode

    @classmethod
    def make(cls, site: Site, survey: Survey, origin: str, txid: str, seq: int, lock: int) -> Clone:
        """Clone the snapshot ``origin`` for transaction ``txid``, which is to make version ``seq``.

        A failure leaves nothing, or what the next recovery destroys.
        """
        number = max(survey.generations) + 1
        name = site.name_of(number)
        mountpoint = f"{survey.folder}/g{number}"
        generation = Generation(number, name, origin, False, mountpoint, txid, seq, False, None, "")
        own = ("-o", "canmount=noauto", "-o", f"dsg:txid={txid}", "-o", f"dsg:seq={seq}")
        answer = site.zfs.run("clone", *own, origin, name, lock=lock)
        if not answer.good and name not in _names(site):
            raise failure(answer, site.shown, f"cloning {origin}")
        try:
            # Some mount it by themselves, and a delegated account's clone may say that it failed to.
            fd = open_root(site.zfs, name, mountpoint, mounted=False, lock=lock, shown=site.shown)
            tree = open_tree(fd)
            try:
                return cls(site, generation, tree, site.place(tree), shut(fd))
            except BaseException:
                tree.close()
                raise
        except (DsgError, OSError):
            destroy_uncommitted(site, generation, lock)
            raise

    def mark_unadopted(self, lock: int) -> None:
        """Note that it holds changes made outside DSG that were not adopted: ``written`` will not tell."""
        self._site.zfs.must(
            "set", "dsg:unadopted=yes", self.generation.name, lock=lock, shown=self._site.shown
        )

    def take_snapshot(self, seq: int, lock: int) -> None:
        """Snapshot it as version ``seq``: durable, files and manifest together. The tree is another then."""
        name, site = self.generation.name, self._site
        # zfs-fuse mounts it anew for that, which an open descriptor would prevent. It comes before the
        # snapshot, so that nothing is left to be done after the decision.
        self.tree.close()
        let_mount(site.zfs, name, lock=lock, shown=site.shown)
        # People will be led to it: it must be mounted.
        fd = open_root(site.zfs, name, self.generation.mountpoint, mounted=False, lock=lock, shown=site.shown)
        self.tree = open_tree(fd)
        self.place = self.place.but(tree=self.tree)
        if self._mode is not None:
            _open_again(fd, self._mode, site.shown)
        site.zfs.must("snapshot", f"{name}@{snapshot(seq)}", lock=lock, shown=site.shown)

    def check(self, survey: Survey, seq: int) -> None:
        """IntegrityError unless it is still there, with its snapshot, and is this transaction's."""
        found = survey.generations.get(self.generation.number)
        name = self.generation.name
        known = self._site.zfs.run("list", "-H", "-o", "name", f"{name}@{snapshot(seq)}")
        if found is None or found.txid != self.generation.txid or not known.good:
            raise IntegrityError(
                f"what transaction {self.generation.txid} prepared is gone from {self._site.shown}",
                hint="somebody recovered or removed it; sync again",
            )

    def close(self) -> None:
        """Let go of its tree. Harmless when that is done."""
        self.tree.close()

    def destroy(self, lock: int) -> None:
        """Close and destroy it; what is in use stays for the next recovery, and cannot be committed."""
        self.close()
        destroy_uncommitted(self._site, self.generation, lock)


def shut(fd: int) -> int | None:
    """Close the folder ``fd`` to all but its owner; the mode that it had, None when it is not ours to change.

    It is not where an administrator made it, and this account writes there by
    its group; nor where setgid would go, which only a member may set.
    """
    found = os.fstat(fd)
    mode = stat.S_IMODE(found.st_mode)
    account = os.geteuid()
    if account not in (0, found.st_uid):
        return None
    if account and mode & stat.S_ISGID and found.st_gid not in (os.getegid(), *os.getgroups()):
        return None
    os.fchmod(fd, mode & ~0o077)
    return mode


def _open_again(fd: int, mode: int, shown: str) -> None:
    os.fchmod(fd, mode)
    found = stat.S_IMODE(os.fstat(fd).st_mode)
    if found != mode:
        raise RemoteStorageError(
            f"the folder of the new snapshot of {shown} has the mode {found:o}, and cannot be given {mode:o}",
            hint="look at its owner and group; nothing was changed",
        )


def _names(site: Site) -> set[str]:
    return {generation.name for generation in site.survey().generations.values()}

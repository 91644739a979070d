"""``recover``: settle what an interrupted command left, here and on the server."""

from __future__ import annotations

from dsg_client.sync.events import Emit, Note, Phase, PhaseStarted, ignore
from dsg_client.sync.settling import settle_leftover
from dsg_client.sync.setup import rebuild_cache as make_cache_anew
from dsg_client.sync.site import Site
from protocol.errors import DsgError

__all__ = ["recover"]


async def recover(site: Site, *, abandon: bool, rebuild_cache: bool, emit: Emit) -> list[str]:
    """Settle this folder's interrupted sync, then the server's; what was done, in words.

    ``abandon`` gives up an undecided sync without asking the server, and does
    not speak to it at all.
    """
    # What is settled is the command's answer here, not news on the way to another.
    site.emit = ignore
    with site.workdir.lock("dsg recover"):
        notes = await settle_leftover(site, abandon=abandon)
        if abandon:
            return notes
        emit(PhaseStarted(Phase.CONNECT))
        try:
            async with site.connect(mending=True) as repo:
                if repo.opened.role != "read":
                    notes += [f"server: {note}" for note in await repo.recover()]
        except DsgError:
            # What was settled here is done, whatever keeps the server from its part.
            for note in notes:
                emit(Note(note))
            raise
        if rebuild_cache:
            notes.append(await make_cache_anew(site))
    return notes

"""Mending what can be mended without guessing: a lost head, written anew from the records."""

from __future__ import annotations

from dsg_remote_agent.storage.layout import HEAD, RECORDS, manifest_path
from dsg_remote_agent.storage.manifests import inflate_blocks, read_blocks
from dsg_remote_agent.storage.place import Place
from protocol.errors import IntegrityError
from protocol.records import MAX_RECORD_BYTES, SnapshotRecord, check_chain

__all__ = ["rebuild_head"]


def rebuild_head(place: Place) -> list[str]:
    """Write ``.dsg/head`` anew when it is missing, from the newest record; notes when it did.

    Only when every record is intact and follows the one before, and the newest
    one's manifest is whole; IntegrityError otherwise. A head that is there,
    even a damaged one, is left alone: somebody must decide to remove it.
    """
    try:
        place.tree.stat(HEAD)
    except FileNotFoundError:
        pass
    else:
        place.chain.head()
        return []
    names = sorted(place.tree.names(RECORDS))
    records = [
        SnapshotRecord.from_bytes(place.tree.read_bytes(f"{RECORDS}/{name}", MAX_RECORD_BYTES))
        for name in names
    ]
    if not records or [f"{record.seq:08d}" for record in records] != names or records[0].seq != 0:
        raise IntegrityError(
            f"the records of {place.shown} are not complete",
            hint="restore .dsg/head and .dsg/records from a backup",
        )
    check_chain(records)
    newest = records[-1]
    if newest.repo_id != place.marker.repo_id:
        raise IntegrityError(
            f"the records of {place.shown} belong to another repository", hint="restore .dsg from a backup"
        )
    blocks = read_blocks(place.tree, manifest_path(newest.seq), place.shown)
    inflate_blocks(blocks, newest.manifest, newest.seq, place.shown)
    place.chain.publish(newest)
    return [f"wrote .dsg/head anew: the newest snapshot is s{newest.seq}"]

"""Choices: what the user decided about one conflict, bound to what the user saw."""

from __future__ import annotations

from dsg_client.core.states import Take
from protocol.manifest import Entry
from protocol.value import Value

__all__ = ["Choice", "Version"]

Version = tuple[int, bytes, bool]  # kind, content, executable: what Entry.version gives


class Choice(Value):
    """The side that wins at one path, for exactly these three versions.

    A choice made for other versions than the present ones has lapsed: the
    user has not seen what it would now replace.
    """

    take: Take
    local: Version | None
    cache: Version | None
    remote: Version | None

    @classmethod
    def of(cls, take: Take, local: Entry | None, cache: Entry | None, remote: Entry | None) -> Choice:
        """The choice of ``take`` by someone who was shown these three entries."""
        return cls(take, _version(local), _version(cache), _version(remote))

    def fits(self, local: Entry | None, cache: Entry | None, remote: Entry | None) -> bool:
        """Whether these are the versions that the choice was made for."""
        return (
            self.local == _version(local)
            and self.cache == _version(cache)
            and self.remote == _version(remote)
        )


def _version(entry: Entry | None) -> Version | None:
    return None if entry is None else entry.version

"""What one sync asks of ``zfs`` on the server, and how long that takes: from the agent's own log."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen

__all__ = ["AFTER_REPLY", "Step", "steps_of"]

AFTER_REPLY = "after the reply"


@frozen
class Step:
    """A request, or one kind of ``zfs`` command that it runs: medians over the syncs.

    ``command`` is '' for a request as a whole. ``times``: how often in one
    sync; ``ms``: of one.
    """

    request: str
    command: str
    times: float
    ms: float


def steps_of(lines: Iterable[str]) -> list[Step]:
    """The steps of the syncs in an agent's log of level debug, in the order in which they come."""
    syncs: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        entry = json.loads(line)
        syncs.setdefault(entry["pid"], []).append(entry)
    taken = [times_of(entries) for entries in syncs.values()]
    return [
        Step(
            request,
            command,
            statistics.median(len(sync.get((request, command), ())) for sync in taken),
            1000 * statistics.median(s for sync in taken for s in sync.get((request, command), ())),
        )
        for request, command in _in_order(taken)
    ]


Taken = dict[tuple[str, str], list[float]]


def times_of(entries: Sequence[dict[str, Any]]) -> Taken:
    """Seconds by request and command of one sync; a request comes before its commands."""
    found: Taken = {}
    waiting: Taken = {}
    for entry in entries:
        if entry["event"] == "zfs":
            request = AFTER_REPLY if entry["replied"] else entry["method"]
            waiting.setdefault((request, label(entry["command"])), []).append(entry["seconds"])
        elif entry["event"] == "request":
            method = entry["method"]
            found.setdefault((method, ""), []).append(entry["until_reply"])
            if any(request == AFTER_REPLY for request, _ in waiting):
                waiting[AFTER_REPLY, ""] = [entry["seconds"] - entry["until_reply"]]
            for key, seconds in waiting.items():
                found.setdefault(key, []).extend(seconds)
            waiting = {}
    return found


def label(words: Sequence[str]) -> str:
    """A kind of command: its verb, and the property that it is about."""
    verb, *rest = words
    if verb == "set":
        name, _, value = rest[0].partition("=")
        return f"set {name}" if name.startswith("dsg:") else f"set {name}={value}"
    return f"{verb} {rest[0]}" if verb == "inherit" else verb


def _in_order(taken: Sequence[Taken]) -> list[tuple[str, str]]:
    """All keys, as the syncs have them, each request's together."""
    keys = list(dict.fromkeys(key for sync in taken for key in sync))
    requests = list(dict.fromkeys(request for request, _ in keys))
    return sorted(keys, key=lambda key: (requests.index(key[0]), key[1] != "", keys.index(key)))

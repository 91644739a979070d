"""The methods about what of the history is kept: pruning, protecting, and which snapshots are there."""

from __future__ import annotations

from dsg_remote_agent.call import Call
from dsg_remote_agent.dispatch import Agent, Opened, answers
from dsg_remote_agent.storage.retention import RULES, check_rules
from dsg_remote_agent.storage.stock import Verdict
from protocol.errors import RemoteProtocolError
from protocol.messages import (
    GetStock,
    Nothing,
    Protect,
    Prune,
    Pruned,
    SnapshotFate,
    SnapshotState,
    StockFound,
    to_wire,
)

__all__: list[str] = []

_MOST_STATES = 500
_MOST_FATES = 1000


@answers(GetStock)
def get_stock(agent: Agent, call: Call, request: GetStock) -> None:
    repository = agent.repository(request.repo).repository
    stock = repository.stock()
    newest = max(stock.present)
    states = []
    for seq in range(request.first, min(request.last, newest, request.first + _MOST_STATES - 1) + 1):
        pruned, kept = seq not in stock.present, stock.kept(seq) or ""
        if pruned or kept:
            states.append(SnapshotState(seq=seq, pruned=pruned, kept=kept[:200]))
    call.respond(to_wire(StockFound(snapshots=tuple(states))))


@answers(Prune)
def prune(agent: Agent, call: Call, request: Prune) -> None:
    opened = _idle(agent, request.repo)
    rules = {name: getattr(request, name) for name in RULES}
    check_rules(rules)
    fates = opened.repository.prune(
        agent.claim("", "", ""), rules, dry_run=request.dry_run, notice=agent.notice
    )
    count = {verdict: sum(fate.verdict is verdict for fate in fates) for verdict in Verdict}
    rows = [
        SnapshotFate(
            seq=fate.record.seq,
            time=fate.record.time,
            user=fate.record.user[:200],
            verdict=fate.verdict.value,
            why=fate.why[:500],
        )
        for fate in fates[:_MOST_FATES]
    ]
    answer = Pruned(
        snapshots=tuple(rows),
        kept=count[Verdict.KEEP],
        pruned=count[Verdict.PRUNE],
        left=count[Verdict.LEFT],
    )
    call.respond(to_wire(answer))


@answers(Protect)
def protect(agent: Agent, call: Call, request: Protect) -> None:
    opened = _idle(agent, request.repo)
    opened.repository.protect(agent.claim("", "", ""), request.seq, request.on)
    call.respond(to_wire(Nothing()))


def _idle(agent: Agent, handle: int) -> Opened:
    opened = agent.repository(handle)
    if opened.transaction is not None:
        raise RemoteProtocolError("a transaction is open")
    return opened

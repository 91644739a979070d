"""From a request to the function that answers it: parsed, its role checked, its paths confined."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dsg_remote_agent.call import Call
from dsg_remote_agent.places import resolve
from dsg_remote_agent.roots import Roots
from dsg_remote_agent.storage.base import Claim, Repository, Transaction
from dsg_remote_agent.storage.faults import explain
from protocol.errors import NotPermittedError, RemoteProtocolError
from protocol.messages import METHODS, Phase, Role, parse_request, to_wire
from protocol.transaction import TRANSITIONS, Failpoints
from protocol.value import Value

if TYPE_CHECKING:
    from dsg_remote_agent.storage.zfs.command import Answer

__all__ = ["Agent", "Answerer", "Opened", "Policy", "account", "answers", "few", "unanswered"]

Answerer = Callable[["Agent", Call, Any], None]
_ANSWERS: dict[type, Answerer] = {}
MOST_REPOSITORIES = 64
_MOST_NOTES = 100
_NOTE_LENGTH = 2000


def answers(request: type) -> Callable[[Answerer], Answerer]:
    """Register the function that answers requests of this class."""

    def register(function: Answerer) -> Answerer:
        _ANSWERS[request] = function
        return function

    return register


class Policy(Value):
    """What this agent may do, as it was started; nothing that a client sends widens it."""

    role: Role
    roots: Roots


class Opened:
    """A repository that the client has opened, and its transaction, if there is one."""

    def __init__(self, repository: Repository, shown: str) -> None:
        self.repository = repository
        self.shown = shown
        self.transaction: Transaction | None = None


class Agent:
    """Answers the requests of one session; see :class:`dsg_remote_agent.call.Service`.

    ``debug`` puts an event with its facts into the log.
    """

    def __init__(
        self,
        policy: Policy,
        now: Callable[[], int],
        failpoints: Failpoints,
        machine: str,
        debug: Callable[..., None] = lambda _event, **_facts: None,
    ) -> None:
        self.policy = policy
        self.now = now
        self.failpoints = failpoints
        self.machine = machine
        self.opened: dict[int, Opened] = {}
        self._debug = debug
        self._running: Call | None = None

    def answer(self, call: Call) -> None:
        request = parse_request(call.method, dict(call.params), call.has_body)
        row = METHODS[call.method]
        if not self.policy.role.allows(row.role):
            raise NotPermittedError(
                f"this agent was started with the role {self.policy.role.value!r}; "
                f"{call.method} needs the role {row.role.value!r}",
                hint="ask the repository's administrator for a key with that role",
                facts={"role": self.policy.role.value, "needed": row.role.value},
            )
        self._running = call
        shown = ""
        path = getattr(request, "path", None)
        if path:
            shown = resolve(self.policy.roots, path)
        elif (handle := getattr(request, "repo", None)) is not None and handle in self.opened:
            shown = self.opened[handle].shown
        try:
            _ANSWERS[type(request)](self, call, request)
        except OSError as error:
            raise explain(error, shown or "the server") from error

    def close(self) -> None:
        """Abort what is open and let every lock go."""
        failures: list[Exception] = []
        for opened in self.opened.values():
            try:
                if opened.transaction is not None:
                    opened.transaction.abort()
            except Exception as error:  # noqa: BLE001  it is raised when the others are closed, too
                failures.append(error)  # the next agent does it
            opened.repository.close()
        self.opened.clear()
        if failures:
            raise failures[0]

    def repository(self, handle: int) -> Opened:
        """What the client opened under this number; RemoteProtocolError when it did not."""
        try:
            return self.opened[handle]
        except KeyError:
            raise RemoteProtocolError(f"there is no open repository {handle}") from None

    def transaction(self, handle: int, txid: str, method: str) -> Transaction:
        """The open transaction ``txid``, when ``method`` may be called in its state."""
        transaction = self.repository(handle).transaction
        if transaction is None or transaction.txid != txid:
            raise RemoteProtocolError(f"there is no open transaction {txid}")
        if (transaction.state, method) not in TRANSITIONS:
            raise RemoteProtocolError(f"{method} came for a transaction that is {transaction.state.value}")
        return transaction

    def notice(self, name: str) -> None:
        """Tell the client which phase of the running request begins."""
        if self._running is not None and not self._running.answered:
            self._running.notice("phase", to_wire(Phase(name=name, count=0, total=0)))

    def note_command(self, answer: Answer, seconds: float) -> None:
        """Put a ``zfs`` command that has ended into the log, with the request that it was run for."""
        running = self._running
        self._debug(
            "zfs",
            command=answer.words,
            seconds=round(seconds, 4),
            status=answer.status,
            method=running.method if running else "",
            replied=running is not None and running.answered,
        )

    def claim(self, txid: str, user: str, host: str) -> Claim:
        """A claim on a lock in the name of a client's user."""
        return Claim(txid, user, host, account(), os.uname().nodename, os.getpid())


def few(notes: Sequence[str]) -> tuple[str, ...]:
    """Notes as an answer can carry them: the first ones, each cut short, and how many more there are."""
    shown = [
        note if len(note) <= _NOTE_LENGTH else f"{note[:_NOTE_LENGTH]} ..." for note in notes[:_MOST_NOTES]
    ]
    if len(notes) > _MOST_NOTES:
        shown.append(f"... and {len(notes) - _MOST_NOTES:,} more like these")
    return tuple(shown)


def account() -> str:
    """The name of the account that this process runs as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def unanswered() -> set[str]:
    """Methods that nothing answers; empty, or a test fails."""
    return {name for name, row in METHODS.items() if row.request not in _ANSWERS}

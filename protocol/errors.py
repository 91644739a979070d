"""The errors of DSG, shared by both sides.

The tree::

    DsgError
    ├── InternalError               exit 1   a bug in DSG
    ├── UsageError                  exit 2   the command line
    ├── ConflictError               exit 3   conflicts; nothing changed
    ├── ConfigError                 exit 4   configuration, or no DSG folder here
    ├── LockedError                 exit 5   another sync holds the lock        (transient)
    ├── HeadMovedError              exit 5   another sync committed meanwhile   (transient)
    ├── LinkError                   exit 6   connection, sign-in, agent start, time-out
    │   ├── HostUnknownError                 the name does not resolve
    │   ├── RefusedError                     nothing listens, or unreachable
    │   ├── HostKeyUnknownError              first contact: key not in known_hosts
    │   ├── HostKeyChangedError              the key differs from known_hosts
    │   ├── SignInError                      the server refused every key
    │   ├── AgentStartError                  no agent, or something else spoke
    │   └── LinkLostError                    the connection or agent died       (transient)
    ├── WireError                   exit 7
    │   ├── LocalProtocolError               this side asked for what is not allowed
    │   ├── RemoteProtocolError              the other side broke the protocol
    │   └── VersionError                     no common version, or a newer format on disk
    ├── IntegrityError              exit 8   digest, chain, damaged file
    │   └── WrongRepositoryError             other or older repository than C knows
    ├── RemoteStorageError          exit 9
    ├── LocalStorageError           exit 10
    ├── InDoubtError                exit 11  outcome unknown: run again to settle
    ├── PathsRefusedError           exit 12  names or paths
    ├── MassDeleteError             exit 13
    ├── NotPermittedError           exit 14  role, root, file permissions of the repository
    ├── LocalChangedError           exit 15  a planned file changed while the sync ran
    ├── OutsideChangeError          exit 16  the repository was changed outside DSG
    └── InterruptedSyncError        exit 130 Ctrl-C

Every class has one ``code`` (its name on the wire and in ``--json``) and one
``exit_status``. Every instance has an ``outcome``: what became of the
transaction, the one thing that a user of an atomic tool must know.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from math import isfinite
from typing import Any, ClassVar

__all__ = [
    "AgentStartError",
    "ConfigError",
    "ConflictError",
    "DsgError",
    "HeadMovedError",
    "HostKeyChangedError",
    "HostKeyUnknownError",
    "HostUnknownError",
    "InDoubtError",
    "IntegrityError",
    "InternalError",
    "InterruptedSyncError",
    "LinkError",
    "LinkLostError",
    "LocalChangedError",
    "LocalProtocolError",
    "LocalStorageError",
    "LockedError",
    "MassDeleteError",
    "NotPermittedError",
    "Outcome",
    "OutsideChangeError",
    "PathsRefusedError",
    "RefusedError",
    "RemoteProtocolError",
    "RemoteStorageError",
    "SignInError",
    "UsageError",
    "VersionError",
    "WireError",
    "WrongRepositoryError",
    "error_from_wire",
]


class Outcome(Enum):
    """What became of the transaction in which an error arose."""

    ABORTED = "aborted"  # local, cache and remote are as they were
    COMMITTED = "committed"  # the transaction holds; something after it went wrong
    IN_DOUBT = "in_doubt"  # not known yet; local and cache are as they were


class DsgError(Exception):
    """Base of all errors that DSG reports.

    ``message`` names the thing, what was expected and what was found;
    ``hint`` says what to do next; ``facts`` holds the same for programs
    (JSON-compatible values only); ``outcome`` is what became of the
    transaction.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1
    transient: ClassVar[bool] = False
    default_outcome: ClassVar[Outcome] = Outcome.ABORTED

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        facts: Mapping[str, Any] | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts: dict[str, Any] = dict(facts or {})
        self.outcome = outcome or self.default_outcome

    def to_wire(self) -> dict[str, Any]:
        """The error as a map for an ERROR frame or for ``--json``."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "facts": self.facts,
            "outcome": self.outcome.value,
        }


class InternalError(DsgError):
    code = "internal"
    exit_status = 1


class UsageError(DsgError):
    code = "usage"
    exit_status = 2


class ConflictError(DsgError):
    code = "conflict"
    exit_status = 3


class ConfigError(DsgError):
    code = "config"
    exit_status = 4


class LockedError(DsgError):
    code = "locked"
    exit_status = 5
    transient = True


class HeadMovedError(DsgError):
    code = "head_moved"
    exit_status = 5
    transient = True


class LinkError(DsgError):
    code = "link"
    exit_status = 6


class HostUnknownError(LinkError):
    code = "host_unknown"


class RefusedError(LinkError):
    code = "refused"


class HostKeyUnknownError(LinkError):
    code = "host_key_unknown"


class HostKeyChangedError(LinkError):
    code = "host_key_changed"


class SignInError(LinkError):
    code = "sign_in"


class AgentStartError(LinkError):
    code = "agent_start"


class LinkLostError(LinkError):
    code = "link_lost"
    transient = True


class WireError(DsgError):
    code = "wire"
    exit_status = 7


class LocalProtocolError(WireError):
    code = "local_protocol"


class RemoteProtocolError(WireError):
    code = "remote_protocol"


class VersionError(WireError):
    code = "version"


class IntegrityError(DsgError):
    code = "integrity"
    exit_status = 8


class WrongRepositoryError(IntegrityError):
    code = "wrong_repository"


class RemoteStorageError(DsgError):
    code = "remote_storage"
    exit_status = 9


class LocalStorageError(DsgError):
    code = "local_storage"
    exit_status = 10


class InDoubtError(DsgError):
    code = "in_doubt"
    exit_status = 11
    default_outcome = Outcome.IN_DOUBT


class PathsRefusedError(DsgError):
    code = "paths_refused"
    exit_status = 12


class MassDeleteError(DsgError):
    code = "mass_delete"
    exit_status = 13


class NotPermittedError(DsgError):
    code = "not_permitted"
    exit_status = 14


class LocalChangedError(DsgError):
    code = "local_changed"
    exit_status = 15


class OutsideChangeError(DsgError):
    code = "outside_change"
    exit_status = 16


class InterruptedSyncError(DsgError):
    code = "interrupted"
    exit_status = 130


def _classes(base: type[DsgError]) -> dict[str, type[DsgError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found.update(_classes(child))
    return found


_BY_CODE = _classes(DsgError)


def error_from_wire(fields: Mapping[str, Any]) -> DsgError:
    """The error that the other side sent; an unknown code becomes a plain DsgError.

    Every field is hostile: what has the wrong type is replaced by an empty one,
    and facts hold only what JSON can.
    """
    code = fields.get("code")
    cls = _BY_CODE.get(code, DsgError) if isinstance(code, str) else DsgError
    message, hint, facts = fields.get("message"), fields.get("hint"), fields.get("facts")
    try:
        outcome = Outcome(fields.get("outcome"))
    except ValueError:
        outcome = cls.default_outcome
    return cls(
        message if isinstance(message, str) else "the other side reported an error without a message",
        hint=hint if isinstance(hint, str) else "",
        facts=_jsonable(facts, 20) if isinstance(facts, dict) else {},
        outcome=outcome,
    )


def _jsonable(value: Any, nesting: int) -> Any:
    """``value`` with what JSON cannot hold replaced by None."""
    if isinstance(value, dict) and nesting:
        return {k: _jsonable(v, nesting - 1) for k, v in value.items() if isinstance(k, str)}
    if isinstance(value, list | tuple) and nesting:
        return [_jsonable(item, nesting - 1) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value if isinstance(value, str | int | float) else None

"""The table of methods, and how a message becomes a type and back.

Import from :mod:`protocol.messages`, which fills the table.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.fields import Message

__all__ = [
    "METHODS",
    "Body",
    "MethodRow",
    "Role",
    "method",
    "notice",
    "parse_notice",
    "parse_request",
    "parse_result",
    "request_wire",
    "to_wire",
]

_T = TypeVar("_T", bound=Message)


class Role(Enum):
    """What a connection may do; each role includes those before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Whether a connection of this role may call a method that needs ``needed``."""
        order = (Role.READ, Role.WRITE, Role.ADMIN)
        return order.index(self) >= order.index(needed)


class Body(Enum):
    """What the DATA frames of a request or a response hold."""

    NONE = "none"
    ROWS = "rows"  # protocol.codec.unpack_rows, then protocol.rows for the kind of row
    FILES = "files"  # protocol.filestream.unpack
    MANIFEST = "manifest"  # the bytes of a manifest's encoding


class MethodRow(NamedTuple):
    """One method of the table."""

    name: str
    role: Role
    request: type[Message]
    result: type[Message]
    request_body: Body
    response_body: Body  # MANIFEST: only where the result says so


METHODS: dict[str, MethodRow] = {}
NOTICES: dict[str, type[Message]] = {}
_NAMES: dict[type[Message], str] = {}


def method(
    name: str,
    role: Role,
    result: type[Message],
    *,
    request_body: Body = Body.NONE,
    response_body: Body = Body.NONE,
) -> Callable[[type[_T]], type[_T]]:
    """Register a message as the request of method ``name``.

    TypeError, at import, without a role: an undeclared permission must not
    come to mean "allowed" (hg CVE-2018-1000132).
    """
    if not isinstance(role, Role):
        raise TypeError(f"method {name!r} declares no role")

    def register(request: type[_T]) -> type[_T]:
        if name in METHODS:
            raise TypeError(f"method {name!r} is declared twice")
        METHODS[name] = MethodRow(name, role, request, result, request_body, response_body)
        _NAMES[request] = name
        return request

    return register


def notice(name: str) -> Callable[[type[_T]], type[_T]]:
    """Register a message as the notice ``name``."""

    def register(cls: type[_T]) -> type[_T]:
        NOTICES[name] = cls
        return cls

    return register


def parse_request(name: str, params: dict[str, Any], has_body: bool | None = None) -> Any:
    """The request that came, as an instance of its class; RemoteProtocolError when it is not one.

    ``has_body``, when given, must be as the table says.
    """
    row = METHODS.get(name)
    if row is None:
        raise RemoteProtocolError(
            f"this agent has no method {name[:60]!a}",
            hint="install the same version of dsg-sync on both machines",
        )
    if has_body is not None and has_body != (row.request_body is not Body.NONE):
        raise RemoteProtocolError(f"{name} came {'with' if has_body else 'without'} a body")
    return _parse(row.request, params, name)


def parse_result(request: type[Message], found: dict[str, Any], has_body: bool | None = None) -> Any:
    """The result of a request of class ``request``; RemoteProtocolError when it is not one.

    ``has_body``, when given, must be as the table says (a manifest may be left out).
    """
    row = METHODS[_NAMES[request]]
    if has_body is True and row.response_body is Body.NONE:
        raise RemoteProtocolError(f"{row.name} was answered with a body")
    if has_body is False and row.response_body in (Body.ROWS, Body.FILES):
        raise RemoteProtocolError(f"{row.name} was answered without a body")
    return _parse(row.result, found, f"the result of {row.name}")


def parse_notice(name: str, found: dict[str, Any]) -> Any | None:
    """The notice that came, None for an unknown name; RemoteProtocolError when it is bad."""
    cls = NOTICES.get(name)
    return None if cls is None else _parse(cls, found, f"the notice {name}")


def request_wire(request: Message) -> tuple[str, dict[str, Any]]:
    """(method, params) of a request, for ``Connection.send_request``."""
    return _NAMES[type(request)], to_wire(request)


def to_wire(message: Message) -> dict[str, Any]:
    """A request, result or notice as the map that is sent."""
    return {name: _plain(getattr(message, name)) for name in message.FIELDS}


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return to_wire(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _parse(cls: type[_T], found: dict[str, Any], what: str) -> _T:
    if found.keys() != cls.FIELDS.keys():
        odd = sorted(map(ascii, found.keys() ^ cls.FIELDS.keys()))
        raise RemoteProtocolError(f"{what}: fields unknown or missing: {', '.join(odd)[:200]}")
    values = dict(found)
    try:
        for name, field in cls.FIELDS.items():
            if field.load is not None:
                values[name] = field.load(values[name], lambda c, v: _parse(c, v, what))
        return cls(**values)
    except LocalProtocolError as error:
        raise RemoteProtocolError(f"{what}: {error.message}") from None

"""Messages, and the kinds of fields that they have: each checks its value when a message is made.

A checker raises LocalProtocolError; reading a message turns that into the
other side's fault. Lists come as lists and are kept as tuples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, dataclass_transform

from protocol.digest import parse_tagged
from protocol.errors import LocalProtocolError
from protocol.value import Record

__all__ = [
    "Field",
    "Message",
    "blob",
    "blobs",
    "count",
    "digest",
    "digest_or_none",
    "flag",
    "handle",
    "identifier",
    "nested",
    "nested_list",
    "seq",
    "server_path",
    "text",
    "texts",
    "word",
]

MOST_HANDLES = 1 << 16
MOST_SEQ = 1 << 40
MOST_COUNT = 1 << 62
MAX_BLOB = 64 * 1024  # a snapshot record's limit
MAX_TEXTS = 1000
MAX_TEXT = 20_000  # a path of 4,000 bytes, each shown as an escape
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


class Field(NamedTuple):
    """A kind of field: what is wrong with a value, and what makes the value from what the wire holds."""

    problem: Callable[[Any], str | None]
    load: Callable[[Any, Callable[[type, Any], Any]], Any] | None = None


def _field(problem: Callable[[Any], str | None], load: Any = None) -> Any:
    return Field(problem, load)


def _number(low: int, high: int) -> Any:
    def problem(value: Any) -> str | None:
        if type(value) is not int:
            return "is not a whole number"
        return None if low <= value < high else f"is {value}, not from {low} to {high - 1}"

    return _field(problem)


def handle() -> Any:
    """The client's number for a repository."""
    return _number(0, MOST_HANDLES)


def seq() -> Any:
    """A snapshot's number."""
    return _number(0, MOST_SEQ)


def count() -> Any:
    """A number of things or bytes."""
    return _number(0, MOST_COUNT)


def flag() -> Any:
    """True or false."""
    return _field(lambda value: None if type(value) is bool else "is not true or false")


def _text_problem(value: Any, longest: int) -> str | None:
    if type(value) is not str:
        return "is not text"
    if len(value) > longest:
        return f"is longer than {longest} characters"
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value) if not value.isascii() else False:
        return "holds what is not UTF-8"
    return None


def text(longest: int) -> Any:
    """Text of at most so many characters."""
    return _field(lambda value: _text_problem(value, longest))


def server_path(*, empty: bool = False) -> Any:
    """A path on the server, as the user gave it. The agent decides whether it may be used."""

    def problem(value: Any) -> str | None:
        found = _text_problem(value, 4096)
        if found is None and "\0" in value:
            return "holds a NUL character"
        if found is None and not value and not empty:
            return "is empty"
        return found

    return _field(problem)


def identifier() -> Any:
    """A txid or repository id: 8 to 64 of ``a-z0-9-``, not beginning with ``-``. It names files on disk."""

    def problem(value: Any) -> str | None:
        fits = type(value) is str and 8 <= len(value) <= 64 and _ID_CHARACTERS.issuperset(value)
        return None if fits and value[0] != "-" else "is not an identifier"

    return _field(problem)


def word(*choices: str) -> Any:
    """A short name in lower case; one of ``choices`` when there are any."""

    def problem(value: Any) -> str | None:
        fits = type(value) is str and 1 <= len(value) <= 32 and _ID_CHARACTERS.issuperset(value)
        if not fits or (choices and value not in choices):
            return f"is not one of {', '.join(choices)}" if choices else "is not a short name"
        return None

    return _field(problem)


def _digest_problem(value: Any) -> str | None:
    if type(value) is not str:
        return "is not text"
    try:
        parse_tagged(value)
    except ValueError as error:
        return f"is no digest: {error}"
    return None


def digest() -> Any:
    """A tagged digest."""
    return _field(_digest_problem)


def digest_or_none() -> Any:
    """A tagged digest, or ''."""
    return _field(lambda value: None if value == "" else _digest_problem(value))


def _blob_problem(value: Any, empty: bool) -> str | None:
    if type(value) is not bytes:
        return "is not bytes"
    if not value and not empty:
        return "is empty"
    return None if len(value) <= MAX_BLOB else f"is longer than {MAX_BLOB} bytes"


def blob(*, empty: bool = False) -> Any:
    """The bytes of a record, opaque here."""
    return _field(lambda value: _blob_problem(value, empty))


def _each(most: int, problem: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if type(value) is not tuple:
            return "is not a list"
        if len(value) > most:
            return f"has more than {most} items"
        return next((f"has an item that {found}" for found in map(problem, value) if found), None)

    return check


def _load_list(value: Any, _parse: Any) -> Any:
    return tuple(value) if type(value) is list else value


def blobs(most: int) -> Any:
    """Several records' bytes."""
    return _field(_each(most, lambda value: _blob_problem(value, False)), _load_list)


def texts(most: int = MAX_TEXTS) -> Any:
    """Several texts."""
    return _field(_each(most, lambda value: _text_problem(value, MAX_TEXT)), _load_list)


def nested(cls: type) -> Any:
    """A message within a message."""

    def load(value: Any, parse: Any) -> Any:
        return parse(cls, value) if type(value) is dict else value

    return _field(lambda value: None if type(value) is cls else f"is not a {cls.__name__}", load)


def nested_list(cls: type, most: int) -> Any:
    """Several messages within a message."""

    def load(value: Any, parse: Any) -> Any:
        if type(value) is not list:
            return value
        return tuple(parse(cls, item) if type(item) is dict else item for item in value[: most + 1])

    return _field(_each(most, lambda item: None if type(item) is cls else f"is not a {cls.__name__}"), load)


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    field_specifiers=(
        blob,
        blobs,
        count,
        digest,
        digest_or_none,
        flag,
        handle,
        identifier,
        nested,
        nested_list,
        seq,
        server_path,
        text,
        texts,
        word,
    ),
)
class Message(Record):
    """The base of requests, results and notices. LocalProtocolError when one is made with a bad value."""

    FIELDS: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        cls.FIELDS = {name: cls.__dict__[name] for name in cls.__annotations__}
        cls._names = tuple(cls.FIELDS)
        for name in cls._names:
            delattr(cls, name)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        for name, field in self.FIELDS.items():
            reason = field.problem(self.__dict__[name])
            if reason is not None:
                raise LocalProtocolError(f"the field {name!r} {reason}")

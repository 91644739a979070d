"""The keys of the configuration: what each may hold, where it may stand, and how its value is checked."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from enum import Flag, auto
from typing import Any

from dsg_client.local.ignore import IgnoreRules
from dsg_client.local.never import is_never_synced
from dsg_client.local.scope import DEFAULT_DATA_DIRS
from protocol.errors import ConfigError
from protocol.paths import escape, path_problem
from protocol.value import Value

__all__ = ["KEYS", "TRANSPORTS", "Key", "Place", "unknown_key"]

TRANSPORTS = ("asyncssh", "openssh")


class Place(Flag):
    """Where a key may stand."""

    TREE = auto()  # .dsgconfig.yml, which a team shares through git
    USER = auto()  # the user's settings, for all trees
    VARIABLE = auto()  # DSG_<KEY>
    OPTION = auto()  # the command line


ANYWHERE = Place.TREE | Place.USER | Place.VARIABLE | Place.OPTION


class Key(Value):
    """One key. ``parse`` takes a value from YAML or an option and raises ValueError with the reason."""

    name: str
    parse: Callable[[Any], Any]
    default: Any
    places: Place
    #: A variable's text as the value that ``parse`` takes.
    from_text: Callable[[str], Any]
    #: Decides which program runs: refused from a file that others could have written.
    starts_programs: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "DSG_" + self.name.rpartition(".")[2].upper()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {_shown(value)}{_quote_it(value)}")
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise ValueError("must not have control characters")
    return value.strip()


def _one_line(limit: int) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        text = _text(value)
        if len(text) > limit:
            raise ValueError(f"must have at most {limit} characters")
        return text

    return parse


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of texts, not {_shown(value)}")
    for item in value:
        if not isinstance(item, str):
            raise ValueError(f"must be a list of texts, and holds {_shown(item)}{_quote_it(item)}")
    return list(value)


def _data_dirs(value: Any) -> tuple[str, ...]:
    names = []
    for item in _texts(value):
        name = unicodedata.normalize("NFC", item.strip().rstrip("/"))
        if name != "*":
            if "/" in name:
                raise ValueError(
                    f"'{escape(item)}' is a path; write a folder's name, which counts anywhere in the tree"
                )
            reason = path_problem(name)
            if reason:
                raise ValueError(f"'{escape(item)}' cannot be a folder's name: {reason}")
            if is_never_synced(name):
                raise ValueError(f"'{escape(item)}' is never synced")
            if any(c in name for c in "*?["):
                raise ValueError(f"'{escape(item)}' is a pattern; only \"*\" alone, for all, is understood")
        names.append(name)
    if not names:
        raise ValueError('is empty, so that nothing would be synced; write names, or "*" for all')
    return tuple(dict.fromkeys(names))


def _ignore(value: Any) -> tuple[str, ...]:
    patterns = tuple(item for item in _texts([] if value is None else value) if item.strip())
    if any("\n" in item or "\r" in item for item in patterns):
        raise ValueError("must have one pattern in each item")
    if patterns:
        try:
            IgnoreRules(patterns)
        except ConfigError as error:
            raise ValueError(error.message) from None
    return patterns


def _yes_or_no(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"must be true or false, not {_shown(value)}")


def _yes_or_no_text(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"must be true or false, not '{escape(text)}'")


def _transport(value: Any) -> str:
    if value not in TRANSPORTS:
        raise ValueError(f"must be one of {', '.join(TRANSPORTS)}, not {_shown(value)}")
    return str(value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"must be a number of seconds, not {_shown(value)}")
    if not 0.1 <= value <= 3600:
        raise ValueError(f"must be between 0.1 and 3600 seconds, not {value}")
    return float(value)


def _number_text(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"must be a number of seconds, not '{escape(text)}'") from None


def _shown(value: Any) -> str:
    return "empty" if value is None else f"'{escape(str(value))[:60]}'"


def _quote_it(value: Any) -> str:
    # YAML reads no, on, 12:30 and 1e3 as something else than text.
    return "" if value is None or isinstance(value, (list, dict)) else "; put it in quotes"


def _same(text: str) -> str:
    return text


def _key(
    name: str,
    parse: Callable[[Any], Any],
    default: Any,
    places: Place = ANYWHERE,
    from_text: Callable[[str], Any] = _same,
    *,
    starts_programs: bool = False,
) -> tuple[str, Key]:
    return name, Key(name, parse, default, places, from_text, starts_programs)


_NOT_USER = Place.TREE | Place.VARIABLE | Place.OPTION

KEYS: dict[str, Key] = dict(
    [
        _key("name", _one_line(200), "", Place.TREE | Place.OPTION),
        _key("repository", _one_line(5000), "", _NOT_USER),
        _key("data_dirs", _data_dirs, DEFAULT_DATA_DIRS, _NOT_USER, lambda t: t.split(",")),
        _key("ignore", _ignore, (), _NOT_USER, str.splitlines),
        _key("portable_names", _yes_or_no, False, from_text=_yes_or_no_text),
        _key("transport", _transport, "asyncssh", starts_programs=True),
        _key("agent_command", _one_line(4000), "", starts_programs=True),
        _key("ssh.connect_timeout", _seconds, 10.0, from_text=_number_text),
        _key("user_name", _one_line(200), ""),
        _key("user_id", _one_line(200), ""),
    ]
)


def unknown_key(name: str, place: Place) -> str:
    """What to say of a key that is not one, or not one that may stand in ``place``."""
    key = KEYS.get(name)
    if key is not None and place is Place.USER:
        return f"'{name}' belongs to one tree: write it into its .dsgconfig.yml"
    allowed = sorted({n.partition(".")[0] for n, k in KEYS.items() if place in k.places} | set(_inner(place)))
    import difflib

    near = difflib.get_close_matches(name, allowed, 1, 0.6)
    meant = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(allowed)}"
    return f"unknown key '{escape(name)}'{meant}"


def _inner(place: Place) -> list[str]:
    return [n for n, k in KEYS.items() if "." in n and place in k.places]

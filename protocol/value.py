"""Immutable records that cost next to nothing to define.

attrs and dataclasses generate code for each class when its module is imported,
0.3 ms a class: with the messages, events and results of both programs that is
a good part of the time that a sync with nothing to do takes, and attrs itself
takes 10 ms. These classes are for values of which few are made; where there
may be many, a NamedTuple is in its place.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, Self, dataclass_transform

__all__ = ["Record", "Value"]


class Record:
    """What :class:`Value` and messages share. ``_names``: the fields, in order."""

    _names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *values: Any, **named: Any) -> None:
        mine = self.__dict__
        if len(values) > len(self._names):
            raise TypeError(f"{type(self).__name__} has {len(self._names)} fields, not {len(values)}")
        for name, value in zip(self._names, values, strict=False):
            mine[name] = value
        for name, value in named.items():
            if name in mine or name not in self._names:
                raise TypeError(f"{type(self).__name__}: the field {name!r} is unknown or given twice")
            mine[name] = value
        if len(mine) != len(self._names):
            for name in self._names:
                if name not in mine:
                    mine[name] = self._default(name)

    def _default(self, name: str) -> Any:
        """A value for a field that was not given; TypeError when there is none."""
        for cls in type(self).__mro__:
            if name in cls.__dict__:
                return cls.__dict__[name]
        raise TypeError(f"{type(self).__name__}: the field {name!r} is missing")

    def to_map(self) -> dict[str, Any]:
        """The fields by name, in order."""
        return {name: self.__dict__[name] for name in self._names}

    def but(self, **changes: Any) -> Self:
        """The same with other values in some fields, checked as a new one is."""
        return type(self)(**{**self.to_map(), **changes})

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {name}")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *map(self.__dict__.get, self._names)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={self.__dict__[n]!r}' for n in self._names)})"


@dataclass_transform(frozen_default=True)
class Value(Record):
    """The base of a record whose fields are its annotations; a plain value there is the field's default.

    A default is shared by all instances: no list, no dict.
    """

    def __init_subclass__(cls) -> None:
        own = cls.__annotations__
        cls._names = (*cls._names, *(name for name in own if not str(own[name]).startswith("ClassVar")))

"""Records without generated code: they must be as strict as generated ones."""

from __future__ import annotations

from typing import ClassVar

import pytest

from protocol.value import Value


class Point(Value):
    KIND: ClassVar[str] = "point"

    x: int
    y: int = 7


class Point3(Point):
    z: int = 0


class Other(Value):
    x: int
    y: int = 7


def test_fields_by_place_by_name_and_by_default() -> None:
    assert (Point(1, 2).x, Point(1, 2).y) == (1, 2)
    assert Point(1) == Point(x=1, y=7)
    assert Point(y=2, x=1) == Point(1, 2)
    assert Point3(1, z=3) == Point3(1, 7, 3)


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((), {"y": 1}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"KIND": "x"}), ((1,), {"w": 1})],
)
def test_what_does_not_fit_is_a_type_error(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Point(*values, **named)


def test_equal_means_of_one_class_and_equal_in_all_fields() -> None:
    assert Point(1, 2) != Point(2, 1)
    assert Point(1) != Other(1)
    assert Point(1) != Point3(1)
    assert len({Point(1), Point(1, 7), Other(1)}) == 2


def test_a_changed_copy_is_as_strict() -> None:
    assert Point(1, 2).but(y=3) == Point(1, 3)
    assert Point3(1, z=3).to_map() == {"x": 1, "y": 7, "z": 3}
    with pytest.raises(TypeError):
        Point(1).but(w=1)


def test_it_cannot_be_changed() -> None:
    point = Point(1)
    with pytest.raises(AttributeError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    assert repr(point) == "Point(x=1, y=7)"

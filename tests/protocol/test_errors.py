"""The error tree: every class has its code, its exit status and its outcome, on both ends of the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors
from protocol.errors import DsgError, LinkError, Outcome, error_from_wire

CLASSES = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]
CLASSES = [cls for cls in CLASSES if issubclass(cls, DsgError)]


def test_exit_statuses_are_the_design_s() -> None:
    statuses = {cls.__name__: cls.exit_status for cls in CLASSES}
    assert statuses == {
        "DsgError": 1,
        "InternalError": 1,
        "UsageError": 2,
        "ConflictError": 3,
        "ConfigError": 4,
        "LockedError": 5,
        "HeadMovedError": 5,
        "LinkError": 6,
        "HostUnknownError": 6,
        "RefusedError": 6,
        "HostKeyUnknownError": 6,
        "HostKeyChangedError": 6,
        "SignInError": 6,
        "AgentStartError": 6,
        "LinkLostError": 6,
        "WireError": 7,
        "LocalProtocolError": 7,
        "RemoteProtocolError": 7,
        "VersionError": 7,
        "IntegrityError": 8,
        "WrongRepositoryError": 8,
        "RemoteStorageError": 9,
        "LocalStorageError": 10,
        "InDoubtError": 11,
        "PathsRefusedError": 12,
        "MassDeleteError": 13,
        "NotPermittedError": 14,
        "LocalChangedError": 15,
        "OutsideChangeError": 16,
        "InterruptedSyncError": 130,
    }


def test_codes_are_unique_and_only_lost_races_are_transient() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)
    assert {cls.code for cls in CLASSES if cls.transient} == {"locked", "head_moved", "link_lost"}


def test_the_picture_of_the_tree_names_every_class() -> None:
    picture = errors.__doc__ or ""
    assert all(cls.__name__ in picture for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("outcome", [None, *Outcome])
def test_every_error_comes_back_as_itself(cls: type[DsgError], outcome: Outcome | None) -> None:
    error = cls("what", hint="do this", facts={"n": 1, "list": ["a", None, 1.5, True]}, outcome=outcome)
    again = error_from_wire(json.loads(json.dumps(error.to_wire())))
    assert type(again) is cls
    assert again.to_wire() == error.to_wire()
    assert again.outcome is (outcome or cls.default_outcome)
    assert str(again) == "what"


def test_what_is_in_doubt_says_so() -> None:
    assert errors.InDoubtError("x").outcome is Outcome.IN_DOUBT
    assert all(cls.default_outcome is Outcome.ABORTED for cls in CLASSES if cls is not errors.InDoubtError)


@pytest.mark.parametrize(
    "fields", [{}, {"code": "from the future", "message": "m"}, {"code": ["locked"]}, {"code": None}]
)
def test_unknown_codes_become_plain_errors(fields: dict[str, Any]) -> None:
    error = error_from_wire(fields)
    assert type(error) is DsgError
    assert error.message
    assert error.outcome is Outcome.ABORTED


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["code", "message", "hint", "facts", "outcome"]), values))
def test_any_fields_make_an_error_that_can_be_shown_as_json(fields: dict[str, Any]) -> None:
    error = error_from_wire(fields)
    json.dumps(error.to_wire(), allow_nan=False)
    assert isinstance(error.message, str)
    assert isinstance(error.hint, str)


def test_deep_facts_are_cut() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    facts = error_from_wire({"facts": {"deep": deep, "bytes": b"x", "kept": {"a": [1]}}}).facts
    assert facts["bytes"] is None
    assert facts["kept"] == {"a": [1]}
    json.dumps(facts)


def test_classes_are_caught_by_what_they_are() -> None:
    assert issubclass(errors.LinkLostError, LinkError)
    assert not issubclass(errors.LockedError, LinkError)
    assert issubclass(errors.VersionError, errors.WireError)
    assert issubclass(errors.WrongRepositoryError, errors.IntegrityError)

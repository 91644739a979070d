"""The table of methods, and that every field of every message is checked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import methods
from protocol.codec import pack, unpack
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import (
    METHODS,
    Begin,
    Begun,
    Body,
    Check,
    Doctor,
    DoctorReport,
    GetFiles,
    GetManifest,
    GetOutcome,
    GetRecords,
    InitRepo,
    ManifestFound,
    OpenRepo,
    OutcomeFound,
    OutsideChanges,
    Phase,
    Role,
    method,
    parse_notice,
    parse_request,
    parse_result,
    request_wire,
    to_wire,
)

DIGEST = "sha256:" + "0f" * 32
TXID = "3f2a9c0d4e5b6a79"


def test_the_table_is_what_the_document_says() -> None:
    table = {
        row.name: (row.role.value, row.request_body.value, row.response_body.value)
        for row in METHODS.values()
    }
    assert table == {
        "repo.open": ("read", "none", "none"),
        "repo.init": ("admin", "none", "none"),
        "repo.take": ("admin", "none", "none"),
        "repo.manifest": ("read", "none", "manifest"),
        "repo.records": ("read", "none", "none"),
        "repo.snapshot": ("read", "none", "manifest"),
        "repo.examine": ("write", "none", "none"),
        "repo.outside": ("read", "none", "none"),
        "repo.recover": ("write", "none", "none"),
        "repo.stock": ("read", "none", "none"),
        "repo.prune": ("admin", "none", "none"),
        "repo.protect": ("write", "none", "none"),
        "files.get": ("read", "rows", "files"),
        "tx.begin": ("write", "none", "none"),
        "tx.changes": ("write", "rows", "none"),
        "tx.upload": ("write", "files", "none"),
        "tx.adopt": ("write", "rows", "rows"),
        "tx.prepare": ("write", "none", "none"),
        "tx.commit": ("write", "none", "none"),
        "tx.abort": ("write", "none", "none"),
        "tx.outcome": ("write", "none", "none"),
        "server.doctor": ("read", "none", "none"),
    }


def test_every_method_that_changes_something_needs_more_than_read() -> None:
    reading = {"repo.open", "repo.manifest", "repo.records", "repo.snapshot", "repo.outside"}
    reading |= {"files.get", "server.doctor", "repo.stock"}
    for row in METHODS.values():
        assert (row.role is Role.READ) == (row.name in reading), row.name


def test_roles_include_those_below() -> None:
    allowed = {(have, need) for have in Role for need in Role if have.allows(need)}
    assert allowed == {
        (Role.READ, Role.READ),
        (Role.WRITE, Role.READ),
        (Role.WRITE, Role.WRITE),
        (Role.ADMIN, Role.READ),
        (Role.ADMIN, Role.WRITE),
        (Role.ADMIN, Role.ADMIN),
    }


def test_a_method_without_a_role_fails_where_it_is_declared() -> None:
    before = dict(METHODS)
    with pytest.raises(TypeError, match="role"):
        method("x.y", None, OpenRepo)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="role"):
        method("x.y", "read", OpenRepo)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        method("x.y")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="twice"):
        method("repo.open", Role.READ, OpenRepo)(OpenRepo)
    assert before == METHODS


EXAMPLES: dict[type, dict[str, Any]] = {}


def example(cls: Any) -> dict[str, Any]:
    """Good fields of a message, as they come from the wire, found by what each field accepts."""
    candidates: list[Any] = [DIGEST, TXID, "committed", "text", "", b"record", b"", 3, True, [], ["text"]]
    fields: dict[str, Any] = {}
    for name, field in cls.FIELDS.items():
        if name == "outside":
            fields[name] = {"modified": ["a"], "deleted": [], "added": [], "more": 0}
            continue
        for candidate in candidates:
            value = field.load(candidate, lambda c, v: v) if field.load else candidate
            if field.problem(value) is None:
                fields[name] = candidate
                break
        else:
            raise AssertionError(f"nothing fits {cls.__name__}.{name}")
    return fields


ALL = [row.request for row in METHODS.values()] + [row.result for row in METHODS.values()] + [Phase]


def parse(cls: type, fields: dict[str, Any]) -> Any:
    return methods._parse(cls, fields, "it")


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_message_comes_back(cls: type) -> None:
    fields = example(cls)
    message = parse(cls, fields)
    assert unpack(pack(to_wire(message))) == fields
    assert parse(cls, unpack(pack(to_wire(message)))) == message


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1 << 63,
    1.5,
    "",
    "x" * 30_000,
    "\0",
    b"",
    b"x" * 70_000,
    [],
    [[]],
    {},
    [None],
]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_field_of_every_message_is_checked(cls: Any) -> None:
    fields = example(cls)
    for name in cls.FIELDS:
        refused = 0
        for odd in ODD:
            try:
                parse(cls, {**fields, name: odd})
            except RemoteProtocolError as error:
                assert name in error.message or name == "outside"
                refused += 1
        assert refused >= 9, name
        with pytest.raises(RemoteProtocolError, match=name):
            parse(cls, {k: v for k, v in fields.items() if k != name})
    with pytest.raises(RemoteProtocolError, match="more_fields"):
        parse(cls, {**fields, "more_fields": 1})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OpenRepo(repo=-1, path="/x"), "repo"),
        (lambda: OpenRepo(repo=True, path="/x"), "repo"),
        (lambda: OpenRepo(repo=1 << 16, path="/x"), "repo"),
        (lambda: OpenRepo(repo=1, path=""), "path"),
        (lambda: OpenRepo(repo=1, path="/x\0y"), "path"),
        (lambda: OpenRepo(repo=1, path="/x\udcff"), "path"),
        (lambda: OpenRepo(repo=1, path="x" * 4097), "path"),
        (lambda: GetManifest(repo=1, have="sha256:" + " " * 64), "have"),
        (lambda: GetManifest(repo=1, have="md5:" + "0" * 64), "have"),
        (lambda: GetManifest(repo=1, have="sha256:" + "0F" * 32), "have"),
        (lambda: GetRecords(repo=1, first=-1, last=0), "first"),
        (lambda: GetRecords(repo=1, first=0, last=1 << 40), "last"),
        (lambda: OutcomeFound(outcome="perhaps", record=b""), "outcome"),
        (lambda: ManifestFound(same=1, known=True, head=b"x"), "same"),
        (lambda: ManifestFound(same=True, known=True, head=b""), "head"),
    ],
)
def test_bad_values_cannot_be_made_into_messages(make: Any, match: str) -> None:
    with pytest.raises(LocalProtocolError, match=match):
        make()


@pytest.mark.parametrize(
    "txid",
    [
        "",
        "short",
        "../../etc/passwd",
        "a/b/c/d/e",
        "ABCDEFGH",
        "a" * 65,
        ".hidden99",
        "-oProxyCommand",
        "é" * 9,
        "\0" * 8,
    ],
)
def test_an_identifier_can_name_a_file(txid: str) -> None:
    with pytest.raises(RemoteProtocolError, match="txid"):
        parse_request("tx.abort", {"repo": 1, "txid": txid})


def test_requests_by_name() -> None:
    assert request_wire(OpenRepo(repo=1, path="/x")) == ("repo.open", {"repo": 1, "path": "/x"})
    assert parse_request("repo.open", {"repo": 1, "path": "/x"}) == OpenRepo(repo=1, path="/x")
    for name in ("repo.close", "", "__class__", "repo.open\x1b[31m" * 50):
        with pytest.raises(RemoteProtocolError, match="no method") as caught:
            parse_request(name, {})
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 200


def test_bodies_are_where_the_table_says() -> None:
    parse_request("files.get", {"repo": 1, "seq": 0}, has_body=True)
    with pytest.raises(RemoteProtocolError, match="without a body"):
        parse_request("files.get", {"repo": 1, "seq": 0}, has_body=False)
    with pytest.raises(RemoteProtocolError, match="with a body"):
        parse_request("repo.open", {"repo": 1, "path": "/x"}, has_body=True)
    for has_body in (True, False):
        parse_result(GetManifest, {"same": True, "known": True, "head": b"x"}, has_body=has_body)
    with pytest.raises(RemoteProtocolError, match="without a body"):
        parse_result(GetFiles, {}, has_body=False)
    with pytest.raises(RemoteProtocolError, match="with a body"):
        parse_result(GetOutcome, {"outcome": "aborted", "record": b""}, has_body=True)
    assert METHODS["repo.manifest"].response_body is Body.MANIFEST


def test_messages_within_messages() -> None:
    begun = Begun(
        outside=OutsideChanges(modified=("a", "b"), deleted=(), added=("ü",), more=7),
        free=1 << 40,
        notes=("n",),
    )
    assert parse_result(Begin, unpack(pack(to_wire(begun)))) == begun
    report = DoctorReport(checks=(Check(name="a", ok=False, detail="b", cure="c"),) * 3)
    assert parse_result(Doctor, unpack(pack(to_wire(report)))) == report
    good = to_wire(report)["checks"]
    for bad in ([1], [{}], [good[0], {**good[0], "ok": 1}], good * 100, {}, None):
        with pytest.raises(RemoteProtocolError):
            parse_result(Doctor, {"checks": bad})
    assert bool(OutsideChanges(modified=(), deleted=(), added=(), more=0)) is False
    assert bool(OutsideChanges(modified=(), deleted=(), added=(), more=1)) is True


def test_lists_are_bounded() -> None:
    records = [b"x" * 1000] * 500
    assert len(parse_result(GetRecords, {"records": records}).records) == 500
    with pytest.raises(RemoteProtocolError, match="more than 500"):
        parse_result(GetRecords, {"records": [*records, b"x"]})
    with pytest.raises(RemoteProtocolError, match="longer than 65536"):
        parse_result(GetRecords, {"records": [b"x" * 65537]})


def test_notices() -> None:
    phase = Phase(name="flushing", count=1, total=2)
    assert parse_notice("phase", to_wire(phase)) == phase
    assert parse_notice("unheard of", {"x": 1}) is None
    with pytest.raises(RemoteProtocolError):
        parse_notice("phase", {})


def test_messages_cannot_be_changed() -> None:
    message = InitRepo(
        **{**example(InitRepo), "path": "/x"},
    )
    with pytest.raises(AttributeError):
        message.path = "/y"  # type: ignore[misc]


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from(ALL), st.data())
@settings(max_examples=300)
def test_any_fields_are_a_message_or_refused(cls: Any, data: st.DataObject) -> None:
    fields = {name: data.draw(values) for name in cls.FIELDS}
    if data.draw(st.booleans()):
        fields = {**example(cls), **{k: v for k, v in fields.items() if data.draw(st.booleans())}}
    try:
        message = parse(cls, fields)
    except RemoteProtocolError:
        return
    assert unpack(pack(to_wire(message))) == fields

"""The connection: its rules one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.connection import QUEUE_ENOUGH, Connection, cost
from protocol.errors import (
    DsgError,
    LinkLostError,
    LocalProtocolError,
    LockedError,
    Outcome,
    RemoteProtocolError,
    VersionError,
)
from protocol.framing import MAX_PAYLOAD, Flag
from protocol.outbox import Outbox
from protocol.preamble import Limits, Preamble
from protocol.streams import Endpoint, Half, Stream
from protocol.wire_events import (
    BodyEnded,
    CreditReceived,
    DataReceived,
    ErrorReceived,
    Failed,
    GoodbyeReceived,
    HelloReceived,
    NoticeReceived,
    RequestCancelled,
    RequestDropped,
    RequestReceived,
    ResponseReceived,
)
from tests.protocol.wire import (
    CHANGED,
    CREDIT,
    DATA,
    END,
    ERROR,
    EVENT,
    GOODBYE,
    HAS_BODY,
    HEARTBEAT,
    HELLO,
    REQUEST,
    RESET,
    RESPONSE,
    ZLIB,
    ZSTD,
    client,
    frame,
    frames,
    hello,
    plain,
    request,
    sent,
)


def agent(
    *, greeted: bool = True, features: tuple[str, ...] = (), limits: Limits | None = None
) -> Connection:
    made = Connection.agent(features, limits)
    if greeted:
        (event,) = made.receive(hello(features=list(features)))
        assert isinstance(event, HelloReceived)
    return made


def asked(body: bool = False) -> Connection:
    """A client with request 1 in flight, everything sent."""
    made = client()
    made.send_request("repo.open", {}, body=body)
    sent(made)
    return made


def failure(connection: Connection, data: bytes) -> str:
    """Feed what must fail the connection, whole and byte by byte; the message."""
    events = connection.receive(data)
    last = events[-1]
    assert isinstance(last, Failed), events
    assert isinstance(last.error, RemoteProtocolError | VersionError)
    (goodbye,) = frames(sent(connection))
    assert goodbye[0] == GOODBYE
    assert goodbye[3]["error"]["message"] == last.error.message
    assert connection.receive(hello()) == []
    assert connection.receive_eof() == []
    assert connection.open_requests == 0
    assert connection.can_request == 0
    with pytest.raises(type(last.error)):
        connection.send_request("x", {})
    connection.send_heartbeat()
    connection.send_goodbye()
    assert sent(connection) == b""
    return last.error.message


# What goes over the wire


def test_a_session_byte_for_byte() -> None:
    c, a = client({"zstd"}), Connection.agent({"zstd", "blake3"})
    assert c.send_request("files.get", {"repo": 1}, body=True) == 1
    c.send_data(1, b"rows")
    c.send_end(1, changed=True)
    up = sent(c)
    assert frames(up) == [
        (
            HELLO,
            0,
            0,
            {
                "dsg": "0.1",
                "protocol": 1,
                "features": ["zstd"],
                "limits": {"in_flight": 256, "credit": 8 << 20},
            },
        ),
        (REQUEST, HAS_BODY, 1, {"method": "files.get", "params": {"repo": 1}}),
        (DATA, 0, 1, b"rows"),
        (END, CHANGED, 1, b""),
    ]
    greeting, *events = a.receive(up)
    assert isinstance(greeting, HelloReceived)
    assert greeting.hello.features == a.features == c.features == {"zstd"}
    assert [plain(e) for e in events] == [
        RequestReceived(1, "files.get", {"repo": 1}, True),
        ("data", 1, b"rows", Flag.NONE),
        BodyEnded(1, True),
    ]
    a.send_notice(1, "phase", {"count": 3})
    a.send_response(1, {"ok": True}, body=True)
    a.send_data(1, b"z", Flag.ZSTD)
    a.send_end(1)
    a.send_heartbeat()
    down = sent(a)
    assert frames(down) == [
        (HEARTBEAT, 0, 0, b""),
        (EVENT, 0, 1, {"name": "phase", "fields": {"count": 3}}),
        (RESPONSE, HAS_BODY, 1, {"ok": True}),
        (DATA, ZSTD, 1, b"z"),
        (END, 0, 1, b""),
    ]
    assert [plain(e) for e in c.receive(down)] == [
        NoticeReceived(1, "phase", {"count": 3}),
        ResponseReceived(1, {"ok": True}, True),
        ("data", 1, b"z", Flag.ZSTD),
        BodyEnded(1, False),
    ]
    assert c.open_requests == a.open_requests == 0


def test_an_error_arrives_with_all_it_says() -> None:
    c, a = asked(), agent()
    a.receive(request(1))
    error = LockedError(
        "locked by ada", hint="wait", facts={"since": 5, "who": ["ada"]}, outcome=Outcome.IN_DOUBT
    )
    a.send_error(1, error)
    (event,) = c.receive(sent(a))
    assert isinstance(event, ErrorReceived)
    assert isinstance(event.error, LockedError)
    assert event.error.to_wire() == error.to_wire()


@pytest.mark.parametrize(
    "error",
    [
        DsgError("bad name \udcff\x1b", hint="\ud800", facts={"good": 1, "bad": "\udcff", "worse": object()}),
        DsgError("x" * 3_000_000, facts={"good": 1}),
        DsgError("much", facts={"good": 1, "list": ["x"] * 100_000, "text": "y" * 2_000_000}),
        DsgError("deep", facts={"good": 1, "nan": float("nan"), "big": 1 << 70}),
    ],
    ids=["unencodable", "long", "facts", "values"],
)
def test_an_error_that_cannot_be_sent_whole_still_arrives(error: DsgError) -> None:
    c, a = asked(), agent()
    a.receive(request(1))
    a.send_error(1, error)
    (event,) = c.receive(sent(a))
    assert isinstance(event, ErrorReceived)
    assert event.error.message[:3] == error.message[:3]
    assert event.error.facts == {"good": 1}
    a.send_goodbye(error)
    (event,) = c.receive(sent(a))
    assert isinstance(event, GoodbyeReceived)
    assert event.error is not None


# Order of sending


def test_heartbeats_before_control_before_data_and_goodbye_last() -> None:
    c = asked(body=True)
    c.send_data(1, b"a")
    c.send_end(1)
    c.send_request("x.y", {}, body=True)
    c.send_data(3, b"b")
    c.send_heartbeat()
    c.send_heartbeat()
    c.send_goodbye()
    assert [(f[0], f[2]) for f in frames(sent(c))] == [
        (HEARTBEAT, 0),
        (REQUEST, 3),
        (DATA, 1),
        (END, 1),
        (DATA, 3),
        (GOODBYE, 0),
    ]


def test_hello_comes_before_a_heartbeat() -> None:
    c = client()
    c.send_heartbeat()
    assert [f[0] for f in frames(sent(c))] == [HELLO, HEARTBEAT]


def test_heartbeats_overtake_data_that_waits() -> None:
    c = asked(body=True)
    for _ in range(4):
        c.send_data(1, bytes(MAX_PAYLOAD))
    assert QUEUE_ENOUGH <= c.queued < QUEUE_ENOUGH + 100
    first = c.bytes_to_send(at_most=10)
    assert [len(piece) for piece in first] == [16, MAX_PAYLOAD]
    c.send_heartbeat()
    assert frames(b"".join(c.bytes_to_send(at_most=10)))[0][0] == HEARTBEAT
    sent(c)
    assert c.queued == 0


def test_payloads_are_handed_on_without_a_copy() -> None:
    c = asked(body=True)
    payload = bytes(500_000)
    c.send_data(1, payload)
    assert any(piece is payload for piece in c.bytes_to_send())


def test_an_error_ends_a_body_whose_rest_is_dropped() -> None:
    a = agent()
    a.receive(request(1))
    a.send_response(1, {}, body=True)
    a.send_data(1, b"one")
    a.send_error(1, DsgError("no"))
    assert [f[0] for f in frames(sent(a))] == [RESPONSE, ERROR]
    assert a.queued == 0
    assert a.open_requests == 0


# Halves: cancelling, answering early


def test_cancel_and_its_answer() -> None:
    c, a = asked(body=True), agent()
    a.receive(request(1, HAS_BODY))
    c.send_data(1, b"dropped")
    c.cancel(1, changed=True)
    c.cancel(1)
    assert c.can_send(1) is None
    with pytest.raises(LocalProtocolError):
        c.send_data(1, b"more")
    c.send_end(1)
    up = sent(c)
    assert frames(up) == [(RESET, CHANGED, 1, b"")]
    assert a.receive(up) == [RequestCancelled(1, True)]
    assert c.open_requests == 1
    a.send_notice(1, "phase", {})
    a.send_response(1, {}, body=True)
    assert a.can_send(1) is None
    a.send_end(1)
    assert c.receive(sent(a)) == [RequestDropped(1)]
    assert c.open_requests == a.open_requests == 0


def test_a_cancel_that_crosses_the_answer_is_passed_over() -> None:
    c, a = asked(), agent()
    a.receive(request(1))
    a.send_response(1, {"late": True})
    c.cancel(1)
    assert c.receive(sent(a)) == [RequestDropped(1)]
    assert a.receive(sent(c)) == []
    c.cancel(1)
    assert sent(c) == b""


def test_an_early_answer_stops_the_body() -> None:
    c, a = asked(body=True), agent()
    a.receive(request(1, HAS_BODY))
    c.send_data(1, b"on its way")
    on_its_way = sent(c)
    c.send_data(1, b"waits")
    a.send_error(1, DsgError("disk full"))
    (event,) = c.receive(sent(a))
    assert isinstance(event, ErrorReceived)
    assert c.can_send(1) is None
    c.send_end(1)
    up = sent(c)
    assert [f[0] for f in frames(up)] == [RESET]
    assert a.receive(on_its_way + up) == []
    assert a.open_requests == c.open_requests == 0


def test_an_end_that_waits_is_not_overtaken_by_the_next_request() -> None:
    one = Limits(in_flight=1)
    c, a = client(theirs=one), agent(greeted=False, limits=one)
    c.send_request("x.y", {}, body=True)
    a.receive(sent(c))
    c.send_data(1, bytes(1000))
    c.send_end(1)
    a.send_response(1, {})
    assert c.receive(sent(a)) == [ResponseReceived(1, {}, False)]
    assert c.can_request == 1
    c.send_request("x.y", {})
    assert a.receive(sent(c)) == [RequestReceived(3, "x.y", {}, False)]


def test_a_reset_does_not_drop_the_end_of_an_answer_that_waits() -> None:
    a = agent()
    a.receive(request(1, HAS_BODY))
    a.send_response(1, {}, body=True)
    a.send_data(1, b"x")
    a.send_end(1)
    assert a.receive(frame(RESET, 1)) == []
    assert [f[0] for f in frames(sent(a))] == [RESPONSE, DATA, END]


def test_full_duplex() -> None:
    c, a = asked(body=True), agent()
    a.receive(request(1, HAS_BODY))
    a.send_response(1, {}, body=True)
    a.send_data(1, b"early")
    assert len(c.receive(sent(a))) == 2
    c.send_data(1, b"late")
    c.send_end(1)
    assert [type(e) for e in a.receive(sent(c))] == [DataReceived, BodyEnded]
    a.send_end(1)
    assert c.receive(sent(a)) == [BodyEnded(1, False)]


# Credit


def test_credit_is_spent_and_given_back() -> None:
    c, a = asked(body=True), agent()
    a.receive(request(1, HAS_BODY))
    for _ in range(8):
        c.send_data(1, bytes(MAX_PAYLOAD))
    assert c.can_send(1) == 0
    with pytest.raises(LocalProtocolError, match="credit for 0 bytes, not for 1024"):
        c.send_data(1, b"x")
    events = a.receive(sent(c))
    for event in events[:2]:
        assert isinstance(event, DataReceived)
        a.consumed(event)
    assert frames(sent(a)) == [(CREDIT, 0, 1, {"bytes": 2 << 20})]
    assert c.receive(frame(CREDIT, 1, {"bytes": 2 << 20})) == [CreditReceived(1)]
    assert c.can_send(1) == 2 << 20


def test_small_frames_cost_a_kibibyte() -> None:
    c = asked(body=True)
    c.send_data(1, b"x")
    assert c.can_send(1) == (8 << 20) - 1024
    assert cost(b"x" * 1025) == 1025
    a = agent()
    a.receive(request(1, HAS_BODY))
    assert len(a.receive(frame(DATA, 1, b"x") * 8192)) == 8192
    assert "more than its credit" in failure(a, frame(DATA, 1, b"x"))


def test_credit_is_what_the_other_side_announced() -> None:
    c = client(theirs=Limits(credit=3 << 20))
    c.send_request("x.y", {}, body=True)
    assert c.can_send(1) == 3 << 20
    a = agent(greeted=False)
    a.receive(hello(limits={"credit": 2 << 20}) + request(1))
    a.send_response(1, {}, body=True)
    assert a.can_send(1) == 2 << 20
    assert "more than its credit" in failure(
        agent_with_body(Limits(credit=2 << 20)), frame(DATA, 1, bytes(MAX_PAYLOAD)) * 3
    )


def agent_with_body(limits: Limits) -> Connection:
    a = agent(limits=limits)
    a.receive(request(1, HAS_BODY))
    return a


@given(st.lists(st.integers(1, MAX_PAYLOAD), min_size=1, max_size=60), st.booleans())
@settings(max_examples=50)
def test_a_sender_never_waits_for_ever(sizes: list[int], eager: bool) -> None:
    """With the least credit, frames of any sizes, and a consumer that is through with all it got."""
    limits = Limits(credit=Limits.LEAST_CREDIT)
    c, a = client(theirs=limits), agent(greeted=False, limits=limits)
    c.send_request("x.y", {}, body=True)
    content = bytes(MAX_PAYLOAD)
    held: list[DataReceived] = []
    for size in sizes:
        payload = memoryview(content)[:size]
        for attempt in (1, 2):
            room = c.can_send(1)
            assert room is not None
            if room >= cost(payload):
                break
            assert attempt == 1, "stuck"
            while held:
                a.consumed(held.pop())
            c.receive(sent(a))
        c.send_data(1, payload)
        held += [e for e in a.receive(sent(c)) if isinstance(e, DataReceived)]
        if eager and held:
            a.consumed(held.pop())


def test_with_less_credit_a_sender_would_wait_for_ever() -> None:
    """Negative control: why Limits refuses less than two frames of credit."""
    window = MAX_PAYLOAD
    receiver = Stream(1, Endpoint.AGENT, Half.WAITING, Half.BODY, window, window, out := Outbox())
    receiver.consumed(bytes(window // 5))
    assert out.take(1) == []  # nothing given back, and no whole frame fits in what is left
    with pytest.raises(ValueError, match="credit"):
        Limits(credit=Limits.LEAST_CREDIT - 1)


def test_what_is_consumed_after_the_end_gives_nothing_back() -> None:
    a = agent()
    events = a.receive(request(1, HAS_BODY) + frame(DATA, 1, bytes(MAX_PAYLOAD)) * 4 + frame(END, 1))
    for event in events[1:5]:
        assert isinstance(event, DataReceived)
        a.consumed(event)
    assert sent(a) == b""


# What the local side may not ask


def test_local_mistakes_change_nothing() -> None:
    c = client(theirs=Limits(in_flight=1))
    sent(c)
    with pytest.raises(LocalProtocolError, match="answers"):
        c.send_response(1, {})
    with pytest.raises(LocalProtocolError, match="encoded"):
        c.send_request("x.y", {"bad": object()})
    with pytest.raises(LocalProtocolError, match="65536"):
        c.send_request("x.y", {"long": "x" * 70_000})
    assert c.send_request("x.y", {}) == 1
    with pytest.raises(LocalProtocolError, match="no more"):
        c.send_request("x.y", {})
    with pytest.raises(LocalProtocolError, match="no more data"):
        c.send_data(1, b"x")
    with pytest.raises(LocalProtocolError, match="no body"):
        c.send_end(3)
    assert [f[0] for f in frames(sent(c))] == [REQUEST]

    a = agent()
    a.receive(request(1, HAS_BODY))
    for call in (a.send_request, lambda *_: a.cancel(1)):
        with pytest.raises(LocalProtocolError, match="only the client"):
            call("x.y", {})
    with pytest.raises(LocalProtocolError, match="no body"):
        a.send_end(1)
    with pytest.raises(LocalProtocolError, match="no more data"):
        a.send_data(1, b"x")
    a.send_response(1, {}, body=True)
    with pytest.raises(LocalProtocolError, match="already"):
        a.send_response(1, {})
    for bad in (b"", bytes(MAX_PAYLOAD + 1)):
        with pytest.raises(LocalProtocolError, match="DATA frame of"):
            a.send_data(1, bad)
    a.send_end(1)
    a.send_end(1)
    for answer in (lambda: a.send_error(1, DsgError("x")), lambda: a.send_notice(1, "n", {})):
        with pytest.raises(LocalProtocolError, match="not waiting"):
            answer()
    assert [f[0] for f in frames(sent(a))] == [RESPONSE, END]


# The end of a connection


def test_goodbye_both_ways() -> None:
    c, a = asked(), agent()
    a.receive(request(1))
    c.send_goodbye()
    assert [plain(e) for e in a.receive(sent(c))] == [("goodbye", None)]
    with pytest.raises(LocalProtocolError, match="goodbye"):
        c.send_request("x.y", {})
    a.send_response(1, {})
    assert c.receive(sent(a)) == [ResponseReceived(1, {}, False)]
    assert a.receive_eof() == []
    assert c.receive_eof() == []  # it has what it wanted, and had said so


def test_the_end_without_a_goodbye() -> None:
    for connection, text in (
        (asked(), "to the agent ended without"),
        (agent(), "to the client ended without"),
    ):
        (event,) = connection.receive_eof()
        assert isinstance(event, Failed)
        assert isinstance(event.error, LinkLostError)
        assert event.error.transient
        assert text in event.error.message
        assert sent(connection) == b""
        with pytest.raises(LinkLostError):
            connection.send_data(1, b"x")


def test_the_end_with_requests_open_is_a_loss_even_after_this_sides_goodbye() -> None:
    c = asked()
    c.send_goodbye()
    sent(c)
    (event,) = c.receive_eof()
    assert isinstance(event, Failed)


def test_the_end_in_the_middle_of_a_frame() -> None:
    a = agent()
    a.receive(frame(GOODBYE, 0, {}) + b"\xd5")
    (event,) = a.receive_eof()
    assert isinstance(event, Failed)
    assert "middle" in event.error.message


def test_a_goodbye_with_its_reason() -> None:
    c = asked()
    (event,) = c.receive(frame(GOODBYE, 0, {"error": {"code": "locked", "message": "busy"}}))
    assert isinstance(event, GoodbyeReceived)
    assert isinstance(event.error, LockedError)
    assert c.can_request == 0


def test_versions_are_told_apart() -> None:
    a = agent(greeted=False)
    (event,) = a.receive(hello(protocol=2))
    assert isinstance(event, Failed)
    assert isinstance(event.error, VersionError)
    assert frames(sent(a))[0][3]["error"]["code"] == "version"
    with pytest.raises(VersionError):
        Connection.client(Preamble(dsg="9", protocol=(2,)), "0.1")


def test_only_features_of_both_are_used() -> None:
    made = Connection.client(
        Preamble(dsg="1", features=frozenset({"zstd", "warp"})), "0.1", {"zstd", "delta"}
    )
    assert made.features == {"zstd"}


# What the other side may not do


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (request(1), "not HELLO"),
        (frame(HEARTBEAT), "not HELLO"),
        (frame(GOODBYE, 0, {}), "not HELLO"),
        (hello(features=["zstd"]), "not offered"),
        (hello(protocol=True), "no protocol"),
        (hello(limits={"credit": 1}), "credit"),
        (hello(limits={"in_flight": 10**6}), "in_flight"),
        (hello(dsg="\x1b"), "version"),
        (hello() + hello(), "second HELLO"),
        (hello() + frame(RESPONSE, 1, {}), "the agent got a RESPONSE"),
        (hello() + frame(ERROR, 1, {}), "the agent got a ERROR"),
        (hello() + frame(EVENT, 1, {}), "the agent got a EVENT"),
        (hello() + request(2), "on stream 2, expected on 1"),
        (hello() + request(3), "on stream 3, expected on 1"),
        (hello() + request(1) + request(1), "on stream 1, expected on 3"),
        (hello() + frame(REQUEST, 1, {"method": 1, "params": {}}), "method"),
        (hello() + frame(REQUEST, 1, {"method": "x", "params": []}), "method"),
        (hello() + frame(REQUEST, 1, {"method": "x", "params": {}, "more": 1}), "method"),
        (hello() + frame(REQUEST, 1, b"\xc1"), "cannot be read"),
        (hello() + b"".join(request(n) for n in range(1, 515, 2)), "256 requests"),
        (hello() + frame(DATA, 1, b"x"), "stream 1, not open"),
        (hello() + frame(END, 1), "stream 1, not open"),
        (hello() + frame(RESET, 1), "stream 1, not open"),
        (hello() + frame(RESET, 2), "stream 2, not open"),
        (hello() + frame(CREDIT, 1, {"bytes": 1}), "stream 1, not open"),
        (hello() + request(1) + frame(DATA, 1, b"x"), "is over"),
        (hello() + request(1) + frame(END, 1), "is over"),
        (hello() + request(1, HAS_BODY) + frame(END, 1) * 2, "is over"),
        (hello() + request(1, HAS_BODY) + frame(END, 1) + frame(DATA, 1, b"x"), "is over"),
        (hello() + request(1, HAS_BODY) + frame(RESET, 1) * 2, "second RESET"),
        (hello() + request(1, HAS_BODY) + frame(RESET, 1) + frame(DATA, 1, b"x"), "is over"),
        (hello() + request(1, HAS_BODY) + frame(RESET, 1) + frame(END, 1), "is over"),
        (hello() + request(1, HAS_BODY) + frame(DATA, 1, b"x", ZSTD), "zstd"),
        (hello() + request(1) + frame(CREDIT, 1, {"bytes": 1}), "more credit than it spent"),
        (hello() + request(1) + frame(CREDIT, 1, {"bytes": 0}), "no positive"),
        (hello() + request(1) + frame(CREDIT, 1, {"bytes": -5}), "no positive"),
        (hello() + request(1) + frame(CREDIT, 1, {"bytes": True}), "no positive"),
        (hello() + request(1) + frame(CREDIT, 1, {}), "no positive"),
        (hello() + frame(GOODBYE, 0, {}) + frame(HEARTBEAT), "after GOODBYE"),
        (hello() + frame(GOODBYE, 0, {"error": 1}), "GOODBYE"),
        (hello() + b"garbage!", "bad frame"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_client_that_breaks_a_rule(data: bytes, message: str) -> None:
    assert message in failure(Connection.agent(), data)
    again = Connection.agent()
    events = [event for i in range(len(data)) for event in again.receive(data[i : i + 1])]
    whole = Connection.agent()
    assert [plain(e) for e in events] == [plain(e) for e in whole.receive(data)]


def opened() -> bytes:
    return frame(RESPONSE, 1, {}, HAS_BODY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (hello(), "the client got a HELLO"),
        (request(1), "the client got a REQUEST"),
        (frame(RESET, 1), "the client got a RESET"),
        (frame(RESPONSE, 3, {}), "stream 3, not open"),
        (frame(RESPONSE, 2, {}), "stream 2, not open"),
        (frame(RESPONSE, 1, {}) * 2, "stream 1, not open"),
        (frame(ERROR, 1, {}) + frame(RESPONSE, 1, {}), "stream 1, not open"),
        (frame(RESPONSE, 1, b"\x90"), "not a map"),
        (frame(ERROR, 1, b"\x90"), "not a map"),
        (opened() + frame(RESPONSE, 1, {}), "is body"),
        (frame(DATA, 1, b"x"), "is waiting"),
        (frame(END, 1), "is waiting"),
        (opened() + frame(END, 1) + frame(DATA, 1, b"x"), "not open"),
        (opened() + frame(DATA, 1, bytes(MAX_PAYLOAD)) * 9, "more than its credit"),
        (opened() + frame(DATA, 1, b"x", ZSTD), "zstd"),
        (frame(EVENT, 1, {"name": 1, "fields": {}}), "EVENT"),
        (frame(EVENT, 1, {"name": "x"}), "EVENT"),
        (frame(EVENT, 3, {"name": "x", "fields": {}}), "not open"),
        (frame(CREDIT, 1, {"bytes": 1}), "more credit"),
        (frame(CREDIT, 1, {"bytes": 1 << 63}), "more credit"),
        (frame(GOODBYE, 0, {}) + opened(), "after GOODBYE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_agent_that_breaks_a_rule(data: bytes, message: str) -> None:
    assert message in failure(asked(), data)


def test_a_cancelled_answer_is_still_held_to_its_credit() -> None:
    c = asked()
    c.cancel(1)
    sent(c)
    data = frame(RESPONSE, 1, {}, HAS_BODY) + frame(DATA, 1, bytes(MAX_PAYLOAD)) * 8
    assert c.receive(data) == []
    assert "credit" in failure(c, frame(DATA, 1, b"x"))


def test_events_before_a_fault_are_told() -> None:
    a = agent()
    events = a.receive(request(1) + frame(HEARTBEAT) + b"Killed\n")
    assert [type(e) for e in events] == [RequestReceived, Failed]


def test_zlib_needs_no_agreement() -> None:
    a = agent()
    (_, event) = a.receive(request(1, HAS_BODY) + frame(DATA, 1, b"x", ZLIB))
    assert isinstance(event, DataReceived)
    assert event.flags is Flag.ZLIB

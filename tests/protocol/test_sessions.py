"""The connection in whole sessions: at random, in other pieces, cut at every byte, damaged; and its speed."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.connection import Connection
from protocol.errors import DsgError, LinkLostError
from protocol.outbox import Outbox
from protocol.wire_events import DataReceived, Failed, HelloReceived, RequestReceived
from tests.protocol.wire import (
    CREDIT,
    DATA,
    END,
    ERROR,
    EVENT,
    HAS_BODY,
    RESPONSE,
    Body,
    Session,
    client,
    frame,
    hello,
    plain,
    request,
    sent,
)


def agent() -> Connection:
    made = Connection.agent()
    (event,) = made.receive(hello())
    assert isinstance(event, HelloReceived)
    return made


def asked(*, body: bool = False) -> Connection:
    made = client()
    made.send_request("repo.open", {}, body=body)
    sent(made)
    return made


seeds = st.integers(0, 2**32)


def played(seed: int, steps: int) -> Session:
    session = Session(Random(seed), in_flight=Random(seed).choice([1, 3, 50]))
    for _ in range(steps):
        session.act()
    session.finish()
    return session


@given(seeds, st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_what_one_side_may_send_the_other_accepts(seed: int, steps: int) -> None:
    """Random sessions of everything the methods allow never fail, come to rest, and keep bodies whole."""
    session = played(seed, steps)
    for stream, body in [*session.up.items(), *session.down.items()]:
        assert body.received == body.sent[: len(body.received)], stream
        assert body.end_received is None or (
            body.received == body.sent and body.end_received == body.end_sent
        )
    for stream in range(1, session.client.connection._next_stream, 2):
        if stream in session.cancelled:
            continue
        assert session.outcome[stream] == session.answered[stream], stream
        if session.outcome[stream] == "body":
            assert session.down[stream].end_received is not None
    assert session.told_cancelled <= session.cancelled


def test_without_resetting_an_end_that_waits_sessions_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: random sessions reach the races that the rules are there for."""
    monkeypatch.setattr(Outbox, "holds", lambda self, stream: False)
    for seed in range(1000):
        try:
            played(seed, 300)
        except AssertionError as error:
            assert "requests in flight" in str(error)  # the search for a seed goes on without one
            return
    raise AssertionError("no session noticed")


@given(seeds, st.integers(0, 300))
@settings(max_examples=30, deadline=None)
def test_pieces_do_not_matter(seed: int, steps: int) -> None:
    session = played(seed, steps)
    for party in (session.client, session.agent):
        assert Session.replay(party, Random(seed + 1)) == [plain(event) for event in party.events]


def short_session() -> Session:
    """A session with every type of frame and small bodies, to be cut at every byte."""
    session = Session(Random(0), in_flight=5)
    c, a = session.client, session.agent

    def exchange() -> None:
        for _ in range(4):
            for party in (c, a):
                party.flush()
            for _ in range(8):
                session.deliver(1 << 20)

    c.call("send_request", "repo.open", {"path": "/x"})
    c.call("send_request", "tx.upload", {"n": 5}, body=True)
    c.call("send_request", "files.get", {"n": 7})
    exchange()
    a.call("send_heartbeat")
    a.call("send_notice", 1, "phase", {"count": 1})
    a.call("send_response", 1, {"stream": 1})
    c.call("send_data", 3, b"first")
    c.call("send_data", 3, b"second")
    c.call("send_end", 3, changed=True)
    session.up[3], session.down[5] = Body(), Body()
    exchange()
    a.call("send_response", 3, {"stream": 3})
    a.call("send_response", 5, {"stream": 5}, body=True)
    a.call("send_data", 5, b"content")
    exchange()
    c.call("send_request", "x.y", {}, body=True)
    c.call("cancel", 7)
    c.call("cancel", 5)
    a.call("send_end", 5)
    exchange()
    a.call("send_error", 7, DsgError("stopped"))
    c.call("send_heartbeat")
    exchange()
    c.call("send_goodbye")
    a.call("send_goodbye")
    exchange()
    assert not c.wire
    assert not a.wire
    return session


def test_a_session_cut_at_every_byte_gives_a_clean_prefix_and_an_error() -> None:
    session = short_session()
    for party in (session.client, session.agent):
        expected = [plain(event) for event in party.events]
        kinds = {type(event) for event in party.events}
        assert len(kinds) >= 4
        total = sum(len(what) for kind, what in party.log if kind == "receive")
        for cut in range(total + 1):
            limits = party.connection.limits
            again = (
                client(limits=limits, theirs=limits)
                if party is session.client
                else Connection.agent(limits=limits)
            )
            events: list[Any] = []
            room = cut
            for kind, what in party.log:
                if kind == "call":
                    name, args, kwargs = what
                    getattr(again, name)(*args, **kwargs)
                    continue
                events += map(plain, again.receive(what[:room]))
                if len(what) > room:
                    break
                room -= len(what)
            end = again.receive_eof()
            assert events == expected[: len(events)]
            if cut == total:
                assert events == expected
                assert end == []
            elif end:
                (failed,) = end
                assert isinstance(failed, Failed)
                assert isinstance(failed.error, LinkLostError)
            else:  # quiet only where this side had said goodbye and nothing was open
                assert again.open_requests == 0


@given(seeds, st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_bytes_never_raise(seed: int, data: st.DataObject) -> None:
    """Bytes changed, lost, repeated: events, and at most one Failed, as the last."""
    rng = Random(seed)
    control = {"bytes": 5, "name": "x", "fields": {}}
    stream = b"".join(
        rng.choice(
            [
                request(rng.choice([1, 3, 5, 7]), rng.choice([0, HAS_BODY])),
                frame(
                    rng.randrange(1, 12), rng.choice([0, 1, 3]), rng.randbytes(5), rng.choice([0, 1, 2, 4, 8])
                ),
                frame(
                    rng.choice([CREDIT, EVENT, ERROR, RESPONSE]),
                    1,
                    {**control, "bytes": rng.randrange(-5, 10)},
                ),
                frame(DATA, 1, rng.randbytes(30)),
                frame(END, 1),
            ]
        )
        for _ in range(data.draw(st.integers(1, 12)))
    )
    damaged = bytearray(stream)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    for connection in (agent(), asked(), asked(body=True)):
        events = connection.receive(bytes(damaged)) + connection.receive_eof()
        assert not any(isinstance(event, Failed) for event in events[:-1])
        assert connection.open_requests <= 256


# Speed


def test_control_frames_are_fast() -> None:
    """50,000 small frames a second is what is asked for; the bound leaves room for a slow machine."""
    c, a = client(), Connection.agent()
    rounds, each = 20, 250
    start = time.process_time()
    for _ in range(rounds):
        for n in range(each):
            c.send_request("repo.open", {"repo": n, "path": "/srv/data"})
        for event in a.receive(sent(c)):
            if isinstance(event, RequestReceived):
                a.send_response(event.stream, {"ok": True})
        assert len(c.receive(sent(a))) == each
    per_second = 2 * rounds * each / (time.process_time() - start)
    assert per_second > 10_000, f"{per_second:.0f} frames a second, each made and read"


def test_data_frames_are_fast() -> None:
    c, a = client(), Connection.agent()
    c.send_request("x.y", {}, body=True)
    a.receive(sent(c))
    payload = bytes(512 * 1024)
    start = time.process_time()
    for _ in range(200):
        c.send_data(1, payload)
        header, content = c.bytes_to_send()
        a.receive(header)
        (event,) = a.receive(content)
        assert isinstance(event, DataReceived)
        a.consumed(event)
        c.receive(b"".join(a.bytes_to_send()))
    each = (time.process_time() - start) / 200
    assert each < 0.002, f"{each * 1e6:.0f} µs for a frame of 512 KiB"

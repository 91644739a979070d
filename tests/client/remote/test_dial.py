"""TCP connections: every address is tried, and what fails is told apart."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import time

import pytest

from dsg_client.remote import dial as dial_module
from dsg_client.remote.dial import acknowledge, dial, dial_error
from protocol.errors import HostUnknownError, LinkError, RefusedError


def listener(address: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((address, 0))


def addresses(*found: tuple[str, int]) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]


def resolve_to(patch: pytest.MonkeyPatch, *found: tuple[str, int]) -> None:
    async def getaddrinfo(*args: object, **kwargs: object) -> object:
        return addresses(*found)

    patch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


def closed_port() -> int:
    with listener() as probe:
        port: int = probe.getsockname()[1]
    return port


async def test_the_next_address_is_tried_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as good:
        resolve_to(monkeypatch, ("127.0.0.1", closed_port()), good.getsockname())
        with await dial("h", 22) as end:
            assert end.getpeername() == good.getsockname()


async def test_the_next_address_is_tried_beside_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    # A listener whose queue is full drops what comes: a host behind a silent firewall.
    with socket.socket() as full, listener() as good:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        resolve_to(monkeypatch, full.getsockname(), good.getsockname())
        started = time.monotonic()
        with await dial("h", 22) as end:
            assert end.getpeername() == good.getsockname()
        assert 0.2 < time.monotonic() - started < 1
        for filler in fillers:
            filler.close()


async def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(HostUnknownError, match=r"no-such\.invalid"):
        await dial("no-such.invalid", 22)
    with pytest.raises(HostUnknownError):
        await dial("a" * 70 + ".example", 22)  # longer than a label may be: no lookup is made


async def test_nothing_listens() -> None:
    with pytest.raises(RefusedError, match="refused") as caught:
        await dial("127.0.0.1", closed_port())
    assert caught.value.facts["reason"] == "refused"


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ([errno.EHOSTUNREACH], "unreachable"),
        ([errno.ENETUNREACH, errno.ECONNREFUSED], "refused"),
        ([errno.ENETUNREACH, errno.ETIMEDOUT], "time-out"),
    ],
)
def test_the_most_telling_of_several_failures_is_told(numbers: list[int], reason: str) -> None:
    error = dial_error("h", 22, [OSError(number, "text") for number in numbers])
    assert isinstance(error, RefusedError)
    assert error.facts["reason"] == reason and error.hint


def test_an_unusual_failure_is_told_as_it_is() -> None:
    error = dial_error("h", 22, [OSError(errno.EMFILE, "Too many open files")])
    assert type(error) is LinkError and "Too many open files" in error.message


async def test_a_cancelled_dial_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        dialing = asyncio.create_task(dial(*full.getsockname()))
        await asyncio.sleep(0.1)
        dialing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialing
        for filler in fillers:
            filler.close()


async def test_of_two_that_connect_at_once_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    both = asyncio.Event()
    made: list[socket.socket] = []

    async def connect(*_: object) -> socket.socket:
        end = socket.socket()
        made.append(end)
        if len(made) == 2:
            both.set()
        await both.wait()
        return end

    monkeypatch.setattr(dial_module, "_connect", connect)
    resolve_to(monkeypatch, ("127.0.0.1", 1), ("127.0.0.1", 2))
    with await dial("h", 22) as won:
        assert len(made) == 2
        assert [end.fileno() >= 0 for end in made] == [end is won for end in made]


@pytest.mark.skipif(sys.platform != "linux", reason="no TCP_QUICKACK here; to have it: make test, on Linux")
def test_what_came_is_acknowledged_without_waiting_for_an_answer() -> None:
    with listener() as here, socket.create_connection(here.getsockname()) as end:
        other, _ = here.accept()
        with other:
            for _ in range(20):  # questions and answers take turns
                end.sendall(b"question")
                other.recv(64)
                other.sendall(b"answer")
                end.recv(64)
            assert not end.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
            acknowledge(end)
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
    acknowledge(end)  # closed: nothing to say

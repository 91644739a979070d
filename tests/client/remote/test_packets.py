"""The short way of a channel's data: with OpenSSH's server, through key exchanges, cuts and changed bytes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.crypto import cipher as asyncssh_cipher

from dsg_client.remote import packets
from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.settings import LinkSettings
from dsg_client.remote.ssh import SshTransport, open_ssh
from tests.hosts.sshd import SshClient, SshHost, ssh_host

pytestmark = [pytest.mark.slow, pytest.mark.needs("sshd", "ssh", "ssh-keygen")]

MIB = 1 << 20


@pytest.fixture(scope="module")
def host() -> Iterator[SshHost]:
    with ssh_host() as made:
        yield made


@pytest.fixture
def client(host: SshHost, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> SshClient:
    made = host.client(f"p{abs(hash(request.node.name))}")
    made.enter(monkeypatch)
    return made


class Echo:
    """Takes what comes back; ``over`` when the connection ended, or ``enough`` bytes came."""

    def __init__(self, enough: int = 1 << 60) -> None:
        self.enough = enough
        self.got = bytearray()
        self.room = asyncio.Event()
        self.over = asyncio.Event()
        self.error: Exception | None = None

    def received(self, chunk: bytes) -> None:
        self.got += chunk
        if len(self.got) >= self.enough:
            self.over.set()

    def writable(self) -> None:
        self.room.set()

    def ended(self, error: Exception | None) -> None:
        self.error = error
        self.over.set()
        self.room.set()


async def start(client: SshClient, command: str) -> SshTransport:
    return await open_ssh(RemoteAddress("/srv/none", client.alias), command, LinkSettings())


async def send(transport: SshTransport, echo: Echo, data: bytes, rng: random.Random) -> None:
    """Write ``data`` in pieces of all sizes, no faster than it goes."""
    at = 0
    while at < len(data) and not echo.over.is_set():
        step = rng.choice([1, 7, 100, 4096, 32768, 32769, 300_000])
        transport.write([data[at : at + step]])
        at += step
        while transport.congested and not echo.over.is_set():
            echo.room.clear()
            await echo.room.wait()
        await asyncio.sleep(0)


async def echoed(client: SshClient, data: bytes, rng: random.Random, command: str = "cat") -> bytes:
    """What ``cat`` on the server gives back."""
    transport = await start(client, command)
    echo = Echo(len(data))
    transport.attach(echo)
    try:
        await send(transport, echo, data, rng)
        await asyncio.wait_for(echo.over.wait(), 60)
    finally:
        transport.abort()
    return bytes(echo.got)


class Counts:
    """Which way the data took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sealed = self.opened = self.sent_slowly = self.received_slowly = self.adjusted_slowly = 0
        seal, open_ = packets.FastChannel._sealed, packets.FastChannel._open
        send_packet = asyncssh.SSHClientConnection.send_packet
        process = asyncssh.channel.SSHChannel._process_data
        adjust = asyncssh.channel.SSHChannel._process_window_adjust

        def sealed(fast: Any, data: list[memoryview]) -> bytes:
            self.sealed += sum(map(len, data))
            return seal(fast, data)

        def opened(fast: Any, data: bytes, at: int) -> int:
            end = open_(fast, data, at)
            self.opened += end - at
            return end

        def adjusting(channel: Any, pkttype: int, pktid: int, packet: Any) -> None:
            self.adjusted_slowly += 1
            adjust(channel, pkttype, pktid, packet)

        def sending(connection: Any, pkttype: int, *args: bytes, **options: Any) -> None:
            self.sent_slowly += sum(map(len, args)) * (pkttype == MSG_CHANNEL_DATA)
            send_packet(connection, pkttype, *args, **options)

        def processing(channel: Any, pkttype: int, pktid: int, packet: Any) -> None:
            self.received_slowly += len(packet.get_consumed_payload())
            process(channel, pkttype, pktid, packet)

        monkeypatch.setattr(packets.FastChannel, "_sealed", sealed)
        monkeypatch.setattr(packets.FastChannel, "_open", opened)
        monkeypatch.setattr(asyncssh.SSHClientConnection, "send_packet", sending)
        monkeypatch.setattr(asyncssh.channel.SSHChannel, "_process_data", processing)
        table = dict(asyncssh.channel.SSHChannel._packet_handlers)
        table[MSG_CHANNEL_DATA] = processing
        table[MSG_CHANNEL_WINDOW_ADJUST] = adjusting
        monkeypatch.setattr(asyncssh.channel.SSHChannel, "_packet_handlers", table)


async def test_everything_takes_the_short_way_and_arrives(
    client: SshClient, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when an asyncssh is installed that nobody has looked at: see ``_KNOWN_VERSIONS``."""
    counts = Counts(monkeypatch)
    data = rng.randbytes(24 * MIB)
    assert await echoed(client, data, rng) == data
    assert counts.sealed == len(data) and counts.sent_slowly == 0
    assert counts.opened > len(data) and counts.received_slowly == 0
    # sshd gives the window back about every 100 KiB; the first time may be before the channel is ours.
    assert counts.adjusted_slowly <= 1


async def test_what_was_written_is_sent_without_being_copied_first(client: SshClient) -> None:
    """What the window does not take waits as it was given; asyncssh's own write copies it twice."""
    transport = await start(client, "sleep 60")
    data = bytes(8 * MIB)
    transport.write([data[:100], data])
    channel: Any = transport._session.channel
    (waiting, datatype), *more = channel._send_buf
    assert not more and datatype is None
    assert isinstance(waiting, memoryview) and waiting.obj is data
    assert channel.get_write_buffer_size() == len(waiting) > 5 * MIB and transport.congested
    transport.abort()


async def test_an_unknown_asyncssh_is_left_alone(
    client: SshClient, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "_KNOWN_VERSIONS", ("0.0.",))
    counts = Counts(monkeypatch)
    data = rng.randbytes(2 * MIB)
    assert await echoed(client, data, rng) == data
    assert counts.sealed == counts.opened == 0
    assert counts.sent_slowly > len(data) and counts.received_slowly > 0


@pytest.mark.parametrize("cipher", ["aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr"])
async def test_other_ciphers(
    client: SshClient, rng: random.Random, monkeypatch: pytest.MonkeyPatch, cipher: str
) -> None:
    client.write_config(f"Ciphers {cipher}")
    counts = Counts(monkeypatch)
    data = rng.randbytes(4 * MIB)
    assert await echoed(client, data, rng) == data
    assert (counts.sealed == len(data)) == ("gcm" in cipher)
    assert (counts.sent_slowly == 0) == ("gcm" in cipher)


class Nonces:
    """Every (key, nonce) that something was encrypted under, by asyncssh or by us."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used: list[tuple[bytes, bytes]] = []
        real = packets.AESGCM
        outer = self

        class Recording:
            def __init__(self, key: bytes) -> None:
                self._key, self._real = key, real(key)

            def encrypt(self, nonce: bytes, data: bytes, aad: bytes | None) -> bytes:
                outer.used.append((self._key, nonce))
                return self._real.encrypt(nonce, data, aad)

            def decrypt(self, nonce: bytes, data: bytes, aad: bytes | None) -> bytes:
                return self._real.decrypt(nonce, data, aad)

        monkeypatch.setattr(packets, "AESGCM", Recording)
        monkeypatch.setattr(asyncssh_cipher, "AESGCM", Recording)


@pytest.mark.parametrize("limit", ["1M", "4M"])
@pytest.mark.parametrize("who", ["client", "server"])
async def test_key_exchanges_under_way(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, who: str, limit: str
) -> None:
    """Both ways go on through them, whoever asks; no nonce is used twice under one key."""
    with ssh_host(options=[f"RekeyLimit {limit}"] if who == "server" else []) as host:
        person = host.client()
        person.enter(monkeypatch)
        if who == "client":
            person.write_config(f"RekeyLimit {limit}")
        counts, nonces = Counts(monkeypatch), Nonces(monkeypatch)
        data = rng.randbytes(24 * MIB)
        assert await echoed(person, data, rng) == data
    keys = {key for key, _ in nonces.used}
    assert len(keys) > 3, "the keys were to change several times"
    assert len(set(nonces.used)) == len(nonces.used) > 24 * MIB // 32768
    if limit == "4M":
        # It is taken up again after each; with 1M nearly everything comes during one.
        assert min(counts.sealed, counts.opened) > len(data) * 0.3


async def test_a_counter_kept_beside_asyncsshs_is_noticed(
    client: SshClient, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without the shared counter the first packet of the other kind is refused."""

    def seal_without_counting(fast: Any, data: list[memoryview]) -> bytes:
        before = fast._connection._send_encryption._cipher._iv
        try:
            return sealed(fast, data)
        finally:
            fast._connection._send_encryption._cipher._iv = before

    sealed = packets.FastChannel._sealed
    monkeypatch.setattr(packets.FastChannel, "_sealed", seal_without_counting)
    data = rng.randbytes(MIB)
    assert await echoed(client, data, rng) != data


async def test_whatever_pieces_the_network_makes(
    client: SshClient, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = packets.FastChannel.receive

    def in_pieces(fast: Any, data: bytes, datatype: int | None = None) -> None:
        at = 0
        while at < len(data):
            step = rng.choice([1, 2, 3, 5, 16, 20, 21, 1000, 40_000])
            receive(fast, data[at : at + step], datatype)
            at += step

    monkeypatch.setattr(packets.FastChannel, "receive", in_pieces)
    data = rng.randbytes(3 * MIB)
    client.write_config("RekeyLimit 1M")
    assert await echoed(client, data, rng) == data


@pytest.mark.parametrize("spoil", ["bit", "length"])
async def test_a_changed_byte_ends_the_connection(
    client: SshClient, rng: random.Random, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """What had come before it stays; nothing of the changed packet or after it is delivered."""
    receive = packets.FastChannel.receive
    seen = 0

    def changing(fast: Any, data: bytes, datatype: int | None = None) -> None:
        nonlocal seen
        seen += len(data)
        # A length stands at the beginning only between two packets.
        if seen > MIB and len(data) > 5000 and (spoil == "bit" or not fast._begun):
            data = bytearray(data)  # type: ignore[assignment]
            if spoil == "bit":
                data[4000] ^= 1  # type: ignore[index]
            else:
                data[0:4] = b"\x7f\xff\xff\xff"  # type: ignore[index]
            data = bytes(data)
        receive(fast, data, datatype)

    monkeypatch.setattr(packets.FastChannel, "receive", changing)
    data = rng.randbytes(4 * MIB)
    transport = await start(client, "cat")
    echo = Echo()
    transport.attach(echo)
    await send(transport, echo, data, rng)
    await asyncio.wait_for(echo.over.wait(), 30)
    transport.abort()
    assert echo.error is not None
    assert len(echo.got) < len(data) and data.startswith(bytes(echo.got))


async def test_stderr_beside_the_data(client: SshClient, rng: random.Random) -> None:
    data = rng.randbytes(2 * MIB)
    transport = await start(client, f"echo begins >&2; head -c {len(data)}; echo ends >&2; exit 7")
    echo = Echo()
    transport.attach(echo)
    await send(transport, echo, data, rng)
    status = await transport.exit_status(30)
    transport.abort()
    assert bytes(echo.got) == data and bytes(transport.stderr) == b"begins\nends\n"
    assert status is not None and status.code == 7


async def test_through_a_jump(
    host: SshHost, client: SshClient, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outer connection carries the inner one: each has its own counters."""
    client.write_config(f"ProxyJump {client.user}@127.0.0.1:{host.port}")
    data = rng.randbytes(4 * MIB)
    counts, nonces = Counts(monkeypatch), Nonces(monkeypatch)
    assert await echoed(client, data, rng) == data
    # What the inner connection sent was sealed twice, the second time as asyncssh does with any tunnel's.
    assert counts.sealed == len(data) and counts.opened > len(data) and counts.received_slowly > 0
    assert len(set(nonces.used)) == len(nonces.used)


@pytest.mark.parametrize("limit", ["default none", "1M", "default 1s"])
async def test_the_end_comes_after_the_data(
    client: SshClient, rng: random.Random, tmp_path: Path, limit: str
) -> None:
    """Closed with more waiting than the window takes, also amid key exchanges."""
    client.write_config(f"RekeyLimit {limit}")
    data = rng.randbytes(9 * MIB + 1)
    transport = await start(client, f"cat > {tmp_path}/got; echo whole")
    echo = Echo(len(b"whole\n"))
    transport.attach(echo)
    transport.write([data[:5], b"", data[5:]])
    channel = transport._session.channel
    assert channel is not None and channel.get_write_buffer_size() > 0
    channel.write_eof()
    await asyncio.wait_for(echo.over.wait(), 60)
    transport.abort()
    assert bytes(echo.got) == b"whole\n" and (tmp_path / "got").read_bytes() == data


async def test_what_fails_midway_ends_the_connection(
    client: SshClient, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packet is lost and its nonce spent: nothing may follow."""
    sealed = packets.FastChannel._sealed
    calls = 0

    def failing(fast: Any, data: list[memoryview]) -> bytes:
        nonlocal calls
        calls += 1
        made = sealed(fast, data)
        if calls == 5:
            raise MemoryError
        return made

    monkeypatch.setattr(packets.FastChannel, "_sealed", failing)
    transport = await start(client, "cat")
    echo = Echo()
    transport.attach(echo)
    await send(transport, echo, rng.randbytes(8 * MIB), rng)
    await asyncio.wait_for(echo.over.wait(), 10)
    transport.abort()
    assert isinstance(echo.error, MemoryError) and calls == 5

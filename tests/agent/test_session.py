"""How a session ends: end of input, signals, silence; and what it finishes first."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.codec import pack_rows
from protocol.errors import LockedError, RemoteProtocolError
from protocol.manifest import Entry
from protocol.messages import Changes, Commit, GetFiles, ListOutside, Prepare, Upload, request_wire
from protocol.records import SnapshotRecord
from protocol.wire_events import ResponseReceived
from tests.agent.client import AgentGone, Client, change_body, changes_of, merged, tree_of, upload_body

pytestmark = pytest.mark.slow
TXID = "tx-session-01"

# The agent with other clocks for its heartbeats and for the client's silence.
IMPATIENT = """
import dsg_remote_agent.session as session
session.Session.__init__.__kwdefaults__.update(heartbeat_s={beat}, silence_s={silence})
from dsg_remote_agent.main import main
raise SystemExit(main())
"""


def prepared(client: Client, repo: Path) -> SnapshotRecord:
    base = client.init(repo)
    client.open(repo)
    changes: list[Entry | str] = changes_of({"f": b"new"}, [], {}, 1)
    client.begin(TXID, base)
    client.stage(TXID, changes, {"f": b"new"})
    return client.prepare(TXID, merged(client.manifest(), changes))


def staging_of(repo: Path) -> list[str]:
    return os.listdir(repo / ".dsg" / "staging")


@pytest.mark.parametrize("how", ["end of input", "SIGTERM", "SIGHUP"])
def test_the_end_aborts_the_transaction(tmp_path: Path, how: str) -> None:
    repo = tmp_path / "repo"
    with Client() as client:
        prepared(client, repo)
        assert staging_of(repo) == [TXID]
        if how == "end of input":
            assert client.close() == 0
        else:
            client.process.send_signal(signal.Signals[how])
            assert client.process.wait(10) == 0
    assert staging_of(repo) == []
    assert not (repo / ".dsg" / "journal.prepared").exists()
    assert not (repo / ".dsg" / "lock.holder").exists()
    with Client() as client:
        client.open(repo)
        client.sync("tx-session-02", {"g": b"free again"})


def test_ctrl_c_in_the_terminal_is_the_clients(tmp_path: Path) -> None:
    with Client() as client:
        client.process.send_signal(signal.SIGINT)
        client.init(tmp_path / "repo")


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
@pytest.mark.parametrize(("step", "committed"), [("remote-checked", False), ("remote-decided", True)])
def test_what_is_decided_is_finished(tmp_path: Path, how: str, step: str, committed: bool) -> None:
    repo = tmp_path / "repo"
    with Client(failpoints=f"{step}=hang:1") as client:
        record = prepared(client, repo)
        stream = client.send(Commit(repo=client.handle, txid=TXID, record=record.digest))
        time.sleep(0.3)
        assert client.process.stdin is not None
        if how == "end of input":
            client.process.stdin.close()
        else:
            client.process.send_signal(signal.SIGTERM)
        if committed:
            # The reply comes although this side has hung up.
            answers: list[ResponseReceived] = []
            while not answers:
                events = client.conn.receive(os.read(client.output, 65536))
                answers = [e for e in events if isinstance(e, ResponseReceived) and e.stream == stream]
            assert SnapshotRecord.from_bytes(answers[0].fields["record"]) == record
        assert client.process.wait(20) == 0
    assert tree_of(repo) == ({"f": b"new"} if committed else {})
    assert staging_of(repo) == []


def impatient(beat: float, silence: float, **environment: str) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", IMPATIENT.format(beat=beat, silence=silence)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root, **environment},
        bufsize=0,
    )


def test_silence_ends_the_session(tmp_path: Path) -> None:
    process = impatient(60, 1.0)
    began = time.monotonic()
    assert process.wait(20) == 0
    assert time.monotonic() - began > 0.9
    process.stdin.close()  # type: ignore[union-attr]
    process.stdout.close()  # type: ignore[union-attr]


def test_silence_aborts_and_frees_the_lock(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    with Client() as first:
        base = first.init(repo)
    process = impatient(60, 2.0)
    client = attach(process)
    client.open(repo)
    client.begin(TXID, base)
    with Client() as other:
        other.open(repo)
        with pytest.raises(LockedError):
            other.begin("tx-session-02", base)
        assert process.wait(20) == 0
        other.begin("tx-session-02", base)
    client.__exit__()


def attach(process: subprocess.Popen[bytes]) -> Client:
    """A client for an agent that was started some other way."""
    return Client(process=process)


def test_heartbeats_go_on_while_the_disk_is_slow(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    process = impatient(0.1, 60, DSG_FAILPOINTS="remote-flushed=hang:1.5")
    with attach(process) as client:
        base = client.init(repo)
        client.open(repo)
        changes: list[Entry | str] = changes_of({"f": b"new"}, [], {}, 1)
        client.begin(TXID, base)
        client.stage(TXID, changes, {"f": b"new"})
        client.conn.send_request(
            *request_wire(
                Prepare(
                    repo=client.handle,
                    txid=TXID,
                    manifest=merged(client.manifest(), changes).digest,
                    message="",
                    user="",
                    host="",
                )
            )
        )
        client.pump()
        gaps = []
        began = last = time.monotonic()
        while time.monotonic() - began < 1.2:
            assert select.select([client.output], [], [], 1.0)[0], "nothing came for a second"
            os.read(client.output, 65536)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
        assert len(gaps) >= 5
        client.kill()


def wakings(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """How often each thread of ``process`` has waited for something, by its number."""
    found = {}
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        words = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        found[task.name] = int(words["voluntary_ctxt_switches"])
    return found


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="no /proc here; to have it: make test, on Linux"
)
def test_the_middle_of_a_payload_wakes_only_the_reader(tmp_path: Path) -> None:
    content = os.urandom(500_000)
    changes: list[Entry | str] = changes_of({"f": content}, [], {}, 1)
    with Client() as client:
        base = client.init(tmp_path / "repo")
        client.open(tmp_path / "repo")
        client.begin(TXID, base)
        client.call(Changes(repo=client.handle, txid=TXID), change_body(changes))
        stream = client.conn.send_request(*request_wire(Upload(repo=client.handle, txid=TXID)), body=True)
        for payload in upload_body(changes, {"f": content}):
            client.conn.send_data(stream, payload)
        client.conn.send_end(stream)
        wire = b"".join(bytes(piece) for piece in client.conn.bytes_to_send())
        os.write(client.input, wire[:1000])
        time.sleep(0.1)
        before = wakings(client.process)
        for at in range(1000, 201_000, 1000):
            os.write(client.input, wire[at : at + 1000])
            time.sleep(0.001)
        after = wakings(client.process)
        often = [name for name in after if after[name] - before.get(name, 0) > 50]
        assert often == [str(client.process.pid)], "the main thread reads"
        os.set_blocking(client.input, True)
        rest = memoryview(wire)[201_000:]
        while rest:
            rest = rest[os.write(client.input, rest) :]
        client.answer(stream)
        client.prepare(TXID, merged(client.manifest(), changes))


def test_noise_instead_of_a_client(tmp_path: Path) -> None:
    """What is not DSG is told so, and the agent ends with the status of a protocol error."""
    process = impatient(60, 60)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"GET / HTTP/1.1\r\n\r\n")
    said = b""
    while chunk := process.stdout.read(65536):
        said += chunk
    assert process.wait(20) == 7
    assert b"bad frame" in said
    process.stdin.close()
    process.stdout.close()


def test_nothing_else_reaches_the_protocol(tmp_path: Path) -> None:
    """A print, or a child process, writes to stderr; reading standard input finds it empty."""
    script = (
        "import sys, os, subprocess\n"
        "from dsg_remote_agent.stdio import claim, announce\n"
        "source, sink = claim()\n"
        "print('stray'); sys.stdout.flush()\n"
        "subprocess.run(['echo', 'child'])\n"
        "subprocess.run(['cat'])\n"
        "announce(sink)\n"
        "sys.stderr.write(repr((sys.stdin.read(), os.get_inheritable(source), os.get_inheritable(sink))))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=b"for the protocol only",
        capture_output=True,
        env={**os.environ, "PYTHONPATH": root},
        timeout=30,
        check=True,
    )
    assert (
        done.stdout.startswith(b"\0DSG1\r\n") and b"stray" not in done.stdout and b"child" not in done.stdout
    )
    assert b"stray" in done.stderr and b"child" in done.stderr
    assert b"('', False, False)" in done.stderr


def test_a_client_that_sends_too_far_ahead(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    with Client(failpoints="remote-locked=hang:3") as client:
        base = client.init(repo)
        client.open(repo)
        from protocol.messages import Begin

        begin = Begin(repo=client.handle, txid=TXID, base=base.digest, user="", host="", adopt=False)
        client.send(begin)
        with pytest.raises(AgentGone) as caught:
            for _ in range(40):
                stream = client.conn.send_request(
                    *request_wire(Upload(repo=client.handle, txid=TXID)), body=True
                )
                for _ in range(8):
                    client.conn.send_data(stream, bytes(1 << 20))
                client.pump()
            while True:
                client.next_event()
        del caught
    assert client.process.returncode in (0, 7)


def test_requests_are_pipelined(tmp_path: Path) -> None:
    """All of a transaction is sent before the first answer is read."""
    from protocol.messages import Begin, Changes
    from tests.agent.client import change_body

    repo = tmp_path / "repo"
    puts = {f"d/{n:04d}": b"%d" % n for n in range(500)}
    with Client() as client:
        base = client.init(repo)
        client.open(repo)
        changes = changes_of(puts, [], {}, 1)
        new = merged(client.manifest(), changes)
        streams = [
            client.send(
                Begin(repo=client.handle, txid=TXID, base=base.digest, user="", host="", adopt=False)
            ),
            client.send(Changes(repo=client.handle, txid=TXID), change_body(changes)),
            client.send(Upload(repo=client.handle, txid=TXID), upload_body(changes, puts)),
            client.send(
                Prepare(repo=client.handle, txid=TXID, manifest=new.digest, message="", user="", host="")
            ),
        ]
        answers = [client.answer(stream)[0] for stream in streams]
        record = SnapshotRecord.from_bytes(answers[-1]["record"])
        client.commit(TXID, record)
        assert tree_of(repo) == puts


def test_a_cancelled_download_leaves_the_connection_usable(tmp_path: Path) -> None:

    repo = tmp_path / "repo"
    big = os.urandom(24 << 20)
    with Client() as client:
        client.init(repo)
        client.open(repo)
        client.sync("tx-session-01", {"big": big})
        (entry,) = client.manifest()
        stream = client.send(
            GetFiles(repo=client.handle, seq=1), pack_rows([(entry.path, entry.content, entry.size)])
        )
        client.next_event()
        client.conn.cancel(stream)
        client.pump()
        assert not client.call(ListOutside(repo=client.handle, skip=0))
        assert client.get(1, [entry]) == {"big": big}


def test_a_method_that_does_not_exist(tmp_path: Path) -> None:
    with Client() as client:
        stream = client.conn.send_request("repo.destroy", {"path": "/"})
        with pytest.raises(RemoteProtocolError, match=r"no method"):
            client.answer(stream)
        client.init(tmp_path / "repo")

"""Every typed call, against the real agent as a child process."""

from __future__ import annotations

import asyncio
import hashlib
import random
import string
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from dsg_client.remote.address import RemoteAddress
from dsg_client.remote.calls import RemoteAgent, RemoteRepo
from dsg_client.remote.link import open_link
from dsg_client.remote.settings import LinkSettings
from protocol.codec import Buffer
from protocol.compress import inflate
from protocol.errors import (
    ConfigError,
    DsgError,
    HeadMovedError,
    IntegrityError,
    NotPermittedError,
    RemoteProtocolError,
)
from protocol.filestream import OpKind, Packer, unpack
from protocol.manifest import FILE, LINK, Entry, Manifest
from protocol.messages import Phase
from protocol.records import SnapshotRecord

WHO = "ann"
REPO_ID = "0123456789abcdef0123456789abcdef"
TXID = "feedfacefeedfacefeedfacefeedface"


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[RemoteAgent]:
    async with await open_link(RemoteAddress(str(tmp_path)), LinkSettings()) as made:
        yield made


@pytest.fixture
async def repo(agent: RemoteAgent, tmp_path: Path) -> RemoteRepo:
    await agent.init_repo(
        str(tmp_path / "r"),
        repo_id=REPO_ID,
        algorithm="sha256",
        group="",
        user=WHO,
        host="here",
        settings="{}",
    )
    return await agent.open_repo(str(tmp_path / "r"))


def entry(path: str, content: bytes) -> Entry:
    return Entry(
        path, FILE, hashlib.sha256(content).digest(), False, len(content), 1_600_000_000_000_000_000, WHO, 1
    )


async def commit(repo: RemoteRepo, files: dict[str, bytes], txid: str = TXID) -> SnapshotRecord:
    """One whole transaction that puts ``files``."""
    base = SnapshotRecord.from_bytes(repo.opened.head)
    rows = [entry(path, content) for path, content in sorted(files.items())]
    manifest = Manifest.from_entries(rows)
    news: list[Phase] = []
    begun = await repo.begin(txid, base=base.digest, user=WHO, host="here")
    assert begun.free > 0 and not begun.outside
    async with repo.changes(txid, rows):
        pass
    async with repo.upload(txid, news.append) as upload:
        packer = Packer()
        for number, content in enumerate(files[row.path] for row in rows):
            for payload in [*packer.chunk(number, 0, content), *packer.done(number, len(content))]:
                assert await upload.send(payload)
        for payload in packer.flush():
            assert await upload.send(payload)
        uploaded = await upload.finish()
    assert (uploaded.files, uploaded.bytes) == (len(files), sum(map(len, files.values())))
    prepared = SnapshotRecord.from_bytes(
        await repo.prepare(
            txid, manifest=manifest.digest, message="first", user=WHO, host="here", news=news.append
        )
    )
    committed = await repo.commit(txid, prepared.digest)
    return SnapshotRecord.from_bytes(committed.record, prepared.digest)


async def test_a_transaction_and_all_that_can_be_read_of_it(repo: RemoteRepo) -> None:
    files = {"input/a.csv": b"1,2\n", "input/b.bin": bytes(range(256)) * 9000, "input/empty": b""}
    record = await commit(repo, files)
    assert record.seq == 1 and record.entries == 3

    found, encoded = await repo.manifest()
    assert not found.same and found.head == record.to_bytes()
    manifest = Manifest.from_bytes(encoded, record.manifest).validate()
    assert [e.path for e in manifest] == sorted(files)
    found, encoded = await repo.manifest(have=record.digest)
    assert found.same and found.known and encoded == b""

    assert [SnapshotRecord.from_bytes(r).seq for r in await repo.records(0, 100)] == [0, 1]
    old_record, old_manifest = await repo.snapshot(0)
    assert SnapshotRecord.from_bytes(old_record).seq == 0
    assert len(Manifest.from_bytes(old_manifest)) == 0

    rows = [(e.path, e.content, e.size) for e in manifest]
    came: dict[int, bytearray] = {}
    async with repo.get_files(1, rows) as download:
        async for piece in download:
            for op in unpack(inflate(piece.payload, piece.flags)):
                content = came.setdefault(op.file, bytearray())
                if op.kind is OpKind.BYTES:
                    content += op.content
                elif op.kind is OpKind.HOLE:
                    content += bytes(op.length)
    assert {rows[number][0]: bytes(content) for number, content in came.items()} == files
    assert not download.changed

    assert (await repo.outcome(TXID, 1)).outcome == "committed"
    assert (await repo.outcome("0" * 32, 2)).outcome == "aborted"
    assert not await repo.outside()
    assert await repo.recover() == ()


async def test_a_manifest_is_asked_for_in_one_breath_with_the_opening(
    agent: RemoteAgent, repo: RemoteRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await commit(repo, {"input/a": b"1"})
    written: list[bytes] = []
    write = agent.session.transport.write

    def note(chunks: Sequence[Buffer]) -> None:
        written.append(b"".join(chunks))
        write(chunks)

    monkeypatch.setattr(agent.session.transport, "write", note)
    opened = await agent.open_repo(str(tmp_path / "r"), have=record.digest)
    found, encoded = await opened.manifest(record.digest)
    assert found.same and found.head == record.to_bytes() and encoded == b""
    assert len(written) == 1

    # An answer serves once, and only the question that it was asked for.
    found, _ = await opened.manifest(record.digest)
    assert found.same and len(written) == 2
    found, _ = await (await agent.open_repo(str(tmp_path / "r"), have="")).manifest(record.digest)
    assert found.same


async def test_what_was_asked_for_along_with_a_failed_opening_is_let_go(
    agent: RemoteAgent, repo: RemoteRepo, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        await agent.open_repo(str(tmp_path / "none"), have="")
    assert await repo.recover() == ()


@pytest.mark.slow
async def test_what_nobody_reads_yet_keeps_nothing_else_from_its_answer(
    agent: RemoteAgent, repo: RemoteRepo, tmp_path: Path, rng: random.Random
) -> None:
    """The agent answers in order, and stops within a body larger than the credit until it is read."""
    base = SnapshotRecord.from_bytes(repo.opened.head)
    await repo.begin(TXID, base=base.digest, user=WHO, host="here")
    letters = string.ascii_letters + string.digits
    links = []
    for number in range(3500):
        target = "".join(rng.choices(letters, k=4000))
        links.append(Entry(f"input/{number:05}", LINK, target.encode(), False, 0, 0, WHO, 1))
    async with repo.changes(TXID, links):
        pass
    digest = Manifest.from_entries(links).digest
    raw = await repo.prepare(TXID, manifest=digest, message="", user=WHO, host="here")
    record = SnapshotRecord.from_bytes(raw)
    await repo.commit(TXID, record.digest)

    for ask in (RemoteRepo.recover, RemoteRepo.outside):
        opened = await agent.open_repo(str(tmp_path / "r"), have="")
        assert not await asyncio.wait_for(ask(opened), 20)
        found, encoded = await opened.manifest("")
        assert not found.same and found.head == raw and len(encoded) > 13_000_000


async def test_contents_follow_their_changes_at_once(repo: RemoteRepo) -> None:
    """Why the agent refuses the changes is told, not what it makes of contents that it does not expect."""
    base = SnapshotRecord.from_bytes(repo.opened.head)
    await repo.begin(TXID, base=base.digest, user=WHO, host="here")
    twice = [entry("input/a", b"1"), entry("input/a", b"1")]
    with pytest.raises(RemoteProtocolError, match="rows are out of order"):
        async with repo.changes(TXID, twice), repo.upload(TXID) as upload:
            packer = Packer()
            for payload in [*packer.chunk(1, 0, b"1"), *packer.done(1, 1), *packer.flush()]:
                await upload.send(payload)
            await upload.finish()
    await repo.abort(TXID)
    await commit(repo, {"input/a": b"1"}, "2" * 32)


async def test_an_aborted_transaction_leaves_the_head(repo: RemoteRepo) -> None:
    base = SnapshotRecord.from_bytes(repo.opened.head)
    await repo.begin(TXID, base=base.digest, user=WHO, host="here")
    async with repo.changes(TXID, [entry("input/a", b"1")]):
        pass
    await repo.abort(TXID)
    found, _ = await repo.manifest(have=base.digest)
    assert found.same
    # The lock is free again.
    await repo.begin("1" * 32, base=base.digest, user=WHO, host="here")


async def test_a_base_that_is_not_the_head(repo: RemoteRepo) -> None:
    await commit(repo, {"input/a": b"1"})
    with pytest.raises(HeadMovedError):
        await repo.begin(
            "1" * 32, base=SnapshotRecord.from_bytes(repo.opened.head).digest, user=WHO, host="x"
        )


async def test_what_is_on_the_server_can_be_adopted(repo: RemoteRepo, tmp_path: Path) -> None:
    record = await commit(repo, {"input/a": b"1", "input/b": b"2"})
    (tmp_path / "r" / "input" / "a").write_bytes(b"changed on the server")
    (tmp_path / "r" / "input" / "b").unlink()
    outside = await repo.outside()
    assert (outside.modified, outside.deleted) == (("input/a",), ("input/b",))
    await repo.begin("1" * 32, base=record.digest, user=WHO, host="here", adopt=True)
    taken = await repo.adopt("1" * 32, "bob", ["input/a", "input/b"])
    assert isinstance(taken[0], Entry)
    assert taken[0].content == hashlib.sha256(b"changed on the server").digest()
    assert taken[1] == "input/b"
    await repo.abort("1" * 32)


async def test_the_doctor_and_the_agents_errors(agent: RemoteAgent, tmp_path: Path) -> None:
    assert all(check.name for check in await agent.doctor())
    with pytest.raises(DsgError) as caught:
        await agent.open_repo(str(tmp_path / "none"))
    assert caught.value.hint


async def test_a_repository_without_its_head_is_opened_to_mend_it_only(
    agent: RemoteAgent, repo: RemoteRepo, tmp_path: Path
) -> None:
    path = tmp_path / "r"
    record = await commit(repo, {"input/a": b"1"})
    head = path / ".dsg" / "head"
    whole = head.read_bytes()
    head.write_bytes(whole[:-9])
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        await agent.open_repo(str(path))
    assert "dsg recover" in caught.value.hint
    # One that is there is left alone: somebody must decide that the records are all there were.
    opened = await agent.open_repo(str(path), mending=True)
    with pytest.raises(IntegrityError, match="cannot be read"):
        await opened.recover()
    head.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        await agent.open_repo(str(path))
    assert await opened.recover() == ("wrote .dsg/head anew: the newest snapshot is s1",)
    assert head.read_bytes() == whole
    assert (await agent.open_repo(str(path))).opened.head == record.to_bytes()


async def test_a_manifest_that_is_damaged_on_the_server(repo: RemoteRepo, tmp_path: Path) -> None:
    await commit(repo, {"input/a": b"1"})
    manifest = tmp_path / "r" / ".dsg" / "manifests" / "00000001"
    for content in (manifest.read_bytes()[:-7], b""):
        manifest.write_bytes(content)
        with pytest.raises(IntegrityError) as caught:
            await repo.manifest()
        assert caught.value.hint


async def test_rows_that_cannot_be_made_end_the_call_with_that_error(repo: RemoteRepo) -> None:
    record = await commit(repo, {"input/a": b"1"})

    def rows() -> AsyncIterator[tuple[str, bytes, int]]:
        yield ("input/a", hashlib.sha256(b"1").digest(), 1)  # type: ignore[misc]
        raise FileNotFoundError("the cache went away")

    with pytest.raises(FileNotFoundError, match="the cache went away"):
        async with repo.get_files(record.seq, rows()) as download:  # type: ignore[arg-type]
            async for _ in download:
                pass
    assert await repo.agent.doctor()


async def test_an_agents_options_hold(tmp_path: Path) -> None:
    settings = LinkSettings(agent_options=("--role", "read", "--root", str(tmp_path)))
    async with await open_link(RemoteAddress(str(tmp_path)), settings) as agent:
        with pytest.raises(NotPermittedError):
            await agent.init_repo(
                str(tmp_path / "r"), repo_id=REPO_ID, algorithm="sha256", group="", user=WHO, host="here"
            )


async def test_a_method_that_the_agent_does_not_know(agent: RemoteAgent) -> None:
    with pytest.raises(RemoteProtocolError, match="no method"):
        await agent.session.call("repo.dance", {})
    assert await agent.doctor()

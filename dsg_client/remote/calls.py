"""What an agent can be asked, as typed calls: one for each method of :mod:`protocol.messages`.

Every call raises what the agent answered with (:mod:`protocol.errors`), or the
connection's failure. A call that is cancelled, or left by an error, cancels
its request at the agent. What an answer holds has been checked field by field;
manifests and records come as bytes, to be checked by digest by the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any

from dsg_client.remote.bodies import Download, Upload, gather
from dsg_client.remote.exchange import Exchange, Notice
from dsg_client.remote.session import AgentSession
from protocol import messages as m
from protocol.codec import Scalar, pack_rows
from protocol.compress import Compressor, inflate
from protocol.errors import DsgError, IntegrityError, RemoteProtocolError
from protocol.manifest import Entry
from protocol.paths import RelPath, escape
from protocol.preamble import Preamble
from protocol.rows import RowReader, change_row
from protocol.value import Value

__all__ = ["News", "RemoteAgent", "RemoteRepo"]

_STOCK = 500  # snapshots in one answer

News = Callable[[m.Phase], None]
ManyRows = Iterable[Iterable[Scalar]]


class RemoteAgent:
    """A started agent. An async context manager: leaving it says goodbye."""

    def __init__(self, session: AgentSession, preamble: Preamble) -> None:
        self.session = session
        self.preamble = preamble
        self._repos = 0

    @property
    def name(self) -> str:
        """Where the agent runs, for messages."""
        return self.session.transport.name

    async def __aenter__(self) -> RemoteAgent:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the agent may still have something to undo: it gets the time to do so in peace.
        try:
            await self.close(undoing=kind is not None)
        except asyncio.CancelledError:
            # What the body came to stands: a cancellation here must not put itself in the place of a
            # committed sync. Whoever still waits for something gets it at the next turn.
            task = asyncio.current_task()
            if task is not None:
                asyncio.get_running_loop().call_soon(task.cancel)

    async def close(self, *, undoing: bool = False) -> None:
        """Say goodbye. Repeatable, never raises; see :meth:`AgentSession.close`."""
        await self.session.close(undoing=undoing)

    async def open_repo(
        self,
        path: str,
        *,
        mending: bool = False,
        have: str | None = None,
        examine: Callable[[], bool] = lambda: False,
    ) -> RemoteRepo:
        """Open the repository at ``path`` on the agent's machine.

        ``have``: what :meth:`RemoteRepo.manifest` will be called with; it is
        asked for in the same breath, which saves a way there and back. So is
        :meth:`RemoteRepo.examine` if ``examine`` says, when it comes to that,
        that it will be called then.
        IntegrityError when its head cannot be read, unless it is opened for ``mending``.
        """
        self._repos += 1
        number = self._repos
        opening = await self._request(m.OpenRepo(repo=number, path=path))
        early: dict[Any, Exchange] = {}
        try:
            if have is not None:
                manifest = m.GetManifest(repo=number, have=have)
                early[manifest] = await self._request(manifest)
                if examine():
                    look = m.Examine(repo=number)
                    early[look] = await self._request(look)
            opened: m.RepoOpened = m.parse_result(m.OpenRepo, await opening.response())
            if opening.has_body:
                raise RemoteProtocolError("the agent answered repo.open with a body")
        except BaseException:
            for exchange in (opening, *early.values()):
                exchange.cancel()
            raise
        repo = RemoteRepo(self, number, opened, early)
        if not opened.head and not mending:
            await repo.manifest(have or "")
            raise IntegrityError(
                f"the newest snapshot of {escape(path)} could not be read, and now it can",
                hint="Someone is mending the repository: run the command again.",
            )
        return repo

    async def init_repo(
        self,
        path: str,
        *,
        repo_id: str,
        algorithm: str,
        group: str,
        user: str,
        host: str,
        settings: str = "",
    ) -> tuple[bytes, tuple[str, ...]]:
        """Make an empty repository at ``path``; its first record's bytes, and what is unusual there."""
        made: m.RepoInitialized = await self.ask(
            m.InitRepo(
                path=path,
                repo_id=repo_id,
                algorithm=algorithm,
                group=group,
                user=user,
                host=host,
                settings=settings,
            )
        )
        return made.head, made.notes

    async def take_dataset(
        self,
        path: str,
        source: str,
        *,
        repo_id: str,
        algorithm: str,
        group: str,
        user: str,
        host: str,
        settings: str = "",
        news: News | None = None,
    ) -> tuple[bytes, tuple[str, ...]]:
        """Make the dataset ``source`` the repository at ``path``; as :meth:`init_repo`."""
        made: m.RepoInitialized = await self.ask(
            m.TakeDataset(
                path=path,
                source=source,
                repo_id=repo_id,
                algorithm=algorithm,
                group=group,
                user=user,
                host=host,
                settings=settings,
            ),
            news,
        )
        return made.head, made.notes

    async def doctor(self, path: str = "") -> tuple[m.Check, ...]:
        """The agent's checks of its machine, and of the repository at ``path``."""
        report: m.DoctorReport = await self.ask(m.Doctor(path=path))
        return report.checks

    async def ask(self, request: Any, news: News | None = None) -> Any:
        """Any request without bodies; its result."""
        method, params = m.request_wire(request)
        fields = await self.session.call(method, params, notice=_hearing(news))
        return m.parse_result(type(request), fields)

    @asynccontextmanager
    async def exchange(
        self, request: Any, *, body: bool = False, news: News | None = None
    ) -> AsyncIterator[Exchange]:
        """Any request with bodies."""
        async with await self._request(request, body=body, news=news) as found:
            yield found

    async def _request(self, request: Any, *, body: bool = False, news: News | None = None) -> Exchange:
        method, params = m.request_wire(request)
        return await self.session.request(method, params, body=body, notice=_hearing(news))

    async def send_rows(self, exchange: Exchange, rows: ManyRows) -> None:
        """Send ``rows`` as the body of a request, and its end."""
        compressor = Compressor("zstd" if "zstd" in self.session.features else "zlib")
        for payload in pack_rows(rows):
            if not await exchange.send(*compressor.compress(payload)):
                return
            # ``send`` does not wait while there is credit; a million rows must not stop the heartbeats.
            await asyncio.sleep(0)
        exchange.end()

    def send_rows_beside(self, exchange: Exchange, rows: ManyRows) -> asyncio.Task[None]:
        """Send ``rows`` while the answer is read; an error in making them ends the exchange."""

        async def send() -> None:
            try:
                await self.send_rows(exchange, rows)
            except Exception as error:  # noqa: BLE001 - passed on to who reads the answer
                exchange.cancel(because=error)

        return asyncio.create_task(send())


class RemoteRepo(Value):
    """A repository that an agent has open. ``opened``: what it said of it then.

    ``early``: what was asked for already, by its request.
    """

    agent: RemoteAgent
    number: int
    opened: m.RepoOpened
    early: dict[Any, Exchange]

    async def _begun(self, request: Any) -> Exchange:
        """A request that was perhaps made already."""
        return self.early.pop(request, None) or await self.agent._request(request)

    def _forgo(self) -> None:
        """Give up what was asked for early: the agent answers in order, and nobody would read it first."""
        while self.early:
            self.early.popitem()[1].cancel()

    async def _ask(self, request: Any, news: News | None = None) -> Any:
        self._forgo()
        return await self.agent.ask(request, news)

    def _exchange(self, request: Any, **options: Any) -> AbstractAsyncContextManager[Exchange]:
        self._forgo()
        return self.agent.exchange(request, **options)

    # Reading.

    async def manifest(self, have: str = "") -> tuple[m.ManifestFound, bytes]:
        """The head, and its manifest's bytes unless the client has them (``found.same``).

        ``have``: digest of the record whose manifest the client has.
        """
        async with await self._begun(m.GetManifest(repo=self.number, have=have)) as exchange:
            found: m.ManifestFound = m.parse_result(m.GetManifest, await exchange.response())
            if found.same == exchange.has_body:
                raise RemoteProtocolError("the agent answered 'same' with a manifest, or 'other' without one")
            return found, await gather(exchange)

    async def records(self, first: int, last: int) -> list[bytes]:
        """The records' bytes from ``first`` to ``last`` or the newest, in as many calls as it takes."""
        found: list[bytes] = []
        while first + len(found) <= last:
            request = m.GetRecords(repo=self.number, first=first + len(found), last=last)
            more: m.RecordsFound = await self._ask(request)
            found += more.records
            if len(found) > last - first + 1:
                raise RemoteProtocolError("the agent sent more records than it was asked for")
            if not more.records:
                break
        return found

    async def snapshot(self, seq: int) -> tuple[bytes, bytes]:
        """The bytes of the record and of the manifest of a snapshot."""
        async with self._exchange(m.GetSnapshot(repo=self.number, seq=seq)) as exchange:
            found: m.SnapshotFound = m.parse_result(m.GetSnapshot, await exchange.response())
            return found.record, await gather(exchange)

    async def outside(self, skip: int = 0, news: News | None = None) -> m.OutsideChanges:
        """What was changed on the server outside DSG, without the first ``skip`` added paths."""
        found: m.OutsideChanges = await self._ask(m.ListOutside(repo=self.number, skip=skip), news)
        return found

    async def examine(self) -> None:
        """Have the server do now, without the lock, what a :meth:`begin` would spend its time on."""
        async with await self._begun(m.Examine(repo=self.number)) as exchange:
            m.parse_result(m.Examine, await exchange.response())

    async def recover(self, news: News | None = None) -> tuple[str, ...]:
        """Finish or undo what a crash left; what was done."""
        found: m.Recovered = await self._ask(m.Recover(repo=self.number), news)
        return found.notes

    async def stock(self, first: int, last: int) -> list[m.SnapshotState]:
        """Which of the snapshots ``first`` to ``last`` are pruned or protected."""
        found: list[m.SnapshotState] = []
        for begin in range(first, last + 1, _STOCK):
            request = m.GetStock(repo=self.number, first=begin, last=min(last, begin + _STOCK - 1))
            more: m.StockFound = await self._ask(request)
            found += more.snapshots
        return found

    async def prune(self, rules: Mapping[str, int], *, dry_run: bool, news: News | None = None) -> m.Pruned:
        """Remove the files of the snapshots that ``rules`` (``last`` to ``monthly``) do not keep."""
        request = m.Prune(repo=self.number, dry_run=dry_run, **rules)
        found: m.Pruned = await self._ask(request, news)
        return found

    async def protect(self, seq: int, *, on: bool) -> None:
        """Have no prune remove a snapshot, or let them again."""
        await self._ask(m.Protect(repo=self.number, seq=seq, on=on))

    @asynccontextmanager
    async def get_files(self, seq: int, rows: ManyRows) -> AsyncIterator[Download]:
        """Contents as of snapshot ``seq``, for rows of path, digest and size.

        The rows are sent while the answer already comes.
        """
        request = m.GetFiles(repo=self.number, seq=seq)
        async with self._exchange(request, body=True) as exchange:
            sending = self.agent.send_rows_beside(exchange, rows)
            try:
                yield Download(exchange)
            finally:
                sending.cancel()

    # A transaction.

    async def begin(
        self,
        txid: str,
        *,
        base: str,
        user: str,
        host: str,
        adopt: bool = False,
        news: News | None = None,
    ) -> m.Begun:
        """Take the repository's lock. LockedError, HeadMovedError, OutsideChangeError: nothing was begun."""
        request = m.Begin(repo=self.number, txid=txid, base=base, user=user, host=host, adopt=adopt)
        begun: m.Begun = await self._ask(request, news)
        return begun

    @asynccontextmanager
    async def changes(self, txid: str, rows: ManyRows) -> AsyncIterator[None]:
        """Send the whole change: entries to put, ``[path]`` to delete, in canonical order.

        Its answer is waited for at the end of the context: the contents that
        are sent in it follow at once. Why the agent refused the change takes
        the place of what it then says of them.
        """
        async with self._exchange(m.Changes(repo=self.number, txid=txid), body=True) as exchange:
            await self.agent.send_rows(exchange, rows)
            try:
                yield
            except DsgError:
                exchange.raise_failure()
                raise
            m.parse_result(m.Changes, await exchange.response())

    @asynccontextmanager
    async def upload(self, txid: str, news: News | None = None) -> AsyncIterator[Upload]:
        """Send contents of files, numbered by their rows in :meth:`changes`."""
        request = m.Upload(repo=self.number, txid=txid)
        async with self._exchange(request, body=True, news=news) as exchange:
            yield Upload(exchange)

    async def adopt(self, txid: str, who: str, paths: Iterable[str]) -> list[Entry | RelPath]:
        """Take in ``paths`` as they are on the server; an entry each, or the path where nothing is."""
        request = m.Adopt(repo=self.number, txid=txid, who=who)
        async with self._exchange(request, body=True) as exchange:
            sending = self.agent.send_rows_beside(exchange, ((path,) for path in paths))
            try:
                found: list[Entry | RelPath] = []
                reader = RowReader(change_row)
                async for piece in exchange.body():
                    found += reader.read(inflate(piece.payload, piece.flags))
                return found
            finally:
                sending.cancel()

    async def prepare(
        self, txid: str, *, manifest: str, message: str, user: str, host: str, news: News | None = None
    ) -> bytes:
        """Verify and make durable all but the decision; the bytes of the record to be committed."""
        request = m.Prepare(
            repo=self.number, txid=txid, manifest=manifest, message=message, user=user, host=host
        )
        prepared: m.Prepared = await self._ask(request, news)
        return prepared.record

    async def commit(self, txid: str, record: str, news: News | None = None) -> m.Committed:
        """Decide. With the connection lost here the outcome is in doubt: ask ``outcome`` on a new one."""
        request = m.Commit(repo=self.number, txid=txid, record=record)
        committed: m.Committed = await self._ask(request, news)
        return committed

    async def abort(self, txid: str) -> None:
        """Undo the transaction and release the lock."""
        await self._ask(m.Abort(repo=self.number, txid=txid))

    async def outcome(self, txid: str, seq: int) -> m.OutcomeFound:
        """What became of a transaction that would have made snapshot ``seq``."""
        request = m.GetOutcome(repo=self.number, txid=txid, seq=seq)
        found: m.OutcomeFound = await self._ask(request)
        return found


def _hearing(news: News | None) -> Notice | None:
    if news is None:
        return None

    def hear(name: str, fields: dict[str, Any]) -> None:
        found = m.parse_notice(name, fields)
        if isinstance(found, m.Phase):
            news(found)

    return hear

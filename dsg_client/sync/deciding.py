"""The server's decision: the commit is sent, and when its answer does not come whole, asked about."""

from __future__ import annotations

import asyncio

from dsg_client.remote.calls import RemoteRepo
from dsg_client.remote.exchange import fresh
from dsg_client.sync.events import Note
from dsg_client.sync.localside import storage_error
from dsg_client.sync.settling import ask_outcome
from dsg_client.sync.site import Site
from dsg_client.sync.threads import all_over, to_the_end
from protocol.errors import DsgError, InDoubtError, InternalError, Outcome, WireError
from protocol.paths import escape
from protocol.records import SnapshotRecord
from protocol.transaction import Step

__all__ = ["commit_there"]

# A network that was gone for a moment is back by then, and a server's sshd started again.
_PATIENCE = 10.0


async def commit_there(site: Site, repo: RemoteRepo, txid: str, record: SnapshotRecord) -> list[str]:
    """Have the server commit what it prepared as ``record``; its notes. Returns when it is committed.

    An error whose outcome is ABORTED is final: the server said so, after it
    had undone all. Any other way in which the answer fails to come says
    nothing of the decision, and the server is asked on a new connection, for
    some seconds again and again; InDoubtError when it cannot be. Over a
    connection that is known to be gone nothing is sent: its error is final.
    """
    if repo.agent.session.failure is not None:
        raise fresh(repo.agent.session.failure)
    sending = asyncio.ensure_future(repo.commit(txid, record.digest))
    try:
        await asyncio.sleep(0)  # the request is written before the failpoint can stop us
        await to_the_end(site.failpoints.reach, Step.COMMIT_SENT)
        committed = await sending
    except DsgError as error:
        if error.outcome is Outcome.COMMITTED:
            return [f"the server committed, and then reported: {escape(error.message)}"]
        if error.outcome is Outcome.ABORTED and _is_an_answer(repo, error):
            raise
        return await _ask(site, repo, txid, record, error)
    except Exception as error:  # noqa: BLE001 - whatever it was, the request may have been heard
        sending.cancel()
        await all_over([sending])
        return await _ask(site, repo, txid, record, _in_words(error))
    if committed.record != record.to_bytes():
        raise InDoubtError(
            "the server answered the commit with another record than the prepared one",
            hint="Run 'dsg recover'; it asks the server again.",
        )
    return list(committed.notes)


def _in_words(error: Exception) -> DsgError:
    if isinstance(error, OSError):
        return storage_error("Committing", error)
    return InternalError(f"{type(error).__name__}: {error}", hint="This is a bug in DSG.")


def _is_an_answer(repo: RemoteRepo, error: DsgError) -> bool:
    """Whether ``error`` is what the agent answered, not what became of the connection or of its answer."""
    return repo.agent.session.failure is None and not isinstance(error, WireError | InternalError)


async def _ask(site: Site, repo: RemoteRepo, txid: str, record: SnapshotRecord, lost: DsgError) -> list[str]:
    site.emit(Note(f"{lost.message}; asking whether the server committed ..."))
    # An agent that still has the transaction would keep the next one from it.
    await repo.agent.close(undoing=True)
    if await ask_outcome(site, txid, record, patience=_PATIENCE) == "committed":
        return []
    raise type(lost)(
        f"{lost.message} (before the server had decided)",
        hint=lost.hint,
        facts=lost.facts,
        outcome=Outcome.ABORTED,
    )

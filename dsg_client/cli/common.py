"""What the commands share: their common options, and running a coroutine until Ctrl-C."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from dsg_client.cli.render import Output, show_connection
from protocol.errors import ConfigError, DsgError, InterruptedSyncError

if TYPE_CHECKING:
    from dsg_client.sync.ahead import Ahead

__all__ = [
    "begun_ahead",
    "common_options",
    "connection_options",
    "exit_statuses",
    "import_aside",
    "import_asyncio",
    "run",
]

T = TypeVar("T")

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_STATUS_TEXT = {
    0: "done, or nothing to do",
    1: "internal error; doctor: something needs attention",
    2: "usage",
    3: "conflicts: nothing changed",
    4: "configuration",
    5: "locked by another sync",
    6: "connection, sign-in, agent start, time-out",
    7: "protocol, incompatible versions",
    8: "integrity: digest, chain, wrong or older repository",
    9: "remote storage",
    10: "local storage",
    11: "in doubt: run again to settle",
    12: "names or paths refused",
    13: "stopped by the mass-deletion guard",
    14: "not permitted by the repository or its role",
    15: "local files changed during the sync",
    16: "repository changed outside DSG",
    20: "changes wait (with --check)",
    130: "interrupted",
}


def exit_statuses(*numbers: int) -> str:
    """The EXIT STATUS block of a command's help."""
    rows = "\n".join(f"  {n:>3}  {_STATUS_TEXT[n]}" for n in (0, *numbers))
    return f"\b\nExit status:\n{rows}"


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``, ``--quiet``, ``-v``; passes ``output`` to the command."""

    @click.option("--json", "json_mode", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
    @click.option("-v", "--verbose", count=True, help="Say more; twice: show the connection too.")
    @functools.wraps(function)
    def command(*args: Any, json_mode: bool, quiet: bool, verbose: int, **kwargs: Any) -> Any:
        output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose)
        if verbose > 1:
            show_connection()
        try:
            os.getcwd()
        except OSError:
            raise ConfigError(
                "the current folder is not there any more",
                hint="Go to another folder, and try again there.",
            ) from None
        # Found there by ``main``, for the log.
        click.get_current_context().find_root().obj["output"] = output
        return function(*args, output=output, **kwargs)

    return command


def begun_ahead() -> Ahead | None:
    """What was begun for this command before click read its line; not to be taken twice."""
    ahead: Ahead | None = click.get_current_context().find_root().obj.get("ahead")
    return ahead


def connection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--accept-new-host-key``, for commands that talk to a server."""
    return click.option(
        "--accept-new-host-key",
        is_flag=True,
        help="On first contact, write the server's host key to known_hosts (its fingerprint is shown).",
    )(function)


def import_asyncio() -> None:
    """Import asyncio without ssl, as in a Python that has none: 5 ms less of every command.

    ssl itself can be imported afterwards; only asyncio's own TLS is not there.
    """
    if "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment] # "there is no such module"
    try:
        importlib.import_module("asyncio")
    finally:
        del sys.modules["ssl"]


async def import_aside(name: str) -> None:
    """Import a module in a thread: a connection that is being made goes on meanwhile."""
    import asyncio

    await asyncio.to_thread(importlib.import_module, name)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; Ctrl-C and SIGTERM cancel it, so that it can undo what it began.

    What the coroutine raises comes out; a cancellation comes out as
    InterruptedSyncError unless the coroutine gave it a better meaning. Once it
    has ended, such a signal does nothing any more: an interrupt must not put
    itself in the place of the answer that is about to be given.
    """
    import_asyncio()
    import asyncio

    ended: list[Callable[[], T]] = []

    async def watched() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.add_signal_handler(number, task.cancel)
        try:
            result = await main
        except asyncio.CancelledError:
            ended.append(partial(_raise, InterruptedSyncError("interrupted")))
        except OSError as error:
            ended.append(partial(_raise, error if isinstance(error, BrokenPipeError) else _storage(error)))
        except BaseException as error:  # noqa: BLE001 - raised again below
            ended.append(partial(_raise, error))
        else:
            ended.append(lambda: result)

    try:
        asyncio.run(watched())
    except KeyboardInterrupt:
        if not ended:
            raise
    finally:
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
    return ended[0]()


def _storage(error: OSError) -> DsgError:
    """What the system refused where nobody had thought of it: no bug, but this machine's disk."""
    from dsg_client.sync.localside import storage_error

    failure = storage_error("The command", error)
    failure.__cause__ = error
    return failure


def _raise(error: BaseException) -> NoReturn:
    raise error from error.__cause__

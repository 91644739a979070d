"""``dsg sync``: local and remote together, in one transaction."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from dsg_client.cli.common import begun_ahead, common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output, bytes_text, count_text, plural


@click.command(
    name="sync",
    short_help="Bring this folder and the repository together.",
    epilog=exit_statuses(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 130),
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would happen; change nothing.")
@click.option("-m", "--message", default="", help="A line for the log.")
@click.option(
    "--retries", type=click.IntRange(0, 100), default=0, help="Start again after a transient error."
)
@click.option("--prefer", type=click.Choice(["local", "remote"]), help="Settle every conflict for one side.")
@click.option("--allow-mass-delete", is_flag=True, help="Let this sync delete most of a side.")
@click.option("--normalize", is_flag=True, help="First rename local names that have another Unicode form.")
@connection_options
@common_options
def command(
    output: Output,
    dry_run: bool,
    message: str,
    retries: int,
    prefer: str | None,
    allow_mass_delete: bool,
    normalize: bool,
    accept_new_host_key: bool,
) -> None:
    """Bring this folder and the repository together, whole or not at all.

    What changed here goes to the server, what changed there comes here. A file
    changed on both sides is a conflict: every one is listed, and nothing moves.

    \b
    Examples:
      dsg sync                          the everyday command
      dsg sync -n                       what would it do?
      dsg sync -m "new survey wave"     with a line for the log
      dsg sync --prefer remote          conflicts: take the server's files
                                        (yours are kept in .dsg/replaced)
      dsg sync --quiet --retries 5      from a script
    """
    from dsg_client.sync.ahead import Ahead, ahead_of

    async def main(ahead: Ahead) -> Any:
        import asyncio

        from dsg_client.sync.opening import opened

        async with opened(ahead, "dsg_client.sync.run", accept_new_host_key=accept_new_host_key) as site:
            from dsg_client.sync.run import SyncOptions, sync

            # The log's line comes last, when somebody waits; now it is the server that is waited for.
            asyncio.get_running_loop().run_in_executor(None, import_module, "dsg_client.cli.logfile")
            options = SyncOptions(
                dry_run=dry_run,
                message=message,
                retries=retries,
                prefer=prefer,
                allow_mass_delete=allow_mass_delete,
                normalize=normalize,
            )
            return site, await sync(site, options, output.on_event)

    # Names that are normalized first must not be looked at before.
    with begun_ahead() or ahead_of(None if dry_run else "dsg sync", begin=not normalize) as ahead:
        site, result = run(main(ahead))
    output.finish_progress()
    output.result(result.fields())
    if result.state == "done":
        output.log(remote=str(site.address), seq=result.seq, record=result.record)
    for line in _lines(result, output.verbose):
        output.say(line)


def _lines(result: Any, verbose: int) -> list[str]:
    changes = result.changes
    if result.state == "nothing":
        return [f"Nothing to do: in step with s{result.seq} ({plural(result.entries, 'file')})."]
    shown = changes.lines() if result.state == "dry-run" or verbose else changes.lines(limit=10)
    summary = count_text(
        [
            (len(changes.upload), f"uploaded ({bytes_text(changes.upload_bytes)})"),
            (len(changes.download), f"downloaded ({bytes_text(changes.download_bytes)})"),
            (len(changes.delete_remote), "deleted on the server"),
            (len(changes.delete_local), "deleted here"),
        ]
    )
    if result.state == "dry-run":
        return [*shown, f"Dry run, nothing was changed. A sync would have {summary}."]
    if not changes:
        return [f"In step with s{result.seq} ({plural(result.entries, 'file')}): nothing had to move."]
    where = f"s{result.seq}" if result.made_snapshot else f"at s{result.seq}"
    return [*shown, f"{where}: {summary}."]

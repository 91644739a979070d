"""``dsg status``: what a sync would do."""

from __future__ import annotations

from typing import Any

import click

from dsg_client.cli.common import begun_ahead, common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output, plural

CHANGES_WAIT = 20


@click.command(
    name="status",
    short_help="Show what a sync would do.",
    epilog=exit_statuses(2, 3, 4, 6, 7, 8, 9, 10, 12, 14, 15, 20, 130),
)
@click.option("--offline", is_flag=True, help="Do not ask the server: what changed here since the last sync.")
@click.option("--check", is_flag=True, help="Exit 20 when changes wait, 3 when conflicts do.")
@click.option("--verify", is_flag=True, help="Read every byte again instead of trusting times and sizes.")
@connection_options
@common_options
def command(output: Output, offline: bool, check: bool, verify: bool, accept_new_host_key: bool) -> None:
    """Show what a sync would do, and every conflict. Changes nothing.

    \b
    Examples:
      dsg status                 against the server
      dsg status --offline       only what changed here
      dsg status --check -q      for scripts: exit 20 when changes wait
      dsg status --verify        read every byte: finds silent damage
    """
    from dsg_client.sync.ahead import Ahead, ahead_of

    async def main(ahead: Ahead) -> Any:
        from dsg_client.sync.opening import opened

        opening = opened(
            ahead, "dsg_client.sync.status", connect=not offline, accept_new_host_key=accept_new_host_key
        )
        async with opening as site:
            from dsg_client.sync.status import status

            return await status(site, offline=offline, verify=verify, emit=output.on_event)

    with begun_ahead() or ahead_of(None, verify=verify) as ahead:
        found = run(main(ahead))
    output.finish_progress()
    waiting = bool(found.changes or found.conflicts)
    code = (3 if found.conflicts else CHANGES_WAIT) if check and waiting else 0
    output.result({"exit_status": code, **found.fields()})
    output.say(found.headline())
    for line in found.changes.lines(limit=None if output.verbose else 20):
        output.say(line)
    if found.conflicts:
        output.say(plural(len(found.conflicts), "conflict") + ":")
        for text in found.conflict_lines():
            output.say(text)
        output.say("Settle them by making the files equal, or: dsg sync --prefer local|remote")
    elif not waiting:
        output.say("Nothing to do.")
    if found.guard and not found.conflicts:
        for deletion in found.guard:
            output.say(f"A sync would stop: {deletion.explain()}.")
        output.say("If that is what you want: dsg sync --allow-mass-delete")
    if code:
        raise click.exceptions.Exit(code)

"""``dsg recover``: settle what a crash left."""

from __future__ import annotations

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output


@click.command(
    name="recover",
    short_help="Finish or undo a sync that was interrupted.",
    epilog=exit_statuses(2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 130),
)
@click.option(
    "--abandon",
    is_flag=True,
    help="Give up the local side of a sync whose outcome the server cannot tell (nothing here has changed).",
)
@click.option(
    "--rebuild-cache",
    is_flag=True,
    help="Make a lost or damaged cache anew from the files that are the same here and on the server.",
)
@connection_options
@common_options
def command(output: Output, abandon: bool, rebuild_cache: bool, accept_new_host_key: bool) -> None:
    """Finish or undo a sync that was interrupted, here and on the server.

    Every sync does this by itself before it starts; the command is for doing
    it without syncing, and for the two ways out that need a decision.

    \b
    Examples:
      dsg recover
      dsg recover --abandon         the server is gone for good
      dsg recover --rebuild-cache   the cache is missing or damaged
    """
    from dsg_client.sync.recovery import recover
    from dsg_client.sync.site import open_site

    if abandon and rebuild_cache:
        raise click.UsageError("--abandon and --rebuild-cache are two different ways out; give one")
    site = open_site(accept_new_host_key=accept_new_host_key)
    notes = run(recover(site, abandon=abandon, rebuild_cache=rebuild_cache, emit=output.on_event))
    output.finish_progress()
    output.result({"settled": notes})
    if notes:
        output.log(settled=notes)
    for note in notes or ["Nothing to settle."]:
        output.say(note)

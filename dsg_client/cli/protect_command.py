"""``dsg protect``: keep a snapshot whatever is pruned."""

from __future__ import annotations

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output


@click.command(
    name="protect",
    short_help="Keep a snapshot, whatever is pruned.",
    epilog=exit_statuses(2, 4, 5, 6, 7, 8, 9, 10, 14, 130),
)
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option("--remove", is_flag=True, help="Let it be pruned again.")
@connection_options
@common_options
def command(output: Output, snapshot: str, remove: bool, accept_new_host_key: bool) -> None:
    """Keep a snapshot on the server, whatever 'dsg prune' is told.

    SNAPSHOT is its number, as 'dsg log' shows it: s12. 'dsg log' marks what is
    protected. On ZFS this is a hold: 'zfs destroy' refuses it too.

    \b
    Examples:
      dsg protect s12
      dsg protect s12 --remove
    """
    from dsg_client.sync.retention import parse_snapshot, protect
    from dsg_client.sync.site import open_site

    seq = parse_snapshot(snapshot)
    site = open_site(accept_new_host_key=accept_new_host_key)
    run(protect(site, seq, on=not remove, emit=output.on_event))
    output.result({"seq": seq, "protected": not remove})
    output.log(remote=str(site.address), seq=seq, protected=not remove)
    output.say(f"s{seq} can be pruned again." if remove else f"s{seq} is protected: no prune removes it.")

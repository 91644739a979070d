"""``dsg remote``: where the repository is."""

from __future__ import annotations

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output


@click.command(
    name="remote",
    short_help="Show where the repository is, or set it after it moved.",
    epilog=exit_statuses(2, 4, 5, 6, 7, 8, 9, 10, 14, 130),
)
@click.argument("action", type=click.Choice(["show", "set"]), default="show")
@click.argument("remote", metavar="[REMOTE]", required=False)
@connection_options
@common_options
def command(output: Output, action: str, remote: str | None, accept_new_host_key: bool) -> None:
    """Show where the repository is, or set it after it moved.

    'set' asks the server at the new address: it must hold the same repository
    (by its id), with the last synced snapshot in its history.

    \b
    Examples:
      dsg remote
      dsg remote set alice@newserver:/srv/dsg/survey
    """
    from dsg_client.sync.setup import set_remote
    from dsg_client.sync.site import open_site

    site = open_site(accept_new_host_key=accept_new_host_key)
    if action == "set":
        if not remote:
            raise click.UsageError("'dsg remote set' needs the new REMOTE")
        shown = run(set_remote(site, remote, output.on_event))
        output.result({**site.remote_fields(), "remote": shown, "set": True})
        output.log(remote=shown)
        output.say(f"{shown}: the same repository; .dsgconfig.yml names it now.")
        return
    if remote:
        raise click.UsageError("'dsg remote' takes no argument; to change it: dsg remote set REMOTE")
    fields = site.remote_fields()
    output.result({**fields, "set": False})
    output.say(str(fields["remote"]))
    if fields["seq"] is not None:
        output.say(f"  repository {fields['repo_id']}, last synced s{fields['seq']}")

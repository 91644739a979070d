"""``dsg doctor``: look at this machine, the connection and the server."""

from __future__ import annotations

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output
from protocol.paths import escape


@click.command(
    name="doctor",
    short_help="Check folder, connection and server; name the cures.",
    epilog=exit_statuses(1, 2, 4, 130),
)
@click.argument("remote", metavar="[REMOTE]", required=False)
@connection_options
@common_options
def command(output: Output, remote: str | None, accept_new_host_key: bool) -> None:
    """Check this folder, the connection, the agent and the repository; name the cures.

    Exit 1 when something needs attention. With REMOTE it needs no working
    folder: for trying a server out before the first 'dsg init'.

    \b
    Examples:
      dsg doctor
      dsg doctor alice@server:/srv/dsg/survey
    """
    from dsg_client.sync.doctor import doctor

    checks = run(doctor(remote, accept_new_host_key=accept_new_host_key, emit=output.on_event))
    bad = [check for check in checks if not check.ok]
    output.result({"exit_status": 1 if bad else 0, "checks": [check.fields() for check in checks]})
    for check in checks:
        output.say(f"{'ok  ' if check.ok else 'BAD '} {check.name}: {escape(check.detail)}")
        if not check.ok and check.cure:
            for line in check.cure.splitlines():
                output.say(f"       {escape(line)}")
    if bad:
        raise click.exceptions.Exit(1)

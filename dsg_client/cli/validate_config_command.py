"""``dsg validate-config``: check the configuration."""

from __future__ import annotations

import click

from dsg_client.cli.common import common_options, exit_statuses
from dsg_client.cli.render import Output
from protocol.paths import escape


@click.command(
    name="validate-config",
    short_help="Check the configuration; show what holds.",
    epilog=exit_statuses(2, 4),
)
@common_options
def command(output: Output) -> None:
    """Check .dsgconfig.yml, the user settings and DSG_* variables; show what holds and whence.

    \b
    Examples:
      dsg validate-config
      dsg validate-config --json
    """
    from dsg_client.sync.site import describe_config

    rows = describe_config()
    output.result({"settings": rows})
    for row in rows:
        value = row["value"]
        shown = escape(", ".join(value) if isinstance(value, list) else str(value)) or "-"
        output.say(f"{row['name']:<20} {shown}  ({row['source']})")

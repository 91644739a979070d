"""``dsg list-files``: what is synced."""

from __future__ import annotations

import time

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output, bytes_text
from protocol.paths import escape


@click.command(
    name="list-files",
    short_help="List the files of the last sync, or of the server.",
    epilog=exit_statuses(2, 4, 6, 7, 8, 9, 10, 14, 130),
)
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option(
    "--remote", "from_remote", is_flag=True, help="Ask the server, also for what is out of scope here."
)
@click.option("-l", "--long", "long_form", is_flag=True, help="With size, time and who changed it last.")
@connection_options
@common_options
def command(
    output: Output, patterns: tuple[str, ...], from_remote: bool, long_form: bool, accept_new_host_key: bool
) -> None:
    """List the files of the last sync (offline), or of the repository's head.

    PATTERN is a path, a folder, or a shell pattern in quotes.

    \b
    Examples:
      dsg list-files
      dsg list-files -l task1/input '*.csv'
      dsg list-files --remote
    """
    from dsg_client.sync.history import list_files
    from dsg_client.sync.site import open_site

    site = open_site(accept_new_host_key=accept_new_host_key)
    seq, rows = run(list_files(site, patterns, from_remote, output.on_event))
    output.result({"seq": seq, "files": [dict(row) for row in rows] if output.json_mode else []})
    if output.json_mode:
        return
    for row in rows:
        link = f" -> {escape(row['target'])}" if row["kind"] == "link" else ""
        if long_form:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["mtime"])) if row["mtime"] else " " * 16
            mark = "*" if row["executable"] else " "
            head = f"{bytes_text(row['size']):>10} {when} s{row['seq']:<5}{mark}"
            output.say(f"{head}{escape(row['path'])}{link}  {escape(row['who'])}")
        else:
            output.say(f"{escape(row['path'])}{link}")

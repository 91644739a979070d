"""``dsg log``: the snapshots, newest first."""

from __future__ import annotations

import time

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output, bytes_text, count_text, plural
from protocol.paths import escape


@click.command(
    name="log",
    short_help="Show who synced what and when.",
    epilog=exit_statuses(2, 4, 6, 7, 8, 9, 10, 14, 130),
)
@click.option(
    "-n", "--number", type=click.IntRange(1), default=20, help="How many, newest first (default 20)."
)
@connection_options
@common_options
def command(output: Output, number: int, accept_new_host_key: bool) -> None:
    """Show who synced what and when, newest first.

    The chain of records is checked while it is read: each one holds the digest
    of the one before it.

    \b
    Examples:
      dsg log
      dsg log -n 3
      dsg log --json
    """
    from dsg_client.sync.history import log
    from dsg_client.sync.site import open_site

    site = open_site(accept_new_host_key=accept_new_host_key)
    records, known = run(log(site, number, output.on_event))
    output.result({"snapshots": records, "synced": known})
    for r in records:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(r["time"]))
        marks = ["this folder"] if r["seq"] == known else []
        marks += ["pruned: only its record is left"] if r["pruned"] else []
        marks += [escape(r["protected"])] if r["protected"] else []
        mark = f"  ({', '.join(marks)})" if marks else ""
        output.say(f"s{r['seq']}  {when}  {escape(r['user'])} on {escape(r['host'])}{mark}")
        if r["message"]:
            output.say(f"    {escape(r['message'])}")
        if not r["seq"]:
            output.say("    the repository was made, empty")
            continue
        changed = count_text([(r["added"], "added"), (r["changed"], "changed"), (r["deleted"], "deleted")])
        output.say(f"    {changed}; {plural(r['entries'], 'file')} in all, {bytes_text(r['size'])}")

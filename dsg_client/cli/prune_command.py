"""``dsg prune``: have older snapshots' files go, by rules."""

from __future__ import annotations

import time

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output, plural
from protocol.paths import escape

_N = click.IntRange(1, 1_000_000)


@click.command(
    name="prune",
    short_help="Remove old snapshots' files from the server, by rules.",
    epilog=exit_statuses(2, 4, 5, 6, 7, 8, 9, 10, 14, 130),
)
@click.option("--keep-last", type=_N, metavar="N", help="Keep the newest N.")
@click.option("--keep-hourly", type=_N, metavar="N", help="Keep the newest of each of N hours.")
@click.option("--keep-daily", type=_N, metavar="N", help="Keep the newest of each of N days.")
@click.option("--keep-weekly", type=_N, metavar="N", help="Keep the newest of each of N weeks.")
@click.option("--keep-monthly", type=_N, metavar="N", help="Keep the newest of each of N months.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would go; change nothing.")
@connection_options
@common_options
def command(
    output: Output,
    keep_last: int | None,
    keep_hourly: int | None,
    keep_daily: int | None,
    keep_weekly: int | None,
    keep_monthly: int | None,
    dry_run: bool,
    accept_new_host_key: bool,
) -> None:
    """Remove the files of snapshots that no rule keeps; their records stay in the log.

    At least one rule. Each looks at all snapshots for itself, and what any of
    them keeps is kept. Hours, days, weeks and months are by UTC and the
    server's clock, and only those count in which there is a snapshot. A rule
    that finds fewer than N keeps the oldest snapshot too. The newest one, and
    what 'dsg protect' protects, always stay.

    \b
    Examples:
      dsg prune --keep-last 20 --keep-daily 30 --keep-monthly 24 --dry-run
      dsg prune --keep-last 20 --keep-daily 30 --keep-monthly 24
    """
    from dsg_client.sync.retention import prune
    from dsg_client.sync.site import open_site

    given = {
        "last": keep_last,
        "hourly": keep_hourly,
        "daily": keep_daily,
        "weekly": keep_weekly,
        "monthly": keep_monthly,
    }
    rules = {name: number or 0 for name, number in given.items()}
    if not any(rules.values()):
        raise click.UsageError(
            "nothing says what to keep: give at least one of " + ", ".join(f"--keep-{name}" for name in given)
        )
    site = open_site(accept_new_host_key=accept_new_host_key)
    found = run(prune(site, rules, dry_run=dry_run, emit=output.on_event))
    for row in found.snapshots:
        if row["verdict"] == "left":
            output.warn(f"s{row['seq']} is kept for now: {escape(row['why'])}; prune again later")
    output.result({"dry_run": dry_run, **found.fields()})
    if found.pruned and not dry_run:
        output.log(remote=str(site.address), pruned=found.pruned, kept=found.kept)
    for row in found.snapshots if dry_run or output.verbose else ():
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["time"]))
        why = f"  ({escape(row['why'])})" if row["why"] else ""
        output.say(f"  {row['verdict']:<6} s{row['seq']:<6} {when} UTC  {escape(row['user'])}{why}")
    counted = f"{plural(found.pruned, 'snapshot')} pruned, {found.kept + found.left:,} kept"
    if dry_run:
        output.say(f"Dry run: {counted.replace('pruned', 'would be pruned')}; nothing was changed.")
    else:
        output.say(f"{counted}.")

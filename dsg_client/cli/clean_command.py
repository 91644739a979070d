"""``dsg clean``: remove what DSG no longer needs from the working folder."""

from __future__ import annotations

import click

from dsg_client.cli.common import common_options, exit_statuses
from dsg_client.cli.render import Output, bytes_text
from protocol.paths import escape


@click.command(
    name="clean",
    short_help="Remove leftovers of interrupted syncs.",
    epilog=exit_statuses(2, 4, 5, 8, 10, 11),
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed.")
@click.option(
    "--replaced", is_flag=True, help="Also the files that a sync replaced and kept in .dsg/replaced."
)
@click.option("--index", is_flag=True, help="Also the stat index: the next scan reads every file again.")
@common_options
def command(output: Output, dry_run: bool, replaced: bool, index: bool) -> None:
    """Remove leftovers of interrupted syncs below .dsg; never anything of yours.

    Refuses while a sync waits to be settled ('dsg recover' does that).

    \b
    Examples:
      dsg clean -n
      dsg clean --replaced
    """
    from dsg_client.sync.care import clean
    from dsg_client.sync.site import open_site

    removed = clean(open_site(), dry_run=dry_run, replaced=replaced, index=index)
    output.result({"dry_run": dry_run, "removed": [{"path": path, "size": size} for path, size in removed]})
    for path, size in removed:
        output.say(f"  {bytes_text(size):>10}  {escape(path)}")
    word = "would be removed" if dry_run else "removed"
    output.say(
        f"{len(removed):,} {word} ({bytes_text(sum(size for _, size in removed))})." if removed else "Clean."
    )

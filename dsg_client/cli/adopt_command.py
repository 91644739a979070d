"""``dsg adopt``: take in what changed on the server outside DSG."""

from __future__ import annotations

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output, count_text
from protocol.paths import escape


@click.command(
    name="adopt",
    short_help="Take in what was changed on the server without DSG.",
    epilog=exit_statuses(2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 130),
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be taken in; change nothing.")
@click.option("-m", "--message", default="", help="A line for the log.")
@connection_options
@common_options
def command(output: Output, dry_run: bool, message: str, accept_new_host_key: bool) -> None:
    """Make a snapshot of what someone changed in the repository's folder itself.

    A sync stops with exit 16 when files on the server were changed without
    DSG. 'dsg adopt' takes those changes in as they are, within this folder's
    data_dirs and ignore rules; the next sync brings them here.

    \b
    Examples:
      dsg adopt --dry-run
      dsg adopt -m "corrected on the server by hand"
    """
    from dsg_client.sync.adopt import adopt
    from dsg_client.sync.site import open_site

    site = open_site(accept_new_host_key=accept_new_host_key)
    found = run(adopt(site, dry_run=dry_run, message=message, emit=output.on_event))
    output.result(found.fields())
    if found.seq is not None:
        output.log(remote=str(site.address), seq=found.seq)
    for word, paths in (("changed", found.modified), ("gone", found.deleted), ("new", found.added)):
        for path in paths[: None if output.verbose else 20]:
            output.say(f"  {word:<8} {escape(path)}")
    summary = count_text(
        [(len(found.modified), "changed"), (len(found.deleted), "gone"), (len(found.added), "new")]
    )
    if summary == "nothing":
        output.say("Nothing to adopt: the folder on the server is what DSG last wrote.")
    elif found.seq is None:
        output.say(f"Dry run: {summary}; nothing was changed.")
    else:
        output.say(f"s{found.seq}: {summary}. 'dsg sync' brings it here.")

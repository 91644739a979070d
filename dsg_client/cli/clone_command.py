"""``dsg clone``: a working folder from a repository."""

from __future__ import annotations

from typing import Any

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, import_aside, run
from dsg_client.cli.render import Output, bytes_text, plural


@click.command(
    name="clone",
    short_help="Make a working folder from a repository.",
    epilog=exit_statuses(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 130),
)
@click.argument("remote", metavar="[REMOTE]", required=False)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--transport", type=click.Choice(["asyncssh", "openssh"]), help="How to reach the server.")
@click.option("--agent-command", help="What starts the agent on the server, if it is not on its PATH.")
@connection_options
@common_options
def command(
    output: Output,
    remote: str | None,
    directory: str | None,
    transport: str | None,
    agent_command: str | None,
    accept_new_host_key: bool,
) -> None:
    """Take a copy of the repository REMOTE into DIR (default: its last part).

    Without REMOTE, in a folder that has .dsgconfig.yml (such as a fresh git
    checkout): fetch the data that belongs to it. Files that are there and
    match are taken over; where one differs, all such files are listed and
    nothing is changed. After an interruption, run it again in the folder.

    \b
    Examples:
      dsg clone alice@server:/srv/dsg/survey
      dsg clone server:/srv/dsg/survey ~/projects/survey
      git clone ... && cd survey && dsg clone
    """
    from dsg_client.sync.target import clone_target

    async def main() -> Any:
        target = clone_target(
            remote,
            directory,
            transport=transport,
            agent_command=agent_command,
            accept_new_host_key=accept_new_host_key,
        )
        async with target.link.connecting():
            await import_aside("dsg_client.sync.clone")
            from dsg_client.sync.clone import clone

            return await clone(target, output.on_event)

    made = run(main())
    output.finish_progress()
    output.result(made.fields())
    output.log(remote=made.remote, repo_id=made.repo_id)
    output.say(
        f"{made.directory}: in step with s{made.seq} of {made.remote}: "
        f"{plural(made.downloaded, 'file')} downloaded ({bytes_text(made.bytes)})"
        + (f", {made.taken_over:,} taken over." if made.taken_over else ".")
    )

"""``dsg init``: a new repository for this folder."""

from __future__ import annotations

import click

from dsg_client.cli.common import common_options, connection_options, exit_statuses, run
from dsg_client.cli.render import Output


@click.command(
    name="init",
    short_help="Make an empty repository and connect this folder with it.",
    epilog=exit_statuses(2, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 130),
)
@click.argument("remote", metavar="REMOTE")
@click.option("--name", help="The project's name (default: the last part of REMOTE).")
@click.option("--data-dir", "data_dirs", multiple=True, help="A folder name to sync; repeatable. '*': all.")
@click.option("--ignore", multiple=True, help="A gitignore pattern to leave out; repeatable.")
@click.option("--group", default="", help="The Unix group on the server that shares the repository.")
@click.option(
    "--hash", "algorithm", type=click.Choice(["sha256", "blake3"]), default="sha256", help="Digest."
)
@click.option(
    "--from-dataset",
    metavar="POOL/DATASET",
    help="Make the repository of this dataset on the server, with all its files, without copying.",
)
@click.option("--transport", type=click.Choice(["asyncssh", "openssh"]), help="How to reach the server.")
@click.option("--agent-command", help="What starts the agent on the server, if it is not on its PATH.")
@connection_options
@common_options
def command(
    output: Output,
    remote: str,
    name: str | None,
    data_dirs: tuple[str, ...],
    ignore: tuple[str, ...],
    group: str,
    algorithm: str,
    from_dataset: str | None,
    transport: str | None,
    agent_command: str | None,
    accept_new_host_key: bool,
) -> None:
    """Make an empty repository at REMOTE and connect this folder with it.

    REMOTE is [user@]host:/path or [user@]host:zfs:pool/dataset, or the same
    without a host for this machine. Nothing is
    uploaded: 'dsg status' then shows what the first 'dsg sync' would send.
    Synced are the folders named input, output and frozen, anywhere below here,
    unless --data-dir says otherwise. Inside a git work tree they are added to
    .gitignore, and .dsgconfig.yml is for committing.

    With --from-dataset the repository is not empty: a dataset that has files
    already becomes its s0, by renaming. REMOTE must be a dataset in the same
    pool, and the agent must be root (or root runs what is then shown). Nobody
    may use the dataset meanwhile; its old path becomes a link. Files here that
    are the same there are in step; the first sync shows what differs.

    \b
    Examples:
      dsg init alice@server:/srv/dsg/survey
      dsg init server:/srv/dsg/survey --group research
      dsg init server:/srv/dsg/survey --data-dir data --data-dir results
      dsg init /mnt/share/survey --data-dir '*' --ignore '*.tmp'
      dsg init root@server:zfs:tank/dsg/survey --from-dataset tank/data/survey
    """
    from dsg_client.sync.setup import init

    made = run(
        init(
            remote,
            name=name,
            data_dirs=data_dirs,
            ignore=ignore,
            group=group,
            algorithm=algorithm,
            transport=transport,
            agent_command=agent_command,
            accept_new_host_key=accept_new_host_key,
            emit=output.on_event,
            from_dataset=from_dataset,
        )
    )
    output.result(made.fields())
    output.log(remote=made.remote, repo_id=made.repo_id)
    if from_dataset is None:
        output.say(f"Made the empty repository {made.remote} (s0, id {made.repo_id[:12]}).")
        output.say("'dsg status' shows what the first 'dsg sync' will send.")
        return
    output.say(
        f"Took {from_dataset} over as the repository {made.remote} "
        f"(s0 with {made.files:,} files, id {made.repo_id[:12]})."
    )
    output.say(
        f"Of the files in scope {made.same:,} are the same here, {made.differ:,} differ, "
        f"{made.only_local:,} are only here, {made.only_remote:,} only there: 'dsg status' shows them."
    )

"""``dsg completion``: the shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from dsg_client.cli.common import exit_statuses


@click.command(name="completion", epilog=exit_statuses(2))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Examples:
      dsg completion bash >> ~/.bashrc
      dsg completion zsh  >> ~/.zshrc
      dsg completion fish >  ~/.config/fish/completions/dsg.fish
    """
    from dsg_client.cli.main import dsg

    kind = get_completion_class(shell)
    assert kind is not None  # click brings all three
    click.echo(kind(dsg, {}, "dsg", "_DSG_COMPLETE").source())

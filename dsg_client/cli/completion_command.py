"""``dsg completion``: the shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from dsg_client.cli.common import common_options, exit_statuses
from dsg_client.cli.render import Output


@click.command(
    name="completion",
    short_help="Print the shell's completion script.",
    epilog=exit_statuses(2, 4),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
def command(output: Output, shell: str) -> None:
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
    script = kind(dsg, {}, "dsg", "_DSG_COMPLETE").source()
    output.result({"shell": shell, "script": script})
    output.say(script)

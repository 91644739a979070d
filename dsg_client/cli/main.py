"""The commands of ``dsg`` by name, errors to exit statuses.

Commands are imported when they are used: what a command does not need, it
does not wait for.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dsg_client.sync.ahead import Ahead

try:
    from protocol import SENTINEL
except ImportError:
    SENTINEL = ""
if SENTINEL != "dsg-sync protocol":
    # Before anything else of ours is imported: all of it needs the package.
    sys.stderr.write(
        "dsg: another Python package named 'protocol' stands before DSG's own. Install dsg-sync into a\n"
        "virtual environment of its own:  python3 -m venv ~/dsg && ~/dsg/bin/pip install dsg-sync\n"
    )
    sys.exit(1)

from dsg_client.cli.render import Output
from protocol.errors import DsgError, InternalError, InterruptedSyncError, UsageError
from protocol.version import VERSION

__all__ = ["COMMANDS", "main"]

# name -> (section of --help, module below dsg_client.cli)
COMMANDS = {
    "init": "Set up",
    "clone": "Set up",
    "remote": "Set up",
    "status": "Every day",
    "sync": "Every day",
    "list-files": "Every day",
    "log": "History",
    "protect": "History",
    "adopt": "Care",
    "recover": "Care",
    "doctor": "Care",
    "validate-config": "Care",
    "prune": "Care",
    "clean": "Care",
    "completion": "Care",
}

# These fork before they import anything that takes time, asyncio above all.
_BEGINS_AHEAD = ("status", "sync")


class LazyCommands(click.Group):
    """A group whose commands are modules of this package, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in _BEGINS_AHEAD:
            from dsg_client.cli.common import import_asyncio

            import_asyncio()
        module = importlib.import_module(f"dsg_client.cli.{cmd_name.replace('-', '_')}_command")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean 'dsg {near[0]}'?" if near else " 'dsg --help' lists the commands."
            raise click.UsageError(f"there is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, section in COMMANDS.items():
            command = self.get_command(ctx, name)
            if command is not None:
                sections.setdefault(section, []).append((name, command.get_short_help_str(60)))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"dsg {VERSION}")
        ctx.exit()


@click.group(
    cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version.",
)
def dsg() -> None:
    """Keep data folders in step with a server: a sync happens whole or not at all.

    \b
    First steps:
      dsg init user@server:/srv/dsg/project     make a repository from this folder
      dsg sync                                  bring local and remote together
      dsg clone user@server:/srv/dsg/project    take a copy on another machine

    Every command says more with --help.
    """


def main(ahead: Ahead | None = None) -> None:
    """Run one command and exit with its status; ``ahead``: what was begun for it already."""
    # Hardly anything here forms cycles, and at the usual threshold (700) the search for them is a tenth
    # of what a short command takes.
    gc.set_threshold(100_000, 20, 100)
    arguments = sys.argv[1:]
    output = Output(json_mode="--json" in arguments, quiet="--quiet" in arguments or "-q" in arguments)
    begun = time.monotonic()
    state: dict[str, Any] = {"output": output, "ahead": ahead}
    try:
        status = dsg(arguments or ["--help"], standalone_mode=False, prog_name="dsg", obj=state)
        if not arguments:
            status = UsageError.exit_status
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.UsageError as error:
        where = f"\n{error.ctx.get_usage()}" if error.ctx else ""
        command = error.ctx.command_path if error.ctx else "dsg"
        status = state["output"].error(
            UsageError(error.format_message(), hint=f"'{command} --help' explains the options.{where}")
        )
    except click.ClickException as error:
        status = state["output"].error(UsageError(error.format_message()))
    except DsgError as error:
        status = state["output"].error(error)
    except (KeyboardInterrupt, click.exceptions.Abort):
        # Before or after the command's own work, which makes an answer of an interrupt. It may have met
        # the import of a module, so nothing more is begun.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = state["output"].error(InterruptedSyncError("interrupted"))
        if ahead is not None:
            ahead.close()
        output.leave(status)
        return
    except (BrokenPipeError, SystemExit):
        status = 141  # who read the answer has left (click makes an exit of it)
    except Exception as error:  # noqa: BLE001 - the last net: a bug is reported as one
        import traceback

        status = state["output"].error(
            InternalError(
                f"{type(error).__name__}: {error}",
                hint="This is a bug in DSG. Nothing is lost: 'dsg recover' settles what was open. "
                "Please report it with the lines below.\n" + traceback.format_exc(),
            )
        )
    _log(arguments, int(status or 0), time.monotonic() - begun, state["output"])
    if ahead is not None:
        ahead.close()  # or it might still be writing in a folder that whoever waited for us removes
    output.leave(int(status or 0))


def _log(arguments: list[str], status: int, seconds: float, used: Output) -> None:
    """A line in the client's log, when something was changed or went wrong."""
    if not (used.worth_logging or status not in (0, 2, 20)):
        return
    from dsg_client.cli.logfile import write_log

    write_log(
        "command",
        arguments=arguments,
        folder=_folder(),
        status=status,
        seconds=round(seconds, 3),
        error=used.failure,
        notes=used.notes,
        **used.log_fields,
    )


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # removed under us
        return ""

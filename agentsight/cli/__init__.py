"""The command line: one file per command, listed in the registry. `main` turns every outcome into an exit status.

0 success, 1 failure, 2 wrong usage, 130 after Ctrl-C; an error is one line ``Error: ...`` on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from agentsight.errors import AgentsightError
from agentsight.registry import load, names

EPILOG = """\b
Examples:
  agentsight record -- python3 my_agent.py     one program, from its first instruction
  agentsight trace --comm python3              what runs under a name, live
  agentsight trace --capture day.cap --quiet   only record; replay later
  agentsight replay day.cap                    no root needed
"""


class Commands(click.Group):
    """The commands of the registry, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return names("commands")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in names("commands"):
            return None
        command: click.Command = load("commands", cmd_name)
        return command


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from agentsight import __version__

        click.echo(f"agentsight {__version__}")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EPILOG,
    invoke_without_command=True,
)
@click.option("-v", "--verbose", count=True, help="Say more on stderr; repeat for libbpf's own messages.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit.")
@click.pass_context
def cli(ctx: click.Context, verbose: int) -> None:
    """Shows from outside what AI agents do on this machine: model calls, processes, output."""
    ctx.ensure_object(dict)["verbose"] = verbose + _environment_verbosity()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def _environment_verbosity() -> int:
    level = os.environ.get("AGENTSIGHT_LOG", "").lower()
    return {"debug": 2, "info": 1}.get(level, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own). Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = cli.main(arguments, prog_name="agentsight", standalone_mode=False, obj={"words": arguments})
    except click.UsageError as e:
        _error(e.format_message() + _help_hint(e.ctx))
        return 2
    except click.ClickException as e:
        _error(e.format_message())
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except AgentsightError as e:
        _error(str(e))
        return e.exit_code
    except ImportError as e:
        if "compiled part" not in str(e):
            raise
        _error(str(e))
        return 1
    except BrokenPipeError:
        # whoever read our help or error went away; nothing more can be said to him
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return result if isinstance(result, int) else 0


def _help_hint(ctx: click.Context | None) -> str:
    return f" (see {ctx.command_path} --help)" if ctx is not None else ""


def _error(text: str) -> None:
    click.echo("Error: " + " ".join(text.split()), err=True)

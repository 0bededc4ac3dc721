"""``agentsight debug``: the single sources under the names that readers of older instructions know."""

from __future__ import annotations

import click

from agentsight.registry import load

NAMES = ("ssl", "process", "stdio", "trace")


class _Same(click.Group):
    """The very commands of the top level."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NAMES:
            return None
        command: click.Command = load("commands", cmd_name)
        return command


EPILOG = """\b
Example:
  sudo agentsight debug ssl --http-parser -c curl
"""


@click.group(cls=_Same, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.pass_context
def debug(ctx: click.Context) -> None:
    """The single sources: debug ssl is ssl, debug trace is trace, and so on."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)

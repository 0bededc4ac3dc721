"""``agentsight stdio``: what programs read and print."""

from __future__ import annotations

from typing import Any

import click

from agentsight.cli import params, run
from agentsight.options import STDIO_MAX_BYTES, Options, parse_short

EPILOG = """\b
Examples:
  sudo agentsight stdio -p 4711
  sudo agentsight stdio --comm node --all-fds --max-bytes 65536
"""


@click.command(cls=params.ShortOptionsCommand, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--all-fds", "stdio_all_fds", is_flag=True, help="Every descriptor, not only 0, 1, 2.")
@click.option(
    "--max-bytes",
    "stdio_max_bytes",
    type=click.IntRange(1),
    default=STDIO_MAX_BYTES,
    show_default=True,
    metavar="N",
    help="Captured per call; the real length is always told.",
)
@params.targets
@params.log_output
@params.capture_output
@click.pass_context
def stdio(ctx: click.Context, /, **values: Any) -> int:
    """Watch what programs read from stdin and write to stdout and stderr.

    Behind -- the short options -p PID -u UID -c COMM -v are taken too.
    """
    changes = params.merge_short(params.to_changes(ctx, values), parse_short("stdio", params.behind(ctx)))
    return run.live(Options(ssl=False, process=False, stdio=True).with_changes(changes), params.words(ctx))

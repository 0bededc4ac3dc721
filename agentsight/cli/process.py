"""``agentsight process``: starts and ends of processes."""

from __future__ import annotations

from typing import Any

import click

from agentsight.cli import params, run
from agentsight.options import Options, parse_short

EPILOG = """\b
Examples:
  sudo agentsight process --duration 100
  sudo agentsight process -c node,python3
  sudo agentsight process -- -p 4711
"""


@click.command(cls=params.ShortOptionsCommand, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--duration",
    "min_duration_ms",
    type=click.IntRange(0),
    default=0,
    metavar="MS",
    help="Only processes that lived at least so long; their start is held back until then.",
)
@click.option("--mode", type=click.IntRange(0, 1), default=1, show_default=True, help="0: every process, 1: the targets.")
@params.targets
@params.log_output
@params.capture_output
@click.pass_context
def process(ctx: click.Context, /, **values: Any) -> int:
    """Watch processes: fork, exec with all arguments, exit with code or signal.

    Behind -- the short options -c COMM -p PID -d MS -m MODE -v are taken too.
    """
    changes = params.merge_short(params.to_changes(ctx, values), parse_short("process", params.behind(ctx)))
    return run.live(Options(ssl=False).with_changes(changes), params.words(ctx))

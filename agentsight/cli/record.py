"""``agentsight record``: one program from its first instruction, and the readable record of what it did."""

from __future__ import annotations

from typing import Any

import click

from agentsight.cli import params, run
from agentsight.errors import AgentsightError, UsageError
from agentsight.options import STDIO_MAX_BYTES, Options

EPILOG = """\b
Examples:
  sudo agentsight record -- python3 my_agent.py
  sudo agentsight record --capture run.cap --log-file run.jsonl -- claude -p "say hi"
  sudo agentsight record -p 4711
Exit status: that of CMD, 128 + N after signal N, 127 not found, 126 not to be run, 125 when agentsight failed.
"""


@click.command(
    cls=params.Command,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "allow_interspersed_args": False},
)
@params.targets
@params.boolean("--stdio", False, "What the program reads and prints, into log and capture.")
@click.option(
    "--stdio-max-bytes",
    type=click.IntRange(1),
    default=STDIO_MAX_BYTES,
    show_default=True,
    metavar="N",
    help="Captured per call.",
)
@params.plain_http
@params.tls_stacks
@params.log_output
@params.capture_output
@params.io_hook
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.pass_context
def record(ctx: click.Context, /, command: tuple[str, ...], **values: Any) -> int:
    """Start CMD as the invoking user, or attach with -p or -c, and tell at the end what happened.

    The record (process tree, model calls, completeness) is printed on stderr when CMD has ended; until then the
    terminal is CMD's own.
    """
    options = Options().with_changes(params.to_changes(ctx, values))
    if command and options.has_target:
        raise UsageError("either CMD or -p, -c, -u, --binary-path, not both")
    if not command and not options.has_target:
        raise UsageError("nothing to record: give -- CMD, or -p PID or -c NAME")
    if command and options.format == "json":
        raise UsageError("stdout belongs to CMD: use --log-file PATH for JSON lines")
    try:
        return run.record(options, params.words(ctx), command)
    except AgentsightError as e:
        if command and e.exit_code == 1:
            e.exit_code = 125
        raise

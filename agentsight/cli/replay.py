"""``agentsight replay``: a capture file through the same pipeline."""

from __future__ import annotations

from typing import Any

import click

from agentsight.cli import params, run
from agentsight.cli.trace import source_options
from agentsight.options import Options

EPILOG = """\b
Examples:
  agentsight replay day.cap
  agentsight replay --ssl-http false day.cap
  agentsight replay day.cap --log-file day.jsonl --quiet
"""


@click.command(cls=params.Command, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path())
@source_options(stdio_default=True)
@params.log_output
@click.pass_context
def replay(ctx: click.Context, /, file: str, **values: Any) -> int:
    """Show what a capture FILE holds: by default what trace would have printed. Needs no root.

    The same file gives the same output, byte for byte.
    """
    return run.replay(Options().with_changes(params.to_changes(ctx, values)), file)

"""``agentsight trace``: all sources at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from agentsight.cli import params, run
from agentsight.options import STDIO_MAX_BYTES, Options

EPILOG = """\b
Examples:
  sudo agentsight trace --comm python3 --log-file agent.jsonl --quiet
  sudo agentsight trace -p 4711 --stdio --stdio-max-bytes 4096
"""


def source_options(stdio_default: bool = False) -> Callable[[params.F], params.F]:
    """The options that trace and replay have in common: what is decoded and shown."""
    options = (
        params.boolean("--ssl", True, "TLS traffic."),
        params.boolean("--process", True, "Starts and ends of processes."),
        params.boolean("--stdio", stdio_default, "What programs read and print."),
        click.option("--ssl-uid", type=click.IntRange(0), metavar="UID", help="TLS of this user only."),
        params.boolean("--ssl-handshake", False, "TLS handshakes.", target="handshakes"),
        params.boolean("--ssl-http", True, "Whole HTTP messages in place of raw ssl events.", target="http"),
        params.boolean("--ssl-raw-data", False, "Raw bytes inside HTTP events.", target="raw_data"),
        params.boolean("--sse-merge", True, "One event per finished SSE stream."),
        params.plain_http,
        click.option("--stdio-uid", type=click.IntRange(0), metavar="UID", help="stdio of this user only."),
        click.option("--stdio-comm", "stdio_comms", multiple=True, metavar="NAME[,NAME]", help="stdio of these programs only."),
        params.max_bytes,
        click.option(
            "--duration",
            "min_duration_ms",
            type=click.IntRange(0),
            default=0,
            metavar="MS",
            help="Only processes that lived so long.",
        ),
    )

    def decorate(f: params.F) -> params.F:
        for option in reversed(options):
            f = option(f)
        return f

    return decorate


@click.command(cls=params.Command, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@source_options()
@params.boolean("--stdio-all-fds", False, "stdio of every descriptor, not only 0, 1, 2.")
@click.option(
    "--stdio-max-bytes",
    type=click.IntRange(1),
    default=STDIO_MAX_BYTES,
    show_default=True,
    metavar="N",
    help="Captured per call.",
)
@click.option(
    "--mode", type=click.IntRange(0, 1), default=1, show_default=True, help="Process events of 0: every process, 1: the targets."
)
@params.targets
@params.tls_stacks
@params.log_output
@params.capture_output
@params.io_hook
@click.pass_context
def trace(ctx: click.Context, /, **values: Any) -> int:
    """Watch everything: model calls, HTTP, processes, and stdio where asked for.

    Without a target every process is watched. Ctrl-C stops, and prints a summary.
    """
    return run.live(Options().with_changes(params.to_changes(ctx, values)), params.words(ctx))

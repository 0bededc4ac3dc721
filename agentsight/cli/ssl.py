"""``agentsight ssl``: TLS traffic, opened."""

from __future__ import annotations

from typing import Any

import click

from agentsight.cli import params, run
from agentsight.options import Options, parse_short

EPILOG = """\b
Examples:
  sudo agentsight ssl --comm curl
  sudo agentsight ssl --http-parser --sse-merge -p 4711
  sudo agentsight ssl -- -c python3 -h
"""


@click.command(cls=params.ShortOptionsCommand, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--http-parser", "http", is_flag=True, help="Whole HTTP messages in place of raw events; what is no HTTP stays raw."
)
@click.option("--sse-merge", is_flag=True, help="One event per finished SSE stream. Means --http-parser too.")
@click.option("--http-raw-data", "raw_data", is_flag=True, help="Raw bytes inside HTTP events.")
@click.option("--ssl-handshake", "handshakes", is_flag=True, help="Show handshakes: latency, version, cipher, SNI, ALPN.")
@params.max_bytes
@params.plain_http
@params.targets
@params.tls_stacks
@params.log_output
@params.capture_output
@params.io_hook
@click.pass_context
def ssl(ctx: click.Context, /, **values: Any) -> int:
    """Watch TLS traffic, opened with the connections' own secrets.

    Behind -- the short options -p PID -u UID -c COMM -h (handshakes) -v are taken too.
    """
    changes = params.merge_short(params.to_changes(ctx, values), parse_short("ssl", params.behind(ctx)))
    changes["http"] = changes["http"] or changes["sse_merge"] or changes["raw_data"]
    return run.live(Options(process=False, llm=False).with_changes(changes), params.words(ctx))

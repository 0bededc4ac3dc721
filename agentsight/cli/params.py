"""Options that several commands share, and the ways of writing them that click does not have.

``--ssl``, ``--ssl false`` and ``--ssl=false`` mean what they look like; ``--plain-http`` takes ports or none; what stands
behind ``--`` is kept apart from the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from agentsight.errors import UsageError
from agentsight.options import FORMATS, MAX_LOG_MB, split_names
from agentsight.tls import STACKS

F = TypeVar("F", bound=Callable[..., Any])

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class OptionalValue(click.Option):
    """An option whose value may be left out: the next word is its value only if it looks like one."""

    def looks_like_value(self, word: str) -> bool:
        raise NotImplementedError

    implied = ""


class BoolOption(OptionalValue):
    """``--name``, ``--name true`` or ``--name false``."""

    implied = "true"

    def looks_like_value(self, word: str) -> bool:
        return word.lower() in BOOLEANS


class PortsOption(OptionalValue):
    """``--name`` or ``--name 80,8080``."""

    implied = "any"

    def looks_like_value(self, word: str) -> bool:
        return all(part.isascii() and part.isdigit() for part in word.split(","))


class Command(click.Command):
    """A command with such options. `context.meta["behind"]` holds the words behind ``--`` (None: there was no ``--``)."""

    keeps_behind = False  # the words behind -- are short options, not arguments

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = list(args)
        if self.keeps_behind and "--" in args:
            at = args.index("--")
            ctx.meta["behind"] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, self._fill_values(ctx, args))

    def _fill_values(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = {name: p for p in self.get_params(ctx) if isinstance(p, click.Option) for name in p.opts}
        out: list[str] = []
        i = 0
        while i < len(args):
            word = args[i]
            i += 1
            if word == "--" or not (ctx.allow_interspersed_args or word.startswith("-")):
                return [*out, word, *args[i:]]  # from here on the words are arguments
            option = options.get(word)
            if isinstance(option, OptionalValue):
                given = i < len(args) and option.looks_like_value(args[i])
                out.append(f"{word}={args[i] if given else option.implied}")
                i += given
                continue
            out.append(word)
            if option is not None and not option.is_flag and not option.count:
                out += args[i : i + 1]
                i += 1
        return out


class ShortOptionsCommand(Command):
    """A command that takes the field's short options behind ``--``."""

    keeps_behind = True


class _Bool(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    name = "bool"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, bool):
            return value
        known = BOOLEANS.get(str(value).lower())
        if known is None:
            self.fail(f"{value!r} is neither true nor false", param, ctx)
        return known


class _Ports(click.ParamType):  # type: ignore[type-arg]
    name = "ports"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        if value == "any":
            return ()
        try:
            ports = tuple(int(p) for p in str(value).split(","))
        except ValueError:
            ports = (0,)
        if not all(0 < p < 65536 for p in ports):
            self.fail(f"{value!r} is no list of ports such as 80,8080", param, ctx)
        return ports


def boolean(name: str, default: bool, text: str, *, target: str | None = None) -> Callable[[F], F]:
    """``--name [true|false]``."""
    words = [name] if target is None else [name, target]
    return click.option(
        *words, cls=BoolOption, type=_Bool(), default=default, metavar="[BOOL]", help=f"{text} [default: {str(default).lower()}]"
    )


def plain_http(f: F) -> F:
    """``--plain-http [PORTS]``."""
    option = click.option(
        "--plain-http",
        cls=PortsOption,
        type=_Ports(),
        default=None,
        metavar="[PORTS]",
        help="Also HTTP without TLS: on these ports (80,8080), or on any.",
    )
    return option(f)


def targets(f: F) -> F:
    """Which processes."""
    for option in reversed(
        (
            click.option(
                "-c",
                "--comm",
                "comms",
                multiple=True,
                metavar="NAME[,NAME]",
                help="Programs of this name: of the process, its executable, its argv[0] or its script. Repeatable.",
            ),
            click.option(
                "-p", "--pid", "pids", multiple=True, type=click.IntRange(1), help="This process and its descendants. Repeatable."
            ),
            click.option("-u", "--uid", type=click.IntRange(0), help="Processes of this user."),
            click.option(
                "--binary-path",
                metavar="PATH",
                help="Look for TLS in this program or library alone; a program's processes are the targets.",
            ),
            click.option("--no-children", is_flag=True, help="Not the children of the targets."),
        )
    ):
        f = option(f)
    return f


def log_output(f: F) -> F:
    """Where events go beside the console."""
    for option in reversed(
        (
            click.option(
                "--log-file", type=click.Path(path_type=Path), metavar="PATH", help="Write events as JSON lines (mode 0600)."
            ),
            click.option("--rotate-logs", is_flag=True, help="Start a new log file when it has --max-log-size; keep 5 old ones."),
            click.option(
                "--max-log-size",
                "max_log_mb",
                type=click.IntRange(1),
                default=MAX_LOG_MB,
                show_default=True,
                metavar="MB",
                help="Size at which a log is rotated.",
            ),
            click.option("-q", "--quiet", is_flag=True, help="No events on stdout."),
            click.option("--format", type=click.Choice(FORMATS), default="auto", show_default=True, help="Of events on stdout."),
            click.option("--disable-auth-removal", is_flag=True, help="Show keys and tokens as they are."),
        )
    ):
        f = option(f)
    return f


def capture_output(f: F) -> F:
    """The capture file."""
    option = click.option(
        "--capture",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Record everything raw for replay, plaintext and TLS secrets included (mode 0600).",
    )
    return option(f)


def max_bytes(f: F) -> F:
    """``--max-bytes`` of raw events."""
    option = click.option(
        "--max-bytes", type=click.IntRange(0), default=0, metavar="N", help="Bytes shown per raw event; 0: all. [default: 0]"
    )
    return option(f)


def tls_stacks(f: F) -> F:
    """``--tls-via``, and ``--no-NAME`` for each TLS stack in the table."""
    f = click.option(
        "--tls-via",
        type=click.Choice(("auto", "probes", "memory")),
        default="auto",
        help="Where TLS secrets come from: probes at each handshake, a search of the process's memory, or (auto) the search for "
        "what the probes leave closed; with --no-NAME auto is probes. [default: auto]",
    )(f)
    for stack in reversed(STACKS):
        f = click.option(f"--no-{stack.name}", is_flag=True, help=f"Do not take secrets from {stack.title or stack.name}.")(f)
    return f


def io_hook(f: F) -> F:
    """Where the kernel copies socket bytes; for tests."""
    return click.option("--io-hook", type=click.Choice(("auto", "sock", "sys_exit")), default="auto", hidden=True)(f)


def to_changes(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Click's values as changes to Options: names joined, the switches that say no turned round, -v added."""
    changes = dict(values)
    for name in ("comms", "stdio_comms"):
        if name in changes:
            changes[name] = split_names(changes[name])
    for switch, name in (("no_children", "children"), ("disable_auth_removal", "redact")):
        if switch in changes:
            changes[name] = not changes.pop(switch)
    switches = {stack.name: f"no_{stack.name}" for stack in STACKS}
    changes["without_tls"] = tuple(name for name, switch in switches.items() if changes.pop(switch, False))
    changes["verbose"] = int((ctx.find_root().obj or {}).get("verbose", 0))
    if changes.get("rotate_logs") and changes.get("log_file") is None:
        raise UsageError("--rotate-logs needs --log-file PATH")
    return changes


def merge_short(changes: dict[str, Any], short: dict[str, Any]) -> dict[str, Any]:
    """Add what stood behind ``--``: lists grow, single values are replaced."""
    merged = dict(changes)
    for name, value in short.items():
        if name in ("pids", "comms"):
            merged[name] = (*merged.get(name, ()), *value)
        elif name == "verbose":
            merged[name] = merged.get(name, 0) + value
        else:
            merged[name] = value
    return merged


def behind(ctx: click.Context) -> list[str]:
    """The words behind ``--``."""
    words: list[str] = ctx.meta.get("behind", [])
    return words


def words(ctx: click.Context) -> list[str]:
    """The whole command line as it was typed, without the program's name."""
    typed: list[str] = (ctx.find_root().obj or {}).get("words", [])
    return typed

"""The commands put together, and what becomes of their errors."""

from __future__ import annotations

import sys

import typer

from aegir_adapters.cli.demo import demo
from aegir_adapters.cli.inspect import inspect
from aegir_adapters.cli.monitor import monitor
from aegir_adapters.cli.repair import repair
from aegir_adapters.cli.replay import replay
from aegir_adapters.cli.runs import runs
from aegir_adapters.cli.serve import serve
from aegir_adapters.cli.tail import tail
from aegir_adapters.cli.verify import verify
from aegir_adapters.cli.version import version
from aegir_stream.errors import AegirError

__all__ = ["app", "main"]

FAILED = 1
INTERRUPTED = 130

app = typer.Typer(
    name="aegir",
    help="The flight recorder for post-training runs: watch, replay and inspect what a run wrote.",
    epilog=(
        "Start with: aegir demo. Exit codes: 0 done, 1 failed (one line says why and what to do), "
        "2 wrong command line, 130 interrupted."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (demo, serve, monitor, tail, replay, runs, inspect, verify, repair, version):
    app.command()(command)


def main() -> None:
    """Run the command that the arguments name."""
    try:
        app()
    except AegirError as error:
        typer.secho(f"aegir: {error}", err=True, fg=typer.colors.RED)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)

"""The commands put together, and what becomes of their errors."""

from __future__ import annotations

import sys

import typer

from aegir_adapters.cli.demo import demo
from aegir_adapters.cli.features import features
from aegir_adapters.cli.guard import guard
from aegir_adapters.cli.inspect import inspect
from aegir_adapters.cli.monitor import monitor
from aegir_adapters.cli.plan import plan
from aegir_adapters.cli.repair import repair
from aegir_adapters.cli.replay import replay
from aegir_adapters.cli.runs import runs
from aegir_adapters.cli.serve import serve
from aegir_adapters.cli.smoke import smoke
from aegir_adapters.cli.sweep import sweep
from aegir_adapters.cli.sweep_server import sweep_server
from aegir_adapters.cli.sweeps import sweeps
from aegir_adapters.cli.tail import tail
from aegir_adapters.cli.train import ResumeWithoutValue, train
from aegir_adapters.cli.ui import ui
from aegir_adapters.cli.up import up
from aegir_adapters.cli.verify import verify
from aegir_adapters.cli.version import version
from aegir_adapters.cli.whoami import whoami
from aegir_stream.errors import AegirError, PortInUseError, RefusedError
from aegir_stream.lease import LeaseHeldError

__all__ = ["app", "main"]

FAILED = 1
REFUSED = 2
INTERRUPTED = 130

_REFUSALS = (RefusedError, LeaseHeldError, PortInUseError)
"""What belongs to somebody else."""

app = typer.Typer(
    name="aegir",
    help="The flight recorder for post-training runs: watch, replay and inspect what a run wrote.",
    epilog=(
        "Start with: aegir demo. Exit codes: 0 done, 1 failed (one line says why and what to do), "
        "2 wrong command line, or refused because it is somebody else's, 130 interrupted."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(cls=ResumeWithoutValue)(train)
for command in (
    demo,
    serve,
    ui,
    up,
    monitor,
    tail,
    replay,
    runs,
    plan,
    features,
    sweep,
    sweep_server,
    sweeps,
    inspect,
    verify,
    repair,
    guard,
    whoami,
    version,
):
    app.command()(command)
app.add_typer(smoke)


def main() -> None:
    """Run the command that the arguments name."""
    try:
        app()
    except AegirError as error:
        typer.secho(f"aegir: {error}", err=True, fg=typer.colors.RED)
        sys.exit(REFUSED if isinstance(error, _REFUSALS) else FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)

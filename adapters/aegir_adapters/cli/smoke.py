"""`aegir smoke`: short real jobs that show whether the metrics raise their alarms."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegir_adapters.cli.extras import require
from aegir_adapters.cli.pipe import quiet_pipe

if TYPE_CHECKING:
    from aegir_adapters.mixing.smoke import MetricVerdict, SmokeConfig, Verdict
    from aegir_stream.views.step_metrics import Band

__all__ = ["mixing", "smoke"]

NOT_AS_EXPECTED = 1

smoke = typer.Typer(
    name="smoke", help="Run a short real job and judge its metrics.", no_args_is_help=True
)


@smoke.callback()
def _group() -> None:
    """Keep `mixing` a command of its own."""


@smoke.command()
def mixing(
    *,
    config: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="healthy, collapsed_mix, small_ledger, tiny_reader, or a file.",
        ),
    ] = "healthy",
    ranks: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = 2,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Run directory, empty or new; without one the log is thrown away."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, as in a pipe; else a table.")
    ] = False,
) -> None:
    """Train a small recurrent model on mixed streams, and judge the mix and the state ledger.

    Exits with 0 if exactly the metrics leave their healthy bands that the configuration says will.

    Example: aegir smoke mixing --config small_ledger --output-dir runs/small-ledger
    """
    require("torch", extra="mixing")
    from aegir_adapters.mixing.smoke import load_config  # noqa: PLC0415 - needs the extra

    verdict = _verdict(load_config(config), ranks=ranks, output_dir=output_dir)
    with quiet_pipe():
        if as_json or not sys.stdout.isatty():
            sys.stdout.write(msgspec.json.encode(verdict).decode() + "\n")
        else:
            Console().print(_table(verdict))
            sys.stdout.write(_summary(verdict) + "\n")
    if not verdict.passed:
        raise typer.Exit(NOT_AS_EXPECTED)


def _verdict(config: SmokeConfig, *, ranks: int, output_dir: Path | None) -> Verdict:
    from aegir_adapters.mixing.smoke import run_smoke  # noqa: PLC0415 - needs the extra

    if output_dir is not None:
        return run_smoke(config, ranks=ranks, output_dir=output_dir)
    with tempfile.TemporaryDirectory(prefix="aegir-smoke-") as scratch:
        return run_smoke(config, ranks=ranks, output_dir=Path(scratch) / "run")


def _table(verdict: Verdict) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", overflow="fold")
    for name in ("value", "healthy", "out"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for metric in verdict.metrics:
        out = f"{metric.out}/{metric.windows}"
        table.add_row(metric.name, _number(metric.value), _range(metric.band), out, _word(metric))
    return table


def _word(metric: MetricVerdict) -> str:
    if metric.alarm:
        return "alarm" if metric.expected else "unexpected"
    if metric.expected:
        return "no alarm"
    return "ok" if metric.band else "-"


def _range(band: Band | None) -> str:
    if band is None:
        return "-"
    low, high = band
    return f"{_number(low)} .. {_number(high)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _summary(verdict: Verdict) -> str:
    alarms = sum(metric.alarm for metric in verdict.metrics)
    told = f"{alarms} metrics were out of their bands in some window"
    return f"As expected: {told}" if verdict.passed else f"Not as expected: {told}"

"""`aegir tail`: the records of a run, as they are written."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, cast

import anyio
import msgspec
import typer

from aegir_adapters.cli.arguments import (
    DEFAULT_RUN,
    Every,
    Features,
    Layers,
    Passes,
    Ranks,
    Run,
    StepMax,
    StepMin,
    StreamName,
    open_run,
)
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_adapters.stdout import StdoutSink
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.errors import CursorError
from aegir_stream.events import CaughtUp, Closed, Idle, SourceSwitch
from aegir_stream.relay import relay
from aegir_stream.selection import Selection
from aegir_stream.source import Level, RunSource, Start

__all__ = ["tail"]

_STARTS = ("start", "checkpoint", "now")


def tail(
    run: Run = DEFAULT_RUN,
    *,
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="`start` (first record), `checkpoint` (since the last one), `now`, or a cursor.",
        ),
    ] = "checkpoint",
    stream: Annotated[StreamName, typer.Option(help="Which stream.")] = StreamName.SAE_FEATURES,
    layer: Layers = None,
    feature: Features = None,
    pass_: Passes = None,
    rank: Ranks = None,
    step_min: StepMin = None,
    step_max: StepMax = None,
    every: Every = 1,
    committed: Annotated[
        bool,
        typer.Option("--committed", help="Only what agrees with the checksum behind its append."),
    ] = False,
    follow: Annotated[
        bool, typer.Option(help="Wait for more until the run is closed, or print what is there.")
    ] = True,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Tell switches, checkpoints and damage on stderr."),
    ] = False,
) -> None:
    """Print the records of a run as they are written, one JSON object a line.

    Follows across checkpoints and resumes. With --follow it ends when the run is closed.

    Example: aegir tail runs/demo-1 --from start --layer 2 | jq .reconstruction_loss
    """
    selection = Selection(
        layers=frozenset(layer or ()),
        features=frozenset(feature or ()),
        passes=frozenset(map(str, pass_ or ())),
        ranks=frozenset(rank or ()),
        step_min=step_min,
        step_max=step_max,
        every=every,
    )
    directory = open_run(run)
    level: Level = "committed" if committed else "live"
    if from_ in _STARTS:
        source = RunSource(directory, stream.value, start=cast("Start", from_), level=level)
    else:
        source = RunSource(directory, stream.value, after=from_, level=level)
    with quiet_pipe():
        anyio.run(_print, _deliveries(source, follow=follow, verbose=verbose), selection)


async def _print(said: AsyncGenerator[Delivery, None], selection: Selection) -> None:
    sink = StdoutSink()
    async with aclosing(said) as deliveries:
        await relay(deliveries, sink, selection=selection)
    await sink.aclose()


async def _deliveries(
    source: RunSource, *, follow: bool, verbose: bool
) -> AsyncGenerator[Delivery, None]:
    """Yield what the source says until the run is closed and read to its end."""
    closed = not follow
    async with aclosing(source.follow()) as deliveries:
        async for delivery in deliveries:
            _refuse_bad_cursor(delivery)
            if isinstance(delivery, Idle) or (verbose and not isinstance(delivery, Chunk)):
                _tell(delivery)
            yield delivery
            closed = closed or isinstance(delivery, Closed)
            if isinstance(delivery, CaughtUp | Idle) and closed:
                return


def _refuse_bad_cursor(delivery: Delivery) -> None:
    if isinstance(delivery, SourceSwitch) and (delivery.verdict or "resumed") != "resumed":
        raise CursorError(
            f"The value of --from cannot be resumed: {delivery.verdict}",
            verdict=str(delivery.verdict).partition(":")[0],
            hint=f"Use one of {', '.join(_STARTS)}, or a cursor of this run",
        )


def _tell(delivery: msgspec.Struct) -> None:
    body = msgspec.to_builtins(delivery)
    line = msgspec.json.encode({"delivery": type(delivery).__name__} | body)
    sys.stderr.write(line.decode() + "\n")

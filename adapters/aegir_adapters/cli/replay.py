"""`aegir replay`: what a view makes of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from aegir_adapters.cli.arguments import DEFAULT_RUN, Run, open_log
from aegir_adapters.cli.pipe import quiet_pipe
from aegir_stream import codec
from aegir_stream.replay import replay as replay_view
from aegir_stream.typing import View
from aegir_stream.views import (
    Heatmap,
    HeatmapView,
    LossVsReward,
    LossVsRewardView,
    RunState,
    RunStateView,
)

__all__ = ["AttemptsName", "ViewName", "replay"]


class ViewName(StrEnum):
    """The views that can be replayed."""

    RUN_STATE = "run_state"
    HEATMAP = "heatmap"
    LOSS_VS_REWARD = "loss_vs_reward"


class AttemptsName(StrEnum):
    """Which attempts count."""

    SURVIVING = "surviving"
    ALL = "all"


class _Row(msgspec.Struct, omit_defaults=True):
    """One step of a run."""

    step: int
    score: float | None = None
    best: float | None = None


class _Cell(msgspec.Struct):
    """One layer at one step."""

    step: int
    layer: int
    records: int
    mean_top_activation: float
    mean_reconstruction_loss: float


def replay(
    run: Run = DEFAULT_RUN,
    *,
    view: Annotated[ViewName, typer.Option(help="Which view.")] = ViewName.RUN_STATE,
    until: Annotated[
        str | None, typer.Option(help="Last step to fold, or a checkpoint such as checkpoint-40.")
    ] = None,
    attempts: Annotated[
        AttemptsName, typer.Option(help="Count what survives resumes, or every attempt.")
    ] = AttemptsName.SURVIVING,
    committed: Annotated[
        bool,
        typer.Option("--committed", help="Only what agrees with the checksum behind its append."),
    ] = False,
) -> None:
    """Fold a view over a run and print its rows, one JSON object a line.

    Example: aegir replay runs/demo-1 --view heatmap --until checkpoint-40 | jq -s length
    """
    chosen, rows = _VIEWS[view]
    last = int(until) if until and until.isdigit() else until
    replayed = replay_view(
        open_log(run),
        chosen(),
        until=last,
        attempts=attempts.value,
        level="committed" if committed else "live",
    )
    with quiet_pipe():
        for row in rows(replayed.state):
            sys.stdout.write(codec.encode(row).decode())


def _steps(state: RunState) -> Iterator[_Row]:
    best: float | None = None
    scores = dict(state.curve)
    for step in sorted({*state.scores, *state.metrics}):
        score = scores.get(step)
        best = max((s for s in (best, score) if s is not None), default=None)
        yield _Row(step, score, best)


def _cells(state: Heatmap) -> Iterator[_Cell]:
    for layer, steps in sorted(state.layers.items()):
        for step, cell in sorted(steps.items()):
            yield _Cell(
                step,
                layer,
                cell.records,
                cell.top_activation / cell.records,
                cell.reconstruction_loss / cell.records,
            )


_VIEWS: dict[
    ViewName, tuple[Callable[[], View[Any]], Callable[[Any], Iterator[msgspec.Struct]]]
] = {
    ViewName.RUN_STATE: (RunStateView, _steps),
    ViewName.HEATMAP: (HeatmapView, _cells),
    ViewName.LOSS_VS_REWARD: (LossVsRewardView, LossVsReward.points),
}

"""`aegir features`: which latents go with the reward, and what chance would do beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from importlib.util import find_spec
from itertools import islice
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from aegir_adapters.cli import feature_reports
from aegir_adapters.cli.arguments import DEFAULT_RUN, ForwardPass, Layers, Run, open_log
from aegir_adapters.cli.feature_reports import Labels
from aegir_adapters.cli.report import Report, show
from aegir_adapters.labels import load_labels
from aegir_stream.errors import OptionError
from aegir_stream.events import Completion, PassName
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events, replay
from aegir_stream.typing import View
from aegir_stream.views import (
    FeatureRewardView,
    FiringState,
    FiringView,
    Narrowed,
    Together,
    Totals,
    VocabularyView,
    rank_features,
    turnover,
    words,
)

__all__ = ["SummaryName", "features"]

S = TypeVar("S")

_LOSS = ForwardPass("loss")

_WINDOWS = 16
"""Rows per layer under `--emergence`, at most."""

_LOOKED_AT = 1000
"""Completions in which names of reward functions are looked for."""


class SummaryName(StrEnum):
    """What one completion says of one latent."""

    MEAN = "mean"
    SHARE = "share"
    PRESENCE = "presence"


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at: some records of a run, against one reward."""

    run: RunDirectory
    layers: tuple[int, ...]
    steps: tuple[int, int | None]
    pass_: PassName
    reward: str
    labels: tuple[str, ...]
    top: int

    def fold(self, view: View[S]) -> S:
        """Return what a view makes of it."""
        first, last = self.steps
        narrowed = Narrowed(view, first_step=first, last_step=last, layers=self.layers)
        return replay(self.run, narrowed, until=last).state


def features(
    run: Run = DEFAULT_RUN,
    *,
    layer: Layers = None,
    reward: Annotated[
        str, typer.Option(help="R (the weighted sum), advantage, or a reward function by name.")
    ] = "R",
    steps: Annotated[
        str, typer.Option(metavar="A:B", help="From step A to step B, both included.")
    ] = ":",
    pass_: Annotated[
        ForwardPass, typer.Option("--pass", help="The forward pass that was recorded.")
    ] = _LOSS,
    summary: Annotated[
        SummaryName,
        typer.Option(
            help="What a completion says of a latent: its mean over the tokens, the share of "
            "them on which it is active, or its presence on any."
        ),
    ] = SummaryName.MEAN,
    length_control: Annotated[
        bool, typer.Option(help="Decide by what is left with the completion's length held fixed.")
    ] = True,
    q: Annotated[
        float, typer.Option("--q", min=0, max=1, help="Share of false findings to put up with.")
    ] = 0.05,
    least: Annotated[
        int, typer.Option(min=1, help="Completions in which a latent that is tested is active.")
    ] = 10,
    seed: Annotated[int, typer.Option(help="Of the control and of the sampled completions.")] = 0,
    vocabulary: Annotated[
        bool, typer.Option("--vocabulary", help="Instead: the latents that successes sustain.")
    ] = False,
    gate: Annotated[float, typer.Option(help="Least reward of a success.")] = 1.0,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the tokens that sustains a latent.")
    ] = 0.5,
    emergence: Annotated[
        bool, typer.Option("--emergence", help="Instead: latents that begin or cease to fire.")
    ] = False,
    least_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Firing rate from which a latent is active.")
    ] = 0.0,
    top: Annotated[int, typer.Option(min=1, help="Rows at most.")] = 20,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="[LAYER=]FILE", help="Labels of the latents; may be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as in a pipe; else a table.")
    ] = False,
) -> None:
    """Rank the latents of a run by how clearly they go with the reward.

    Rewarded completions are compared with unrewarded ones of their own group:
    the difference with its interval and its size (d), the rank correlation over
    all groups, the correlation with the length held fixed, a p-value adjusted for
    the number of latents, and the difference where the activations of each group
    are dealt out at random (chance).

    Example: aegir features runs/demo-1 --layer 2 --steps 1:40 --top 10
    """
    part = _Part(
        run=open_log(run),
        layers=tuple(layer or ()),
        steps=_span(steps),
        pass_=pass_.value,
        reward=reward,
        labels=tuple(labels or ()),
        top=top,
    )
    if vocabulary:
        report = _vocabulary(part, gate=gate, share=share)
    elif emergence:
        report = _emergence(part, least_rate=least_rate)
    else:
        report = _ranking(
            part,
            fold={"summary": summary.value, "seed": seed},
            rank={
                "q": q,
                "least_completions": least,
                "test": "length_controlled" if length_control else "contrast",
            },
        )
    show(report, is_table=not as_json and sys.stdout.isatty())


def _ranking(part: _Part, *, fold: dict[str, Any], rank: dict[str, Any]) -> Report:
    totals, firing = _fold_both(part, {"reward": part.reward, "pass_": part.pass_, **fold})
    labels = _labels(part, firing.layers)
    if not totals.layers:
        _require_reward(part, totals)
        report = feature_reports.firing_rates(firing, labels, top=part.top)
        said = ["No completion can be compared; these are the latents that fire most often"]
        return msgspec.structs.replace(report, remarks=[*said, *_left_out(totals)])
    table = rank_features(totals, **rank)
    report = feature_reports.ranking(table, firing, labels, top=part.top)
    groups = ", ".join(
        f"layer {index}: {layer.groups} groups, {layer.equal_groups} more with equal rewards"
        for index, layer in sorted(totals.layers.items())
    )
    return msgspec.structs.replace(report, remarks=[*report.remarks, groups, *_left_out(totals)])


def _fold_both(part: _Part, options: dict[str, Any]) -> tuple[Totals, FiringState]:
    """Fold in arrays where numpy is installed; the figures are the same."""
    if find_spec("numpy") is None:
        pure, rates = FeatureRewardView(**options), FiringView(pass_=part.pass_)
        state, firing = part.fold(Together(pure, rates))
        return pure.totals(state), firing
    from aegir_adapters.analysis import (  # noqa: PLC0415 - needs the analysis extra
        ArrayFeatureRewardView,
        ArrayFiringView,
    )

    arrays = ArrayFeatureRewardView(**options)
    state, firing = part.fold(Together(arrays, ArrayFiringView(pass_=part.pass_)))
    return arrays.totals(state), firing.state()


def _vocabulary(part: _Part, *, gate: float, share: float) -> Report:
    view = VocabularyView(gate=gate, share=share, reward=part.reward, pass_=part.pass_)
    layers = view.layers(part.fold(view))
    report = feature_reports.words(words(layers), _labels(part, layers), top=part.top)
    said = [
        f"layer {index}: {layer.passed} completions earned {gate:g} or more, {layer.failed} less"
        for index, layer in sorted(layers.items())
    ]
    return msgspec.structs.replace(report, remarks=said or ["No completion was recorded"])


def _emergence(part: _Part, *, least_rate: float) -> Report:
    state = part.fold(FiringView(width=1, most_windows=_WINDOWS, pass_=part.pass_))
    found = (turnover(state, layer, least_rate=least_rate) for layer in sorted(state.layers))
    return feature_reports.changes(row for windows in found for row in windows)


def _left_out(totals: Totals) -> Iterator[str]:
    for number, why in (
        (totals.uncaptured, "of which nothing was recorded"),
        (totals.without_reward, "without a finite reward, or trained on again"),
        (totals.without_line, "of which there are records but no line"),
    ):
        if number:
            yield f"{number} completions {why} do not count"


def _require_reward(part: _Part, totals: Totals) -> None:
    """Refuse the name of a reward that no completion has."""
    if totals.completions or not totals.without_reward:
        return
    some: Iterator[Completion] = islice(read_events(part.run, "completions"), _LOOKED_AT)
    names = dict.fromkeys(name for completion in some for name in completion.rewards)
    if part.reward not in {"R", "advantage", *names}:
        raise OptionError(
            f"Expected one of the rewards R, advantage, {', '.join(names)}, got `{part.reward}`",
            hint="Name one with --reward",
        )


def _span(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    if all(not end or end.isdecimal() for end in (first, last)) and (first or colon):
        return int(first or 0), int(last) if last else None if colon else int(first)
    raise OptionError(
        f"Expected steps such as 10:40, 10:, :40 or 10, got `{text}`",
        hint="Write the first and the last step with a colon between them",
    )


def _labels(part: _Part, layers: Sequence[int] | dict[int, Any]) -> Labels:
    found: dict[int, Any] = {}
    for given in part.labels:
        layer, equals, path = given.partition("=")
        if equals and layer.isdecimal():
            found[int(layer)] = load_labels(path, layer=int(layer))
        elif len(layers) == 1:
            found[next(iter(layers))] = load_labels(given)
        else:
            raise OptionError(
                f"Expected LAYER=FILE, got `{given}`: layers {', '.join(map(str, layers))} "
                "have latents of their own",
                hint="Write, for example, --labels 2=labels.jsonl, or choose one with --layer",
            )
    return found

"""The grid of a sweep as a picture, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.collections import PatchCollection
from matplotlib.colors import CenteredNorm
from matplotlib.patches import Rectangle

from aegir_adapters.patching.grids import less_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from aegir_adapters.patching.sweep_result import SweepResult

__all__ = ["draw"]

_MOST_LABELS = 64
_MISSING = "lightgrey"


def draw(result: SweepResult, ax: Axes | None = None) -> Axes:
    """Draw the grid of a result, a row for each layer, and return what it is drawn on."""
    if ax is None:
        ax = plt.subplots(layout="constrained")[1]
    values = result.to_numpy()
    colours = mpl.colormaps["RdBu" if less_is_better(result.metric_name) else "RdBu_r"]
    image = ax.imshow(
        values,
        aspect="auto",
        cmap=colours.with_extremes(bad=_MISSING),
        norm=_norm(result),
        interpolation="nearest",
    )
    _hatch(ax, result.below_noise)
    _label(ax, result)
    figure = ax.get_figure()
    if figure is not None:
        figure.colorbar(image, ax=ax, label=result.metric_name)
    return ax


def _norm(result: SweepResult) -> CenteredNorm:
    """Return the scale of colours: as far to either side of the unpatched value as any cell is."""
    centre = result.unpatched or 0.0
    values = [value for row in result.grid for value in row if value is not None]
    reach = max((abs(value - centre) for value in values), default=0.0)
    return CenteredNorm(centre, reach or 1.0)


def _hatch(ax: Axes, below_noise: Sequence[Sequence[bool]]) -> None:
    cells = [
        Rectangle((column - 0.5, row - 0.5), 1, 1)
        for row, quiet in enumerate(below_noise)
        for column, is_quiet in enumerate(quiet)
        if is_quiet
    ]
    hatched = PatchCollection(cells, facecolor="none", edgecolor="grey", linewidth=0, hatch="////")
    ax.add_collection(hatched, autolim=False)


def _label(ax: Axes, result: SweepResult) -> None:
    # A token may be spelled like a formula, which would be set as one.
    labels = [_legible(label) for label in result.labels]
    step = max(1, ceil(len(labels) / _MOST_LABELS))
    ax.set_xticks(range(0, len(labels), step), labels=labels[::step], rotation=90, parse_math=False)
    rows = max(1, ceil(len(result.layers) / _MOST_LABELS))
    ax.set_yticks(
        range(0, len(result.layers), rows), labels=[str(layer) for layer in result.layers[::rows]]
    )
    ax.set_ylabel("layer")
    ax.set_title(_title(result), parse_math=False)


def _title(result: SweepResult) -> str:
    parts = [f"{result.hook}: {result.metric_name}"]
    if result.method == "attribution":
        parts.append("estimated")
    if result.pair is not None:
        parts.append(f"pair {result.pair}")
    elif result.response.pair_grids is not None:
        parts.append(f"mean of {len(result.response.pair_grids)} pairs")
    return ", ".join(parts)


def _legible(text: str) -> str:
    """Return a token with nothing in it that cannot be seen."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    return shown if shown.strip() else repr(shown)

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aegir_adapters.patching.grids import Grids, Place, PlacedCell, less_is_better
from aegir_adapters.patching.metrics import METRICS, MetricName
from aegir_adapters.patching.response import Extreme


def grids_of(metric: MetricName, *pairs: Sequence[Sequence[float | None]]) -> Grids:
    """Return the grids of one hook, with a grid of two layers for each pair."""
    columns = range(4, 4 + len(pairs[0][0]))
    grids = Grids(["z"], [2, 0], columns, metrics=[metric], pairs=len(pairs))
    for pair, grid in enumerate(pairs):
        for layer, row in zip([2, 0], grid, strict=True):
            for column, value in zip(columns, row, strict=True):
                cell = PlacedCell(values=(value,), quiet=(value == 0.0,))
                grids.add(Place(pair, "z", layer, column), cell)
    return grids


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_cell_has_the_largest_value_or_the_smallest(metric: MetricName) -> None:
    """A distance from the clean run and a rank are best where they are least."""
    grid = grids_of(metric, [[0.5, 3.0, None], [-2.0, 1.0, 0.0]]).hook_grid("z")

    least = Extreme(layer=0, position=4, value=-2.0)
    most = Extreme(layer=2, position=5, value=3.0)
    assert grid.argmax == (least if metric in {"kl", "rank"} else most)
    assert less_is_better(metric) == (metric in {"kl", "rank"})


@pytest.mark.parametrize("metric", ["logprob", "kl"])
def test_of_equal_cells_the_first_is_the_best(metric: MetricName) -> None:
    """By row, then by column."""
    grid = grids_of(metric, [[None, 1.0], [1.0, 1.0]]).hook_grid("z")
    assert grid.argmax == Extreme(layer=2, position=5, value=1.0)
    assert grids_of(metric, [[None], [None]]).hook_grid("z").argmax is None


def test_a_mean_needs_a_value_of_every_pair() -> None:
    """The best cell is that of the mean, and it is quiet where all pairs are."""
    grids = grids_of("logprob", [[0.0, 4.0], [None, 0.0]], [[0.0, 0.0], [8.0, 5.0]])

    mean = grids.hook_grid("z")
    assert mean.grid == ((0.0, 2.0), (None, 2.5))
    assert mean.argmax == Extreme(layer=0, position=5, value=2.5)
    assert mean.below_noise == ((True, False), (False, False))
    assert grids.hook_grid("z", pair=0).argmax == Extreme(layer=2, position=5, value=4.0)


def test_a_cell_that_is_not_there_has_no_value() -> None:
    """As in a sweep that has not come to its end."""
    grids = Grids(["z"], [0], [0, 1], metrics=["logprob"], pairs=1)
    failed = PlacedCell(values=(None,), quiet=(False,), error="it is no number")
    grids.add(Place(0, "z", 0, 1), failed)

    assert grids.hook_grid("z").grid == ((None, None),)
    assert list(grids.failed()) == [(Place(0, "z", 0, 1), "it is no number")]

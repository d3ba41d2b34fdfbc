from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.patching.decoders import CORRUPT, LAYERS
from adapters.patching.served import forwards_of, service_of, swept, swept_with_cells
from aegir_adapters.patching.metrics import METRICS
from aegir_adapters.patching.response import MetricGrid, PatchSweepResponse

EVERY = list(METRICS)


def without(response: PatchSweepResponse, *fields: str) -> dict[str, Any]:
    """Return an answer's fields but for some, and for what no two sweeps have in common."""
    plain: dict[str, Any] = msgspec.to_builtins(response)
    own = ("elapsed_s", "captured_source_run")
    return {name: value for name, value in plain.items() if name not in {*fields, *own}}


def near(value: float | None) -> Any:
    """Return what compares equal within the error of float32."""
    return pytest.approx(value, abs=1e-4, rel=1e-5)


def same(grid: MetricGrid, alone: PatchSweepResponse) -> None:
    """Check a grid of several metrics against a sweep of that metric alone."""
    assert grid.metric == alone.metric
    for mine, theirs in zip(grid.grid, alone.grid, strict=True):
        assert list(mine) == [near(value) for value in theirs]
    assert (grid.clean, grid.corrupt) == (near(alone.clean), near(alone.corrupt))
    assert grid.noise_floor == near(alone.noise_floor)


@pytest.mark.parametrize("metric", EVERY)
def test_one_metric_among_metrics_is_that_metric(metric: str) -> None:
    """Only `metric_grids` tells them apart, and it mirrors the grid."""
    single, among = swept(service_of(), metric=metric), swept(service_of(), metrics=[metric])

    assert without(single, "metric_grids") == without(among, "metric_grids")
    assert single.metric_grids is None
    assert among.metric_grids is not None
    (grid,) = among.metric_grids
    assert (grid.hook, grid.metric, grid.grid, grid.argmax) == (
        "resid_post",
        metric,
        among.grid,
        among.argmax,
    )
    assert (grid.clean, grid.corrupt) == (among.clean, among.corrupt)
    assert (grid.noise_floor, grid.below_noise) == (among.noise_floor, among.below_noise)


@settings(max_examples=8)
@given(metrics=st.lists(st.sampled_from(EVERY), min_size=2, unique=True))
def test_each_of_several_metrics_is_what_it_is_alone(metrics: list[str]) -> None:
    """Values, baselines and noise; the top of the answer is the first metric's."""
    response = swept(service_of(), metrics=metrics, hooks=["attn_out", "resid_post"])

    assert response.metric == metrics[0]
    assert response.metric_grids is not None
    grids = iter(response.metric_grids)
    for hook in ("attn_out", "resid_post"):
        for metric in metrics:
            grid = next(grids)
            assert grid.hook == hook
            same(grid, swept(service_of(), metric=metric, hook=hook))
    assert next(grids, None) is None
    first = response.metric_grids[0]
    assert (response.grid, response.argmax) == (first.grid, first.argmax)
    assert (response.clean, response.corrupt) == (first.clean, first.corrupt)


def test_several_metrics_take_no_more_forwards() -> None:
    """They are read from the same logits, and the counters are those of one metric."""
    one, lengths = forwards_of(service_of(), metric="logprob")
    all_of_them, lengths_of_all = forwards_of(service_of(), metrics=EVERY)

    assert lengths == lengths_of_all
    counters = {name for name in one.__struct_fields__ if name.startswith(("cells", "token_l"))}
    assert len(counters) == 9
    for name in counters:
        assert getattr(one, name) == getattr(all_of_them, name)


def test_each_metric_has_its_own_noise() -> None:
    """A cell is below the noise of one metric, and not thereby of another."""
    service = service_of()
    # Kernels that round otherwise the more rows they are given.
    layer = service.model.layers[1]
    handle = layer.register_forward_hook(lambda _, __, out: out * (1 + 1e-7 * out.numel()))
    # So little of the clean run that no token changes its rank.
    response = swept(service, metrics=EVERY, alpha=1e-5, layers=[0, 2])
    handle.remove()

    assert response.metric_grids is not None
    floors = {grid.metric: grid.noise_floor for grid in response.metric_grids}
    assert len(set(floors.values())) > 2
    for grid in response.metric_grids:
        unpatched = 0.0 if grid.metric.startswith("recovered") else grid.corrupt
        assert unpatched is not None
        assert grid.noise_floor is not None
        for values, flags in zip(grid.grid, grid.below_noise, strict=True):
            for value, is_quiet in zip(values, flags, strict=True):
                assert value is not None
                # Floors are those of a position group, of which the largest is told.
                assert not is_quiet or abs(value - unpatched) <= grid.noise_floor
        assert grid.below_noise[0][:2] == (True, True)
    by_metric = {grid.metric: grid.below_noise for grid in response.metric_grids}
    assert all(all(row) for row in by_metric["rank"])
    assert not all(all(row) for row in by_metric["logprob"])
    assert {name for floor in response.noise_floors for name in floor.values} == set(EVERY)


def test_a_cell_holds_all_metrics() -> None:
    """In the order asked for, each once, and only if several were asked for."""
    _, cells = swept_with_cells(service_of(), metrics=["rank", "logprob", "rank"])
    _, plain = swept_with_cells(service_of(), metric="rank")

    assert len(cells) == LAYERS * len(CORRUPT)
    for cell in cells:
        assert isinstance(cell.values, dict)
        assert list(cell.values) == ["rank", "logprob"]
        assert cell.value == cell.values["rank"]
    assert not any(isinstance(cell.values, dict) for cell in plain)


def test_each_metric_has_its_best_cell() -> None:
    """The largest value, or of `kl` and `rank` the smallest."""
    response = swept(service_of(), metrics=EVERY)

    assert response.metric_grids is not None
    for grid in response.metric_grids:
        values = [value for row in grid.grid for value in row if value is not None]
        assert max(values) != min(values)
        best = min if grid.metric in {"kl", "rank"} else max
        assert grid.argmax is not None
        assert grid.argmax.value == best(values)


def test_metrics_refer_to_a_baseline_that_is_given() -> None:
    """`recovered` of each kind is computed against it, and the others are as ever."""
    response = swept(
        service_of(), metrics=["logprob", "recovered", "recovered_logit_diff"], clean_baseline=0.5
    )

    assert response.metric_grids is not None
    raw, share, of_difference = response.metric_grids
    same(raw, swept(service_of(), metric="logprob"))
    for grid in (share, of_difference):
        assert grid.clean == 0.5
        same(grid, swept(service_of(), metric=grid.metric, clean_baseline=0.5))


def test_a_metric_that_is_undefined_is_null_in_its_own_grid() -> None:
    """The others have their values."""
    response = swept(service_of(), clean_prompt=list(CORRUPT), metrics=["logprob", "recovered"])

    assert response.metric_grids is not None
    raw, share = response.metric_grids
    assert {value for row in share.grid for value in row} == {None}
    assert None not in {value for row in raw.grid for value in row}
    assert share.argmax is None

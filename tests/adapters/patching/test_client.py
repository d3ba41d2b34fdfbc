from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.from_thread
import numpy as np
import pytest

from adapters.patching.decoders import ANSWER, CLEAN, CORRUPT, FOIL, LAYERS
from adapters.patching.served import footprint, patchable, serving
from aegir_adapters.patching.client import PatchStudy
from aegir_adapters.patching.over_http import ServiceFailedError
from aegir_adapters.patching.request import PatchSweepRequest, RequestError
from aegir_adapters.patching.response import CellEvent
from aegir_adapters.patching.routes import patch_app
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.spans import Span
from aegir_stream.errors import OptionError

pytestmark = pytest.mark.anyio

OPTIONS: dict[str, Any] = {
    "clean_prompt": CLEAN,
    "answer_token": ANSWER,
    "foil_token": FOIL,
    "metric": "logit_diff",
}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on both; servers of their own run on asyncio in any case."""
    return request.param


@pytest.fixture(params=["in_process", "over_http"])
async def study(request: pytest.FixtureRequest) -> AsyncIterator[PatchStudy]:
    """A study of one model, in this process and on a server."""
    if request.param == "in_process":
        async with PatchStudy(patchable()) as study:
            yield study
    else:
        with serving(patch_app(patchable())) as address:
            async with PatchStudy(base_url=f"{address}/v1") as study:
                yield study


async def test_results_do_not_depend_on_where_the_model_is(study: PatchStudy) -> None:
    """A study gives what the service gives, with or without watching the cells."""
    async with PatchStudy(patchable()) as local:
        expected = await local.sweep_layers_positions(CORRUPT, **OPTIONS)
    cells: list[CellEvent] = []

    plain = await study.sweep_layers_positions(CORRUPT, **OPTIONS)
    watched = await study.sweep_layers_positions(CORRUPT, on_cell=cells.append, **OPTIONS)

    assert plain.grid == watched.grid == expected.grid
    assert (plain.clean, plain.corrupt) == (expected.clean, expected.corrupt)
    assert plain.below_noise == expected.below_noise
    assert len(cells) == LAYERS * len(CORRUPT)
    assert {cell.value for cell in cells} == {value for row in plain.grid for value in row}


async def test_several_hooks_give_several_results(study: PatchStudy) -> None:
    """By their names, in the order given; each is what the hook gives alone."""
    cells: list[CellEvent] = []
    results = await study.sweep_layers_positions(
        CORRUPT, hooks=["z", "resid_pre"], on_cell=cells.append, **OPTIONS
    )

    assert list(results) == ["z", "resid_pre"]
    assert len(cells) == 2 * LAYERS * len(CORRUPT)
    alone = await study.sweep_layers_positions(CORRUPT, hook="resid_pre", **OPTIONS)
    for mine, other in zip(results["resid_pre"].grid, alone.grid, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    assert list(await study.sweep_layers_positions(CORRUPT, hooks=["z"], **OPTIONS)) == ["z"]


async def test_several_metrics_are_had_from_one_result(study: PatchStudy) -> None:
    """Of each hook; each is what a sweep of that metric gives. What was not measured is told."""
    results = await study.sweep_layers_positions(
        CORRUPT, hooks=["z", "resid_pre"], **{**OPTIONS, "metrics": ["kl", "recovered", "logprob"]}
    )

    assert {result.metric_name for result in results.values()} == {"kl"}
    recovered = results["resid_pre"].metric("recovered")
    assert (recovered.hook, recovered.metric_name) == ("resid_pre", "recovered")
    assert recovered.metric("kl") == results["resid_pre"]
    alone = await study.sweep_layers_positions(
        CORRUPT, hook="resid_pre", **{**OPTIONS, "metric": "recovered"}
    )
    assert recovered.clean == pytest.approx(alone.clean, abs=1e-5)
    assert recovered.corrupt == pytest.approx(alone.corrupt, abs=1e-5)
    assert recovered.unpatched == 0.0
    assert recovered.noise_floor == pytest.approx(alone.noise_floor, abs=1e-5)
    best, same = recovered.argmax_cell(), alone.argmax_cell()
    assert best is not None
    assert same is not None
    assert (best.layer, best.position) == (same.layer, same.position)
    assert alone.metric("recovered") == alone
    for result, known in ((alone, "recovered"), (recovered, "kl, logprob, recovered")):
        with pytest.raises(OptionError, match=f"was measured: {known}, got rank"):
            result.metric("rank")


async def test_a_preview_has_estimates(study: PatchStudy) -> None:
    """It says so, and the exact sweep finds the same best layer."""
    cells: list[CellEvent] = []
    preview = await study.sweep_layers_positions(
        CORRUPT, method="attribution", on_cell=cells.append, **OPTIONS
    )
    exact = await study.sweep_layers_positions(CORRUPT, **OPTIONS)

    assert (preview.method, exact.method) == ("attribution", "exact")
    assert {cell.estimated for cell in cells if not cell.free} == {True}
    response = preview.response
    assert (response.cells_computed, response.token_layers) == (0, 0)
    assert (response.noise_floor, response.rank_correlation) == (None, None)
    assert response.cells_estimated == exact.response.cells_computed
    assert (preview.clean, preview.corrupt) == (exact.clean, exact.corrupt)
    agreement = np.corrcoef(preview.to_numpy().ravel(), exact.to_numpy().ravel())[0, 1]
    assert agreement > 0.5

    with pytest.raises(RequestError, match="for the method attribution"):
        await study.sweep_layers_positions(
            CORRUPT, method="attribution", **{**OPTIONS, "metric": "rank"}
        )


async def test_groups_are_columns_with_names(study: PatchStudy) -> None:
    """They are had from the result, and cannot be zoomed in on."""
    result = await study.sweep_layers_positions(
        "w5 w6 w7",
        clean_prompt="w8 w6 w9",
        answer_token="w9",
        groups={"ends": [Span("w5"), -1], "all": [0, 1, 2, 3]},
    )

    assert result.columns == result.labels == ("ends", "all")
    assert result.column_positions == ((1, 3), (0, 1, 2, 3))
    assert result.to_numpy().shape == (LAYERS, 2)
    with pytest.raises(OptionError, match="got one of groups"):
        await study.zoom(result, corrupt_prompt="w5 w6 w7", answer_token="w9")


async def test_pairs_are_swept_together(study: PatchStudy) -> None:
    """The result is their mean, and each pair's is had from it, of each metric."""
    await study.capture_clean("w4 w6", run="mine")
    clean = await study.capture_clean("w3 w6")
    cells: list[CellEvent] = []
    result = await study.sweep_layers_positions(
        pairs=[
            {"prompt": "w5 w6", "clean_prompt": "w7 w6"},
            {"prompt": "w5 w6", "run": "mine", "answer_token": 7},
            {"prompt": [1, 5, 6], "clean": clean, "answer_token": [8], "foil_token": "w4"},
        ],
        answer_token="w9",
        foil_token=3,
        metrics=["logit_diff", "logprob"],
        on_cell=cells.append,
    )

    pairs = [result.of_pair(index) for index in range(3)]
    assert [pair.pair for pair in pairs] == [0, 1, 2]
    assert result.pair is None
    assert result.labels == ("<bos>", "w5", "w6")
    grids = np.stack([pair.to_numpy() for pair in pairs])
    assert result.to_numpy() == pytest.approx(grids.mean(0))
    assert {cell.pair for cell in cells} == {0, 1, 2}
    third = await study.sweep_layers_positions(
        "w5 w6", clean_prompt="w3 w6", answer_token=8, foil_token="w4", metric="logprob"
    )
    logprob = pairs[2].metric("logprob")
    assert (logprob.pair, logprob.metric_name) == (2, "logprob")
    assert logprob.to_numpy() == pytest.approx(third.to_numpy(), abs=1e-5)
    assert pairs[2].metric("logprob") == result.metric("logprob").of_pair(2)
    with pytest.raises(OptionError, match=r"one of 0\.\.2, got 3"):
        result.of_pair(3)
    with pytest.raises(OptionError, match="`pairs` were not swept, got 0"):
        third.of_pair(0)
    with pytest.raises(OptionError, match="got one of prompt pairs"):
        await study.zoom(result, corrupt_prompt="w5 w6", answer_token="w9")
    for run in ("mine", clean.run_id):
        assert await study.drop_run(run)


async def test_a_captured_run_is_swept_and_dropped(study: PatchStudy) -> None:
    """Its baselines are those of the sweep, and the second drop finds nothing."""
    clean = await study.capture_clean(CLEAN, run="mine", answer_token=ANSWER, foil_token=FOIL)
    assert (clean.run_id, clean.num_prompt_tokens) == ("mine", len(CLEAN))

    for source in ({"clean": clean}, {"run": "mine"}):
        result = await study.sweep_layers_positions(
            CORRUPT,
            answer_token=ANSWER,
            foil_token=FOIL,
            metric="logit_diff",
            **source,
        )
        assert result.clean == pytest.approx(clean.clean_logit_diff, abs=1e-6)
        assert not result.auto_captured

    assert await study.drop_run("mine")
    assert not await study.drop_run("mine")


async def test_each_capture_has_a_name_of_its_own(study: PatchStudy) -> None:
    """If it is given none."""
    first, second = [await study.capture_clean(CLEAN) for _ in range(2)]
    assert first.run_id != second.run_id
    assert first.clean_logprob is None


async def test_spans_are_found(study: PatchStudy) -> None:
    """And can be swept."""
    assert await study.positions_for("w5 w6 w5", "w5", occurrence=1) == [3]
    result = await study.sweep_layers_positions(
        "w5 w6 w5",
        clean_prompt="w7 w6 w5",
        answer_token="w9",
        positions=[Span("w6"), 1],
    )
    assert result.positions == (2, 1)


async def test_a_refusal_is_the_same_everywhere(study: PatchStudy) -> None:
    """With its field, value and what is allowed."""
    async with PatchStudy(patchable()) as local:
        for options in (
            {"layers": [99]},
            {"metric": "accuracy"},
            {"positions": ["x"]},
            {"metrics": ["rank"], "method": "attribution"},
            {"groups": {"a": [99]}},
            {"clean_prompt": CLEAN, "pairs": [{"prompt": CORRUPT}]},
            {"answer_token": None},
        ):
            caught = []
            for one in (study, local):
                with pytest.raises(RequestError) as error:
                    await one.sweep_layers_positions(CORRUPT, **{**OPTIONS, **options})
                caught.append(error.value)
            mine, expected = caught
            assert str(mine) == str(expected)
            assert (mine.field, mine.value, mine.allowed) == (
                expected.field,
                expected.value,
                expected.allowed,
            )
        with pytest.raises(RequestError):
            await study.sweep_layers_positions(CORRUPT, on_cell=print, **{**OPTIONS, "layers": [9]})


async def test_zooming_sweeps_around_the_best_cell(study: PatchStudy) -> None:
    """Within the model and the prompt, at the hook and metric of the coarser sweep."""
    coarse = await study.sweep_layers_positions(
        CORRUPT, layers=[0, 2], positions=[0, 3, 6], hook="attn_out", **OPTIONS
    )
    best = coarse.argmax_cell()
    assert best is not None

    fine = await study.zoom(
        coarse,
        corrupt_prompt=CORRUPT,
        layer_radius=1,
        position_radius=1,
        clean_prompt=CLEAN,
        answer_token=ANSWER,
        foil_token=FOIL,
    )

    assert (fine.hook, fine.metric_name) == ("attn_out", "logit_diff")
    assert set(fine.layers) == {best.layer - 1, best.layer, best.layer + 1} & set(range(LAYERS))
    near = {best.position - 1, best.position, best.position + 1}
    assert set(fine.positions) == near & set(range(len(CORRUPT)))
    corner = await study.zoom(coarse, corrupt_prompt=CORRUPT, around=(0, 6), **OPTIONS)
    assert (corner.layers, corner.positions) == ((0, 1, 2), (3, 4, 5, 6))


async def test_a_result_ranks_its_cells(study: PatchStudy) -> None:
    """The largest first, of `rank` the smallest; as an array, what is undefined is NaN."""
    result = await study.sweep_layers_positions(CORRUPT, **OPTIONS)
    grid = result.to_numpy()
    assert grid.shape == (LAYERS, len(CORRUPT))
    best, *others = result.top(3)
    assert best == result.argmax_cell() == result.response.argmax
    assert best.value == grid.max()
    assert [cell.value for cell in others] == sorted(grid.ravel())[-2:-4:-1]

    rank = await study.sweep_layers_positions(CORRUPT, **{**OPTIONS, "metric": "rank"})
    assert rank.top(1)[0].value == rank.to_numpy().min()

    undefined = await study.sweep_layers_positions(
        CORRUPT, **{**OPTIONS, "clean_prompt": CORRUPT, "metric": "recovered"}
    )
    assert np.isnan(undefined.to_numpy()).all()
    assert undefined.argmax_cell() is None
    with pytest.raises(OptionError, match="a result without values"):
        await study.zoom(undefined, corrupt_prompt=CORRUPT, **OPTIONS)
    assert not math.isnan(best.value)


async def test_other_fields_go_into_the_request(study: PatchStudy) -> None:
    """Zero ablation, for one."""
    result = await study.sweep_layers_positions(CORRUPT, answer_token=[ANSWER], source="zero")
    assert result.clean is None


async def test_a_study_that_is_cancelled_frees_everything() -> None:
    """While the model computes, or between two chunks."""
    service = PatchService(patchable(), chunk_bytes=1 << 12)
    async with PatchStudy(service) as study:
        with anyio.CancelScope() as scope:

            def leave(_: CellEvent) -> None:
                scope.cancel()

            await study.sweep_layers_positions(CORRUPT, on_cell=leave, **OPTIONS)

        assert scope.cancelled_caught
        assert footprint(service.store) == (0, 0, 0, 0)
        assert not any(layer._forward_pre_hooks for layer in service.model.layers)


class Noting(PatchService):
    """A service that keeps what its sweeps are interrupted by."""

    interrupt: threading.Event | None = None

    def sweep(self, request: PatchSweepRequest, *, interrupt: threading.Event | None = None) -> Any:
        """Begin a sweep."""
        self.interrupt = interrupt
        return super().sweep(request, interrupt=interrupt)


async def test_cancellation_reaches_the_model_while_it_computes() -> None:
    """It stops at its next layer, although the study waits for its thread."""
    service, calls = Noting(patchable()), 0

    def cancel(*_: Any) -> None:
        nonlocal calls
        calls += 1
        anyio.from_thread.run_sync(scope.cancel)
        assert service.interrupt is not None
        assert service.interrupt.wait(10)

    async with PatchStudy(service) as study:
        handle = service.model.layers[1].register_forward_pre_hook(cancel)
        with anyio.CancelScope() as scope:
            await study.sweep_layers_positions(CORRUPT, **OPTIONS)
        handle.remove()

    assert scope.cancelled_caught
    assert calls == 1
    assert footprint(service.store) == (0, 0, 0, 0)


async def test_a_watcher_that_fails_frees_everything() -> None:
    """Its error is raised as it is."""
    service = PatchService(patchable(), chunk_bytes=1 << 12)

    def fail(_: CellEvent) -> None:
        raise ZeroDivisionError

    async with PatchStudy(service) as study:
        with pytest.raises(ZeroDivisionError):
            await study.sweep_layers_positions(CORRUPT, on_cell=fail, **OPTIONS)
    assert footprint(service.store) == (0, 0, 0, 0)


async def test_a_service_that_fails_says_so() -> None:
    """With what it said, or at least with the status."""

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    handle = patchable().layers[-1].register_forward_pre_hook(fail)
    try:
        with serving(patch_app(patchable())) as address:
            async with PatchStudy(base_url=f"{address}/v1") as study:
                with pytest.raises(ServiceFailedError, match="no memory") as caught:
                    await study.sweep_layers_positions(CORRUPT, **OPTIONS)
                assert caught.value.status == 500
            async with PatchStudy(base_url=f"{address}/elsewhere") as study:
                with pytest.raises(ServiceFailedError, match="status 404"):
                    await study.model()
    finally:
        handle.remove()


async def test_a_study_is_of_one_model() -> None:
    """In this process or on a server."""
    with pytest.raises(OptionError, match="got neither"):
        PatchStudy()
    with pytest.raises(OptionError, match="got both"):
        PatchStudy(patchable(), base_url="http://127.0.0.1/v1")

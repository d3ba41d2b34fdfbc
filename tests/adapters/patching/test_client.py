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
        for options in ({"layers": [99]}, {"metric": "accuracy"}, {"positions": ["x"]}):
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

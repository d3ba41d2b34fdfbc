from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from adapters.patching.decoders import (
    ALIGNMENT,
    ANSWER,
    CLEAN,
    CORRUPT,
    FOIL,
    LAYERS,
    LONGER,
)
from adapters.patching.served import (
    Halves,
    footprint,
    measured,
    patchable,
    put,
    request_of,
    service_of,
    swept,
    swept_with_cells,
)
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.request import CaptureRequest, RequestError, convert_request
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.sources import RunSource
from aegir_adapters.patching.store import RunStore
from aegir_adapters.patching.sweep import SweepSpec, sweep

EVERY_SITE = {"resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "z"}


def counted_forwards(service: PatchService) -> tuple[list[int], Callable[[], None]]:
    """Count forwards of the whole model; call what is returned to stop."""
    lengths: list[int] = []

    def note(_: Any, __: Any, output: Any) -> None:
        lengths.append(output.shape[1] if isinstance(output, Tensor) else 0)

    embedding: Any = service.model.module.get_input_embeddings()  # type: ignore[operator]
    return lengths, embedding.register_forward_hook(note).remove


def test_a_sweep_holds_what_the_engine_computes() -> None:
    """The grid has a row for each layer and a column for each position."""
    service = service_of()
    response, cells = swept_with_cells(service, metric="logit_diff", layers=[2, 0])

    spec = SweepSpec(
        prompt_ids=CORRUPT,
        source=RunSource(run=capture(service.model, CLEAN)),
        hooks=("resid_post",),
        layers=(2, 0),
        answer_ids=(ANSWER,),
        foil_ids=(FOIL,),
        metrics=("logit_diff",),
    )
    expected = {
        (cell.layer, cell.position): cell.values[0]
        for item in sweep(service.model, spec)
        for cell in getattr(item, "cells", ())
    }
    assert len(cells) == response.cells_total == 2 * len(CORRUPT)
    for layer, row in zip(response.layers, response.grid, strict=True):
        for position, value in zip(response.positions, row, strict=True):
            assert value == pytest.approx(expected[layer, position], abs=1e-6)


def test_the_best_cell_is_told() -> None:
    """The largest value, or of `kl` and `rank` the smallest."""
    for metric, best in (("logprob", max), ("kl", min), ("rank", min)):
        response = swept(service_of(), metric=metric)
        values = [value for row in response.grid for value in row if value is not None]
        assert response.argmax is not None
        assert response.argmax.value == best(values)


def test_recovered_is_a_share_of_the_way_from_corrupt_to_clean() -> None:
    """Its baselines are told in the unit that it is made of."""
    for metric, raw in (("recovered", "logprob"), ("recovered_logit_diff", "logit_diff")):
        share, plain = swept(service_of(), metric=metric), swept(service_of(), metric=raw)

        assert (share.clean, share.corrupt) == (plain.clean, plain.corrupt)
        assert plain.clean is not None
        assert plain.corrupt is not None
        for shares, values in zip(share.grid, plain.grid, strict=True):
            for part, value in zip(shares, values, strict=True):
                assert value is not None
                expected = (value - plain.corrupt) / (plain.clean - plain.corrupt)
                assert part == pytest.approx(expected, abs=1e-5)


def test_recovered_can_refer_to_a_baseline_that_is_given() -> None:
    """Such as that of a run whose prompt is not known; noise has the same unit."""
    plain = swept(service_of(), metric="logprob")
    given = swept(service_of(), metric="recovered", clean_baseline=0.0)

    assert given.clean == 0.0
    assert plain.corrupt is not None
    spread = -plain.corrupt
    for shares, values in zip(given.grid, plain.grid, strict=True):
        for part, value in zip(shares, values, strict=True):
            assert value is not None
            assert part == pytest.approx((value - plain.corrupt) / spread, abs=1e-6)
    assert plain.noise_floor is not None
    assert given.noise_floor == pytest.approx(plain.noise_floor / spread, abs=1e-6)

    without_run = swept(
        service_of(), source="zero", clean_prompt=None, metric="recovered", clean_baseline=0.0
    )
    assert without_run.clean == 0.0


def test_recovered_that_is_undefined_is_null_with_a_warning() -> None:
    """Never the raw value under that label."""
    response = swept(service_of(), clean_prompt=list(CORRUPT), metric="recovered")

    assert {value for row in response.grid for value in row} == {None}
    assert response.argmax is None
    assert response.warnings


def test_one_hook_among_hooks_is_that_hook() -> None:
    """Only `hook_grids` tells them apart, and it mirrors the first hook."""
    single = swept(service_of(), hook="post_block")
    among = swept(service_of(), hooks=["post_block"])

    assert measured(single) == measured(among)
    assert single.hook_grids is None
    assert among.hook_grids is not None
    (grid,) = among.hook_grids
    assert (grid.hook, grid.grid, grid.argmax) == ("post_block", among.grid, among.argmax)


def test_several_hooks_share_one_capture_and_one_pair_of_baselines() -> None:
    """However many there are, each prompt is run through the whole model as often as for one."""
    service = service_of()
    one, stop = counted_forwards(service)
    swept(service, hooks=["resid_pre"])
    stop()
    many, stop = counted_forwards(service)
    response = swept(service, hooks=["attn_out", "resid_pre", "z"])
    stop()

    assert one == many
    assert response.hook_grids is not None
    assert [grid.hook for grid in response.hook_grids] == ["attn_out", "resid_pre", "z"]
    assert response.grid == response.hook_grids[0].grid
    assert response.cells_total == 3 * LAYERS * len(CORRUPT)


def test_a_capture_taps_every_hook_at_the_swept_layers() -> None:
    """So that a run that is kept serves a later sweep of another hook."""
    service = service_of()
    response = swept(service, source_run="a", keep_source=True, layers=[2, 1])

    manifest = service.store.manifest("a")
    assert manifest is not None
    assert set(manifest.sites) == EVERY_SITE
    assert (manifest.layers, manifest.positions) == ((1, 2), len(CLEAN))
    assert (response.auto_captured, response.captured_source_run) == (True, "a")


def test_a_captured_run_goes_after_the_sweep() -> None:
    """It is gone when the summary is there, and the next sweep captures it again."""
    service = service_of()
    for _ in range(2):
        with service.sweep(request_of(source_run="a")) as running:
            assert footprint(service.store)[:2] == (1, 1)
            assert running.start.auto_captured
            list(running.batches())
            running.summary()
            assert footprint(service.store) == (0, 0, 0, 0)


def test_a_captured_run_stays_if_asked_for() -> None:
    """Under a name of its own if it was given none."""
    service = service_of()
    name = swept(service, keep_source=True).captured_source_run
    assert name is not None

    again = swept(service, source_run=name, clean_prompt=None, hook="attn_out")

    assert (again.auto_captured, again.captured_source_run) == (False, None)
    assert [manifest.run_id for manifest in service.store.manifests()] == [name]


def test_a_run_that_existed_is_used_and_stays() -> None:
    """It is neither captured again nor dropped, with or without its prompt."""
    service = service_of()
    put(service, "a", CLEAN)
    before = footprint(service.store)
    fresh = measured(swept(service_of()))

    for clean_prompt in (list(CLEAN), None):
        response = swept(service, source_run="a", clean_prompt=clean_prompt)
        assert not response.auto_captured
        assert measured(response) == fresh
        assert footprint(service.store) == before


def test_a_run_that_is_dropped_under_a_sweep_is_read_to_the_end() -> None:
    """Its owner's drop succeeds at once, and its memory is freed after the sweep."""
    service = service_of()
    put(service, "a", CLEAN)
    lease = service.store.lease("a")
    assert lease is not None
    tensor = weakref.ref(lease.run.activations["resid_post"])
    lease.release()

    with service.sweep(request_of(source_run="a", clean_prompt=None)) as running:
        assert service.drop("a")
        assert not service.drop("a")
        list(running.batches())
        response = running.summary()

    assert measured(response) == measured(swept(service_of()))
    assert footprint(service.store) == (0, 0, 0, 0)
    assert tensor() is None


def test_a_run_captured_by_one_sweep_serves_another_to_its_end() -> None:
    """The first is done before the second, and takes nothing from under it."""
    service = service_of()
    with service.sweep(request_of(source_run="a")) as first:
        with service.sweep(request_of(source_run="a", clean_prompt=None)) as second:
            list(first.batches())
            first.summary()
            assert service.store.manifest("a") is not None
            list(second.batches())
            response = second.summary()
        assert footprint(service.store) == (0, 0, 0, 0)

    assert not response.auto_captured
    assert measured(response) == measured(swept(service_of()))


def test_threads_sweep_one_model_at_the_same_time() -> None:
    """They take turns, share a run, and get what each would have got alone."""
    service = service_of(chunk_bytes=1 << 12)
    hooks = ["resid_pre", "attn_out", "mlp_out"]
    expected = {hook: measured(swept(service, hook=hook)) for hook in hooks}
    results: dict[str, Any] = {}

    def work(hook: str) -> None:
        results[hook] = measured(swept(service, hook=hook, source_run="a"))

    threads = [threading.Thread(target=work, args=(hook,)) for hook in hooks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == expected
    assert footprint(service.store) == (0, 0, 0, 0)


def test_a_run_that_lacks_something_is_topped_up() -> None:
    """With what it had, what the sweep needs, and every hook; the result is that of a whole run."""
    service = service_of()
    put(service, "a", CLEAN, hooks=["resid_post"], layers=[0], positions=[1, 2])

    response = swept(service, source_run="a", clean_prompt=None, hook="attn_out", layers=[2])

    assert measured(response) == measured(swept(service_of(), hook="attn_out", layers=[2]))
    manifest = service.store.manifest("a")
    assert manifest is not None
    assert (manifest.layers, manifest.positions) == ((0, 2), len(CLEAN))
    assert set(manifest.sites) == EVERY_SITE


def test_unequal_prompts_are_aligned() -> None:
    """What has no counterpart is left out of the grid, and told with its reason."""
    service = service_of()
    corrupt = [*CORRUPT[:3], 77, 78, *CORRUPT[3:]]

    response = swept(service, prompt=corrupt, clean_prompt=list(CORRUPT))

    assert response.positions == (0, 1, 2, 5, 6, 7, 8)
    assert [one.position for one in response.skipped] == [3, 4]
    assert "inserted" in response.skipped[0].reason
    assert response.alignment is not None
    assert response.alignment.shifts == (0, 0, 0, -2, -2, -2, -2)
    assert response.alignment.unaligned_positions == (3, 4)
    assert (response.alignment.prefix_len, response.alignment.suffix_len) == (3, 4)

    asked = swept(service, prompt=corrupt, clean_prompt=list(CORRUPT), positions=[4, 5])
    assert asked.positions == (5,)
    assert [one.position for one in asked.skipped] == [4]


def test_a_stored_run_is_aligned_by_its_own_tokens() -> None:
    """Without its prompt being told again."""
    service = service_of()
    put(service, "a", LONGER)

    response = swept(service, source_run="a", clean_prompt=None)

    assert response.alignment is not None
    assert response.alignment.n_clean == len(LONGER)
    told = swept(service, source_run="a", clean_prompt=list(LONGER))
    assert measured(told) == measured(response)


def test_an_alignment_can_be_given() -> None:
    """In numbers or in spans; of spans that differ in length the last tokens belong together."""
    pairs = [{"position": here, "source_position": there} for here, there in ALIGNMENT.items()]
    response = swept(service_of(), clean_prompt=list(LONGER), alignment=pairs)
    assert response.alignment is not None
    assert response.alignment.shifts == tuple(there - here for here, there in ALIGNMENT.items())

    spans = [{"position": {"span": "w5 w6"}, "source_position": {"span": "w7 w8 w9"}}]
    response = swept(service_of(), prompt="w5 w6 w4", clean_prompt="w3 w7 w8 w9", alignment=spans)
    assert response.positions == (1, 2)
    assert response.alignment is not None
    assert response.alignment.shifts == (2, 2)


def test_other_sources_need_no_run() -> None:
    """Zero, a mean, vectors and a latent; the baseline of a clean prompt is then unknown."""
    service = service_of()
    put(service, "a", CLEAN)
    before = footprint(service.store)
    width = service.model.d_model
    vectors = [
        {"hook": "resid_post", "layer": layer, "values": [0.0] * width} for layer in range(LAYERS)
    ]

    zero = swept(service, source="zero", clean_prompt=None)
    vector = swept(service, source="vector", clean_prompt=None, vectors=vectors)
    mean = swept(service, source="mean", clean_prompt=None, source_runs=["a"])

    assert zero.grid == vector.grid
    assert zero.clean is None
    assert zero.alignment is None
    assert mean.grid == swept(service_of(), source="mean").grid != zero.grid
    assert footprint(service.store) == before


def test_a_latent_is_put_in_from_a_run_or_ablated() -> None:
    """By the name of its SAE."""
    service = service_of(saes={"mine": Halves()})
    latent = {"sae": "mine", "index": 3}

    replaced = swept(service, source="latent", latent=latent, metric="recovered")
    ablated = swept(service, source="latent", latent=latent, clean_prompt=None)

    assert replaced.auto_captured
    assert replaced.alignment is not None
    assert not ablated.auto_captured
    assert len({value for row in ablated.grid for value in row}) > LAYERS
    with pytest.raises(RequestError, match="of an SAE that the server has: mine"):
        swept(service, source="latent", latent={**latent, "sae": "other"})
    assert footprint(service.store) == (0, 0, 0, 0)


def test_a_run_is_captured_to_stay() -> None:
    """With the baselines of its answer and foil."""
    service = service_of()
    request = convert_request(
        {
            "prompt": list(CLEAN),
            "source_run": "a",
            "answer_token_id": ANSWER,
            "foil_token_id": FOIL,
        },
        CaptureRequest,
    )

    captured = service.capture(request)

    plain = swept(service, source_run="a", clean_prompt=None, metric="logprob")
    assert captured.clean_logprob == pytest.approx(plain.clean, abs=1e-6)
    diff = swept(service, source_run="a", clean_prompt=None, metric="logit_diff")
    assert captured.clean_logit_diff == pytest.approx(diff.clean, abs=1e-6)
    assert captured.layers == tuple(range(LAYERS))
    assert [manifest.run_id for manifest in service.runs()] == ["a"]


def test_an_answer_that_does_not_fit_behind_a_prompt_is_refused_a_capture() -> None:
    """As it is in a sweep; nothing is captured."""
    service = service_of()
    fields = {"prompt": [5] * 62, "source_run": "a", "answer": [6] * 4}
    with pytest.raises(RequestError, match="4 tokens after a prompt of 62"):
        service.capture(convert_request(fields, CaptureRequest))
    assert footprint(service.store) == (0, 0, 0, 0)


def test_cells_come_in_the_order_of_their_promise() -> None:
    """Free cells first; of the others the first are worth more than the last."""
    service = service_of(chunk_bytes=1 << 12)
    response, cells = swept_with_cells(service, hooks=["resid_pre", "attn_out"])

    free = [cell.free for cell in cells]
    assert free == sorted(free, reverse=True)
    computed = [cell for cell in cells if not cell.free]
    assert response.corrupt is not None
    effects = [abs(cell.value - response.corrupt) for cell in computed if cell.value is not None]
    half = len(effects) // 2
    assert sum(effects[:half]) > 2 * sum(effects[half:])
    assert response.rank_correlation is not None


def test_a_cell_that_fails_does_not_fail_the_sweep() -> None:
    """It is null, and told with its reason; the others have their values."""
    # Whose norm takes a mean, which such large numbers leave the range of float32 for.
    service = service_of(model=patchable("gpt2"))
    width = service.model.d_model
    values = {layer: [0.0] * width for layer in range(LAYERS)}
    values[1] = [3e38] * width

    response, cells = swept_with_cells(
        service,
        source="vector",
        clean_prompt=None,
        vectors=[
            {"hook": "resid_post", "layer": layer, "values": row} for layer, row in values.items()
        ],
        positions=[3, 6],
    )

    failed = [(cell.layer, cell.position) for cell in cells if cell.error is not None]
    assert (1, 6) in failed
    assert response.grid[1][1] is None
    assert None not in response.grid[0]
    assert [(one.layer, one.position) for one in response.skipped] == sorted(failed)
    assert response.skipped[0].hook == "resid_post"


def test_a_store_can_be_shared() -> None:
    """Two services find the same runs."""
    store = RunStore()
    swept(service_of(store=store), source_run="a", keep_source=True)

    assert not swept(service_of(store=store), source_run="a", clean_prompt=None).auto_captured

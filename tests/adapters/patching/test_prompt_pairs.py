from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from adapters.patching.decoders import ANSWER, CLEAN, CORRUPT, FOIL, LAYERS, LONGER
from adapters.patching.served import (
    Halves,
    footprint,
    pairs_of,
    put,
    request_of,
    service_of,
    swept,
    swept_with_cells,
)
from aegir_adapters.patching.response import PairGrid, PatchSweepResponse
from aegir_adapters.patching.sweep_result import results_by_hook

FIRST = {"prompt": list(CORRUPT), "clean_prompt": list(CLEAN)}
SECOND = {"prompt": [3, *CORRUPT[1:]], "clean_prompt": [4, *CLEAN[1:]]}
COUNTERS = (
    "cells_total",
    "cells_free",
    "cells_deduplicated",
    "cells_computed",
    "token_layers",
    "token_layers_naive",
    "token_layers_baselines",
)

tokens = st.integers(3, 100)


@st.composite
def several_pairs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return pairs of prompts of one length, whose clean prompts may be longer."""
    length = draw(st.integers(2, 5))
    prompts = st.lists(tokens, min_size=length, max_size=length)
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        prompt = draw(prompts)
        clean = draw(st.one_of(prompts, st.just([*prompt, 9])))
        pairs.append({"prompt": prompt, "clean_prompt": clean})
    return pairs


def grids_of(response: PatchSweepResponse) -> tuple[PairGrid, ...]:
    """Return the grids of each pair."""
    assert response.pair_grids is not None
    return response.pair_grids


def near(row: Any) -> Any:
    """Return what compares equal within the error of float32."""
    return pytest.approx(row, abs=1e-4, rel=1e-5)


@settings(max_examples=12)
@given(pairs=several_pairs(), metric=st.sampled_from(["logprob", "logit_diff", "kl"]))
def test_a_sweep_over_pairs_is_the_mean_of_the_sweeps_of_each(
    pairs: list[dict[str, Any]], metric: str
) -> None:
    """Of every hook and metric, and the baselines; each pair has what it has alone."""
    fields: dict[str, Any] = {"metrics": [metric, "logprob"], "hooks": ["resid_pre", "mlp_out"]}
    alone = [swept(service_of(), **pair, **fields) for pair in pairs]
    together = swept(service_of(), **pairs_of(*pairs, **fields))

    assert together.metric_grids is not None
    for index, grid in enumerate(together.metric_grids):
        own = [one.metric_grids[index] for one in alone if one.metric_grids is not None]
        for row, *rows in zip(grid.grid, *(each.grid for each in own), strict=True):
            means = [sum(values) / len(values) for values in zip(*rows, strict=True)]
            assert list(row) == near(means)
        assert grid.corrupt == near(sum(each.corrupt or 0.0 for each in own) / len(own))
    for pair, one in zip(grids_of(together), alone, strict=True):
        check_alone(pair, one)
    assert together.grid == together.metric_grids[0].grid


def check_alone(pair: PairGrid, alone: PatchSweepResponse) -> None:
    """Check one of several pairs against a sweep of its own."""
    assert (pair.clean, pair.corrupt) == (near(alone.clean), near(alone.corrupt))
    assert (pair.column_positions, pair.alignment) == (alone.column_positions, alone.alignment)
    assert pair.metric_grids is not None
    assert alone.metric_grids is not None
    for mine, theirs in zip(pair.metric_grids, alone.metric_grids, strict=True):
        assert (mine.hook, mine.metric) == (theirs.hook, theirs.metric)
        for row, expected in zip(mine.grid, theirs.grid, strict=True):
            assert list(row) == near(list(expected))


@settings(max_examples=8)
@given(pairs=several_pairs(), grouped=st.booleans())
def test_the_work_of_all_pairs_is_counted(pairs: list[dict[str, Any]], *, grouped: bool) -> None:
    """What is computed, what is free, what is equal, and the baselines: each adds up."""
    # A preview is made of all pairs, or of none.
    fields: dict[str, Any] = {"hooks": ["resid_pre", "mlp_out", "resid_post"], "order": "position"}
    if grouped:
        fields["groups"] = {"last": [-1], "ends": [0, -1], "again": [-1]}
    alone = [swept(service_of(), **pair, **fields) for pair in pairs]
    together = swept(service_of(), **pairs_of(*pairs, **fields))

    for name in COUNTERS:
        assert getattr(together, name) == sum(getattr(one, name) for one in alone)


def test_one_pair_among_pairs_is_that_pair() -> None:
    """Only `pair_grids`, and the pair that cells name, tell them apart."""
    single, cells = swept_with_cells(service_of(), **FIRST)
    among, cells_among = swept_with_cells(service_of(), **pairs_of(FIRST))

    plain, paired = (msgspec.to_builtins(one) for one in (single, among))
    for answer in (plain, paired):
        for name in ("elapsed_s", "captured_source_run", "pair_grids"):
            del answer[name]
    assert plain == paired
    (pair,) = grids_of(among)
    assert (pair.pair, pair.hook_grids[0].grid) == (0, single.grid)
    assert {cell.pair for cell in cells_among} == {0}
    assert {cell.pair for cell in cells} == {UNSET}
    assert [(c.layer, c.position, c.value) for c in cells] == [
        (c.layer, c.position, c.value) for c in cells_among
    ]


def test_a_column_is_the_first_pairs_position() -> None:
    """Wherever it is in the others; cells of all pairs call it so."""
    other = {"prompt": [3, 4, *CORRUPT], "clean_prompt": [3, 4, *CLEAN], "positions": [4, 8]}
    response, cells = swept_with_cells(
        service_of(), **pairs_of({**FIRST, "positions": [2, 6]}, other)
    )

    assert response.positions == (2, 6)
    assert response.columns is None
    assert [pair.column_positions for pair in grids_of(response)] == [
        ((2,), (6,)),
        ((4,), (8,)),
    ]
    assert response.column_positions == ((2,), (6,))
    assert {(cell.pair, cell.position) for cell in cells} == {(0, 2), (0, 6), (1, 2), (1, 6)}
    assert len(cells) == response.cells_total == 2 * 2 * LAYERS


def test_prompts_of_any_length_have_groups_in_common() -> None:
    """By their names, in whatever order a pair has them; equal ones are computed once."""
    response = swept(
        service_of(),
        **pairs_of(
            {"prompt": "w5 w6", "clean_prompt": "w7 w6", "groups": {"word": [1], "last": [-1]}},
            {
                "prompt": "w8 w9 w4 w5",
                "clean_prompt": "w8 w9 w4 w7",
                "groups": {"last": [-1], "word": [{"span": "w4 w5"}]},
            },
            {"prompt": "w5", "clean_prompt": "w7", "groups": {"word": [1], "last": [-1]}},
        ),
    )

    assert response.columns == ("word", "last")
    assert [pair.column_positions for pair in grids_of(response)] == [
        ((1,), (2,)),
        ((3, 4), (4,)),
        ((1,), (1,)),
    ]
    assert [pair.tokens for pair in grids_of(response)][2] == ("<bos>", "w5")
    third = grids_of(response)[2].hook_grids[0].grid
    assert all(word == last for word, last in third)
    added = response.cells_free + response.cells_deduplicated + response.cells_computed
    assert added == response.cells_total == 3 * 2 * LAYERS


def test_what_stands_beside_the_pairs_holds_for_those_that_have_none() -> None:
    """Answer, foil and groups; a pair's own come first."""
    own = {"answer_token_id": FOIL, "foil_token_id": ANSWER, "groups": {"all": [1, 2]}}
    response = swept(
        service_of(),
        **pairs_of(FIRST, {**FIRST, **own}, groups={"all": [2, 5]}, metric="logit_diff"),
    )

    shared, other = grids_of(response)
    assert shared.corrupt is not None
    assert other.corrupt == near(-shared.corrupt)
    assert (shared.column_positions, other.column_positions) == (((2, 5),), ((1, 2),))
    assert response.corrupt == near(0.0)


def test_a_column_that_one_pair_lacks_is_none_of_all() -> None:
    """A mean over fewer pairs would not compare with the others; it is told with its pair."""
    inserted = [*CORRUPT[:3], 77, *CORRUPT[3:-1]]
    response = swept(
        service_of(), **pairs_of(FIRST, {"prompt": inserted, "clean_prompt": list(CORRUPT[:-1])})
    )

    assert response.positions == (0, 1, 2, 4, 5, 6)
    assert [pair.column_positions for pair in grids_of(response)][1] == tuple(
        (position,) for position in (0, 1, 2, 4, 5, 6)
    )
    ((position, pair),) = [(one.position, one.pair) for one in response.skipped]
    assert (position, pair) == (3, 1)
    result = results_by_hook(response)["resid_post"]
    assert (result.of_pair(0).skipped, result.of_pair(1).skipped) == ((), response.skipped)


def test_each_pair_has_its_own_noise_floor() -> None:
    """The largest of its position groups; the mean's is the largest of all."""
    response = swept(service_of(), **pairs_of(FIRST, SECOND, metrics=["logprob", "kl"]))

    for pair in grids_of(response):
        own = [floor for floor in response.noise_floors if floor.pair == pair.pair]
        assert pair.metric_grids is not None
        for grid in pair.metric_grids:
            assert grid.noise_floor == max(floor.values[grid.metric] for floor in own)
        assert pair.noise_floor == pair.metric_grids[0].noise_floor
    assert response.noise_floor == max(pair.noise_floor or 0.0 for pair in grids_of(response))


def test_a_mean_is_null_where_one_pair_has_none() -> None:
    """And below the noise where all pairs are."""
    undefined = {"prompt": list(CORRUPT), "clean_prompt": list(CORRUPT)}
    response = swept(service_of(), **pairs_of(FIRST, undefined, metrics=["recovered", "logprob"]))

    defined, other = grids_of(response)
    assert {value for row in response.grid for value in row} == {None}
    assert response.argmax is None
    assert None not in {value for row in defined.hook_grids[0].grid for value in row}
    assert {value for row in other.hook_grids[0].grid for value in row} == {None}
    assert any("pair 1" in warning for warning in response.warnings)
    assert response.metric_grids is not None
    logprob = response.metric_grids[1]
    assert None not in {value for row in logprob.grid for value in row}
    quiet = [
        grid.metric_grids[1].below_noise
        for grid in grids_of(response)
        if grid.metric_grids is not None
    ]
    assert quiet[0] != quiet[1] == tuple((True,) * len(CORRUPT) for _ in range(LAYERS))
    assert logprob.below_noise == quiet[0]


def test_each_pair_has_its_own_source_run() -> None:
    """A run that existed stays, one that is captured goes; the leases are of all pairs."""
    service = service_of()
    put(service, "a", CLEAN)
    before = footprint(service.store)
    pairs = pairs_of({"prompt": list(CORRUPT), "source_run": "a"}, {**SECOND, "source_run": "b"})
    with service.sweep(request_of(**pairs)) as running:
        assert [run.leases for run in service.runs()] == [1, 1]
        assert [pair.captured_source_run for pair in running.start.pairs or ()] == [None, "b"]
        assert (running.start.auto_captured, running.start.captured_source_run) == (True, "b")
        list(running.batches())
        response = running.summary()
        assert footprint(service.store) == before

    assert [pair.auto_captured for pair in grids_of(response)] == [False, True]
    expected = swept(service_of(), **SECOND)
    assert grids_of(response)[1].hook_grids[0].grid[0] == near(expected.grid[0])


def test_source_runs_of_all_pairs_are_kept_if_asked_for() -> None:
    """Each under the name that the answer tells, and pairs may share one."""
    service = service_of()
    shared = {**FIRST, "source_run": "shared"}
    response = swept(service, **pairs_of(shared, SECOND, shared, keep_source=True))

    names = [pair.captured_source_run for pair in grids_of(response)]
    assert names[0] == response.captured_source_run == "shared"
    assert names[2] is None
    assert {run.run_id for run in service.runs()} == {"shared", names[1]}
    assert footprint(service.store)[1] == 0
    first, _, third = grids_of(response)
    for mine, same in zip(first.hook_grids[0].grid, third.hook_grids[0].grid, strict=True):
        assert list(mine) == near(list(same))


def test_other_sources_are_swept_over_pairs() -> None:
    """Zero, and the mean of each pair's own run."""
    prompts = [{"prompt": pair["prompt"]} for pair in (FIRST, SECOND)]
    zero = swept(service_of(), **pairs_of(*prompts, source="zero"))
    alone = [
        swept(service_of(), **one, clean_prompt=None, source="zero", foil_token_id=FOIL)
        for one in prompts
    ]
    assert zero.clean is None
    for row, *rows in zip(zero.grid, *(one.grid for one in alone), strict=True):
        assert list(row) == near([sum(values) / 2 for values in zip(*rows, strict=True)])

    mean = swept(service_of(), **pairs_of(FIRST, SECOND, source="mean"))
    for pair, fields in zip(grids_of(mean), (FIRST, SECOND), strict=True):
        own = swept(service_of(), **fields, source="mean")
        assert list(pair.hook_grids[0].grid[1]) == near(list(own.grid[1]))


def test_a_latent_is_swept_over_pairs() -> None:
    """Of one SAE, put in from each pair's own run."""
    service = service_of(saes={"mine": Halves()})
    fields = {"source": "latent", "latent": {"sae": "mine", "index": 3}}
    response = swept(service, **pairs_of(FIRST, SECOND, **fields))

    for pair, own in zip(grids_of(response), (FIRST, SECOND), strict=True):
        alone = swept(service, **own, **fields)
        for mine, theirs in zip(pair.hook_grids[0].grid, alone.grid, strict=True):
            assert list(mine) == near(list(theirs))
    assert footprint(service.store) == (0, 0, 0, 0)


def test_warnings_name_their_pair() -> None:
    """Of several; of one there is none to name."""
    moved = {"prompt": [7, 8, 9, 5], "clean_prompt": [6, 7, 8, 9]}
    alone = swept(service_of(), **moved)
    response = swept(
        service_of(), **pairs_of({"prompt": [1, 2, 3, 4], "clean_prompt": [4] * 4}, moved)
    )

    (warning,) = alone.warnings
    assert response.warnings == (f"Pair 1: {warning}",)


def test_pairs_of_unequal_prompts_are_aligned_each() -> None:
    """By their tokens, or as each says."""
    response = swept(
        service_of(),
        **pairs_of(
            {"prompt": list(CORRUPT), "clean_prompt": list(LONGER)},
            {**FIRST, "alignment": [{"position": 0, "source_position": 6}]},
        ),
    )

    by_tokens, as_given = (pair.alignment for pair in grids_of(response))
    assert by_tokens is not None
    assert as_given is not None
    assert by_tokens.n_clean == len(LONGER)
    assert response.positions == (0,)
    assert as_given.shifts == (6,)
    assert response.alignment == by_tokens

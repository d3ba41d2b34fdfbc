from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.patching.decoders import ANSWER, CLEAN, CORRUPT, FOIL, LAYERS
from adapters.patching.served import (
    measured,
    patchable,
    service_of,
    swept,
    swept_with_cells,
)
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.sources import RunSource
from aegir_adapters.patching.sweep import SweepSpec, sweep

N = len(CORRUPT)


@settings(max_examples=12)
@given(positions=st.lists(st.integers(0, N - 1), min_size=1, unique=True), data=st.data())
def test_a_group_of_one_position_is_that_position(positions: list[int], data: Any) -> None:
    """Counted from the start or from the end; only names tell the grids apart."""
    groups = {
        f"g{position}": [data.draw(st.sampled_from([position, position - N]))]
        for position in positions
    }
    alone = swept(service_of(), positions=positions)
    grouped = swept(service_of(), groups=groups)

    assert grouped.columns == tuple(groups)
    assert grouped.positions == tuple(range(len(positions)))
    assert grouped.column_positions == alone.column_positions
    assert alone.positions == tuple(positions)
    assert alone.column_positions == tuple((position,) for position in positions)
    assert grouped.grid == alone.grid
    assert grouped.below_noise == alone.below_noise
    assert measured(grouped)[1:3] == measured(alone)[1:3]
    for name in ("cells_total", "cells_free", "cells_computed", "token_layers"):
        assert getattr(grouped, name) == getattr(alone, name)


def test_the_positions_of_a_group_are_patched_together() -> None:
    """As the engine patches several at once; each group is one column."""
    service = service_of()
    response, cells = swept_with_cells(
        service, groups={"changed": [2, 5], "end": [-1, -2]}, metric="logit_diff"
    )

    spec = SweepSpec(
        prompt_ids=CORRUPT,
        source=RunSource(run=capture(service.model, CLEAN)),
        hooks=("resid_post",),
        layers=tuple(range(LAYERS)),
        positions=((2, 5), (5, 6)),
        answer_ids=(ANSWER,),
        foil_ids=(FOIL,),
        metrics=("logit_diff",),
    )
    expected = {
        (cell.layer, cell.position): cell.values[0]
        for item in sweep(service.model, spec)
        for cell in getattr(item, "cells", ())
    }
    assert response.columns == ("changed", "end")
    assert response.column_positions == ((2, 5), (5, 6))
    for layer, row in zip(response.layers, response.grid, strict=True):
        for position, value in zip(response.column_positions, row, strict=True):
            assert value == pytest.approx(expected[layer, position], abs=1e-5)
    # Both differing tokens brought back: everything is, before the first layer mixes them.
    clean = swept(service, groups={"changed": [2, 5]}, hook="resid_pre", layers=[0])
    assert clean.grid[0][0] == pytest.approx(clean.clean, abs=1e-5)
    assert {(cell.layer, cell.position) for cell in cells} == {
        (layer, column) for layer in range(LAYERS) for column in (0, 1)
    }


def test_a_group_is_a_span_too() -> None:
    """All of its tokens, each once, in ascending order."""
    response = swept(
        service_of(),
        prompt="w5 w6 w7 w6",
        clean_prompt="w8 w9 w7 w6",
        groups={"both": [{"span": "w6", "occurrence": 1}, -1, {"span": "w5 w6"}], "bos": [0]},
    )

    assert response.columns == ("both", "bos")
    assert response.column_positions == ((1, 2, 4), (0,))
    assert response.tokens == ("<bos>", "w5", "w6", "w7", "w6")


def test_groups_that_are_equal_are_computed_once() -> None:
    """They are columns of their own with the same values, and count as deduplicated."""
    one = swept(service_of(), groups={"a": [2, 5]})
    response, cells = swept_with_cells(service_of(), groups={"a": [2, 5], "b": [-2, -5]})

    assert response.columns == ("a", "b")
    assert [row[0] for row in response.grid] == [row[1] for row in response.grid]
    assert [row[0] for row in response.grid] == [row[0] for row in one.grid]
    assert len(cells) == response.cells_total == 2 * one.cells_total == 2 * LAYERS
    assert response.cells_computed == one.cells_computed
    assert response.token_layers == one.token_layers
    assert response.token_layers_naive == 2 * one.token_layers_naive
    assert sum(cell.free for cell in cells) == response.cells_free == one.cells_free
    added = response.cells_free + response.cells_deduplicated + response.cells_computed
    assert added == response.cells_total


def test_what_is_not_aligned_is_left_out_of_its_group() -> None:
    """Told with its group, and with a warning; a group of which nothing is left is no column."""
    corrupt = [*CORRUPT[:3], 77, 78, *CORRUPT[3:]]
    response = swept(
        service_of(),
        prompt=corrupt,
        clean_prompt=list(CORRUPT),
        groups={"inserted": [3, 4], "around": [2, 3, 5], "last": [-1]},
    )

    assert response.columns == ("around", "last")
    assert response.positions == (0, 1)
    assert response.column_positions == ((2, 5), (8,))
    assert [(one.position, one.column) for one in response.skipped] == [
        (3, "inserted"),
        (3, "around"),
        (4, "inserted"),
    ]
    (warning,) = response.warnings
    assert "'around' is patched at 2 of its 3 positions" in warning
    assert response.alignment is not None
    assert response.alignment.shifts == (0, -2, -2)


def test_a_cell_of_a_group_that_fails_is_told_with_its_name() -> None:
    """Its position is the number of the column; the others have their values."""
    # Whose norm takes a mean, which such large numbers leave the range of float32 for.
    service = service_of(model=patchable("gpt2"))
    rows = [{"hook": "resid_post", "layer": 2, "values": [3e38] * service.model.d_model}]

    response = swept(
        service,
        source="vector",
        clean_prompt=None,
        vectors=rows,
        layers=[2],
        groups={"first": [0], "ends": [0, -1]},
    )

    assert response.grid == ((response.corrupt, None),)
    (failed,) = response.skipped
    assert (failed.position, failed.column, failed.hook, failed.layer) == (
        1,
        "ends",
        "resid_post",
        2,
    )

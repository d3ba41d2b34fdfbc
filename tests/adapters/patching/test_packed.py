from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.patching.packed import Place, Whole
from aegir_adapters.patching.trace import Attended

LANES, HEADS, LENGTH, WIDTH = 2, 3, 5, 4

places = st.builds(Place, st.integers(0, LANES - 1), st.integers(0, LENGTH - 1))


@given(st.lists(st.tuples(places, st.integers(1, 3)), min_size=1, max_size=8), st.booleans())
def test_whatever_came_before_the_rows_before_a_patch_are_the_unpatched_ones(
    order: list[tuple[Place, int]],
    sort: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    """One buffer serves all places, in order or not, and no patch sees another's rows."""
    attended = Attended(
        torch.randn(LANES, HEADS, LENGTH, WIDTH), torch.randn(LANES, HEADS, LENGTH, 2), None
    )
    whole = Whole(attended, most=3)
    for place, count in sorted(order) if sort else order:
        key, value = (
            torch.randn(count, HEADS, LENGTH - place.start, given.shape[-1])
            for given in (attended.key, attended.value)
        )

        found = whole.of(place, key, value)

        for own, unpatched, one in zip((key, value), attended[:2], found, strict=True):
            before = unpatched[place.lane, :, : place.start].expand(count, -1, -1, -1)
            assert torch.equal(one, torch.cat([before, own], 2))

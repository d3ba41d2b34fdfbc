from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.sae.selection import largest


@given(
    rows=st.integers(0, 5), width=st.integers(1, 300), seed=st.integers(0, 2**32), data=st.data()
)
def test_largest_agrees_with_topk(rows: int, width: int, seed: int, data: st.DataObject) -> None:
    """Values are those of torch.topk, in its order, and stand in the columns that are named."""
    k = data.draw(st.integers(1, width))
    draws = torch.Generator().manual_seed(seed)
    # Few distinct values, so that there are ties within and across groups.
    scores = torch.randint(-20, 20, (rows, width), generator=draws).float()
    values, columns = largest(scores, k=k)
    assert torch.equal(values, scores.topk(k).values)
    assert torch.equal(scores.gather(1, columns), values)
    assert all(len(set(row)) == k for row in columns.tolist())


@pytest.mark.parametrize("width", [7, 512])
def test_nan_comes_first(width: int) -> None:
    """A score that is not a number is not lost."""
    scores = torch.arange(width).float().unsqueeze(0)
    scores[0, 2] = torch.nan
    values, columns = largest(scores, k=2)
    assert columns.tolist() == [[2, width - 1]]
    assert values.isnan().tolist() == [[True, False]]

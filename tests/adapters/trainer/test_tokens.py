from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.trainer.tokens import completion_tokens, labelled_tokens
from aegir_stream.errors import ShapeError


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    """Draw masks of up to four sequences of up to six tokens."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    row = st.lists(st.booleans(), min_size=columns, max_size=columns)
    return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)))


@given(mask=masks(), offset=st.integers(0, 3))
def test_the_tokens_of_a_mask_are_numbered_within_their_sequence(
    mask: torch.Tensor, offset: int
) -> None:
    """Each marked token appears once, in order, with its own residual and completion."""
    rows, columns = mask.shape
    ids = torch.arange(rows) + 10
    tokens = completion_tokens(mask, offset=offset, completion=ids)
    hidden = torch.randn(rows, offset + columns, 2)
    assert tokens.count == int(mask.sum())
    assert torch.equal(tokens.select(hidden), hidden[:, offset:][mask])
    assert tokens.completion is not None
    for row in range(rows):
        mine = tokens.rows == row
        assert tokens.token_index[mine].tolist() == list(range(int(mask[row].sum())))
        assert set(tokens.completion[mine].tolist()) <= {row + 10}


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 4, 3), (4, 3), (8, 3)])
def test_a_forward_of_another_shape_is_refused_before_it_is_indexed(shape: tuple[int, ...]) -> None:
    """A chunk of the batch, a packed or a sharded one is named instead of read."""
    tokens = completion_tokens(torch.ones(2, 4), offset=0, completion=None)
    with pytest.raises(ShapeError, match=r"\(2, 4, 'd_model'\), got"):
        tokens.select(torch.zeros(shape))


def test_labels_choose_the_tokens_then_the_mask_then_nothing() -> None:
    """A token belongs to the label at its own place; -100 and padding are left out."""
    ids = torch.tensor([[5, 6, 7, 0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    labels = torch.tensor([[-100, 6, 7, -100]])

    def columns(**inputs: object) -> list[int]:
        tokens = labelled_tokens(inputs)
        assert tokens is not None
        assert tokens.completion is None
        return [int(column) for column in tokens.columns]

    assert columns(input_ids=ids, attention_mask=mask, labels=labels) == [1, 2]
    assert columns(inputs_embeds=None, labels=labels) == [1, 2]
    assert columns(input_ids=ids, attention_mask=mask) == [0, 1, 2]
    assert columns(input_ids=ids) == [0, 1, 2, 3]
    assert labelled_tokens({"pixel_values": ids}) is None

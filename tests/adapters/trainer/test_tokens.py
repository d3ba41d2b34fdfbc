from __future__ import annotations

import itertools

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


def test_tokens_are_chosen_where_there_are_no_token_ids() -> None:
    """Embeddings have a mask as ids have; classes are no tokens, and a mask alone says nothing."""
    mask = torch.tensor([[1, 1, 0]])
    tokens = labelled_tokens({"inputs_embeds": torch.zeros(1, 3, 2), "attention_mask": mask})
    assert tokens is not None
    assert tokens.columns.tolist() == [0, 1]
    causal = torch.zeros(1, 1, 3, 3)
    tokens = labelled_tokens({"inputs_embeds": torch.zeros(1, 3, 2), "attention_mask": causal})
    assert tokens is not None
    assert tokens.columns.tolist() == [0, 1, 2]
    classes = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0]])
    tokens = labelled_tokens({"input_ids": mask, "attention_mask": mask, "labels": classes})
    assert tokens is not None
    assert tokens.columns.tolist() == [0, 1]
    assert labelled_tokens({"attention_mask": mask}) is None


@given(data=st.data(), mask=masks())
def test_sequences_that_share_a_row_are_numbered_each_by_itself(
    data: st.DataObject, mask: torch.Tensor
) -> None:
    """Where positions begin again at 0, so do the token indices."""
    rows, columns = mask.shape
    begins = data.draw(st.lists(st.integers(0, columns - 1), max_size=3).map(lambda b: {0, *b}))
    positions = torch.tensor([max(b for b in begins if b <= i) for i in range(columns)])
    positions = (torch.arange(columns) - positions)[None]
    labels = torch.zeros_like(mask, dtype=torch.long).masked_fill(~mask, -100)

    tokens = labelled_tokens({"labels": labels, "position_ids": positions})
    assert tokens is not None
    bounds = [*sorted(begins), columns]
    pieces = list(itertools.pairwise(bounds))
    assert tokens.token_index.tolist() == [
        i for row in range(rows) for a, b in pieces for i in range(int(mask[row, a:b].sum()))
    ]
    assert torch.equal(mask.nonzero(), torch.stack([tokens.rows, tokens.columns], dim=1))

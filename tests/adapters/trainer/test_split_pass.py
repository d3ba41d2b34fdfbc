from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.trainer.capture import LatentRows
from aegir_adapters.trainer.split_pass import ChunkedRows, GeneratedColumns, SplitPass
from aegir_stream.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from aegir_adapters.trainer.capture import CapturedPass
    from aegir_adapters.trainer.split_pass import Forwards
    from aegir_adapters.trainer.tokens import Tokens

LAYERS = (0, 2)
TOKEN_BYTES = 40


def all_of(tokens: Tokens, **_: Any) -> Tokens:
    """Stand in for sampling: leave nothing out."""
    return tokens


def reading(forwards: Forwards, *, limit_bytes: int = 1 << 30) -> SplitPass:
    """Return a pass that reads these forwards."""
    return SplitPass(
        forwards, step=3, thin=all_of, token_bytes=TOKEN_BYTES, limit_bytes=limit_bytes
    )


def run(split: SplitPass, hidden: Tensor, *, layers: tuple[int, ...] = LAYERS) -> None:
    """Stand in for a forward: what is read of a token is the value that stands for it."""
    for layer in layers:
        if not split.awaits(layer):
            continue
        part = split.part(layer, hidden.shape)
        if part is not None:
            x = part.tokens.select(hidden)
            part.latents[layer] = LatentRows(
                indices=x.int(), activations=x, reconstruction_loss=x[:, 0]
            )


def values(captured: CapturedPass) -> dict[tuple[int, int], float]:
    """Return what was read by completion and position; each is read once, alike at all layers."""
    assert captured.step == 3
    assert captured.tokens.completion is not None
    keys = zip(
        captured.tokens.completion.tolist(), captured.tokens.token_index.tolist(), strict=True
    )
    read = [latents.activations[:, 0].tolist() for latents in captured.latents.values()]
    assert all(each == read[0] for each in read)
    by_key = dict(zip(keys, read[0], strict=True))
    assert len(by_key) == captured.tokens.count
    return by_key


@given(st.data())
def test_rows_in_chunks_are_the_rows_of_one_forward(data: st.DataObject) -> None:
    """However a batch is cut into chunks, each marked token is read from its own row and column."""
    rows, width, offset = (data.draw(st.integers(low, 5)) for low in (1, 1, 0))
    bits = data.draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    mask = torch.tensor(bits).view(rows, width)
    hidden = torch.arange(rows * (offset + width)).view(rows, -1, 1).float()
    ids = torch.arange(rows) + 8
    split = reading(ChunkedRows("logprob", mask, offset=offset, completion=ids))
    seen = 0
    while seen < rows:
        size = data.draw(st.integers(1, rows - seen))
        run(split, hidden[seen : seen + size])
        seen += size
    expected = {
        (8 + row, int(mask[row, :place].sum())): hidden[row, offset + place].item()
        for row, place in mask.nonzero().tolist()
    }
    captured = split.captured()
    assert [c.pass_ for c in captured] == ["logprob"] * bool(expected)
    assert (values(captured[0]) if captured else {}) == expected


@given(st.data(), st.booleans())
def test_generated_tokens_are_read_once_with_or_without_a_cache(
    data: st.DataObject,
    cached: bool,  # noqa: FBT001 - hypothesis passes it by place
) -> None:
    """Prompts are read without their padding, at once or in chunks, then column after column."""
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    padding, new = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 4))
    width = max(lengths) + padding
    hidden = torch.arange(len(lengths) * (width + new)).view(len(lengths), -1, 1).float()
    asked = data.draw(st.sets(st.sampled_from(["prefill", "decode"])))
    ids = torch.arange(len(lengths)) + 4
    split = reading(GeneratedColumns(lengths, width=width, completion=ids, asked=asked))  # type: ignore[arg-type]
    seen = 0
    while seen < width:
        size = data.draw(st.integers(1, width - seen)) if cached else width
        run(split, hidden[:, seen : seen + size])
        seen += size
    for column in range(width, width + new):
        run(split, hidden[:, column : column + 1] if cached else hidden[:, : column + 1])
    prompts = {
        (4 + row, index): hidden[row, width - length + index].item()
        for row, length in enumerate(lengths)
        for index in range(length)
    }
    fed = {
        (4 + row, index): hidden[row, width + index].item()
        for row in range(len(lengths))
        for index in range(new)
    }
    read = {c.pass_: values(c) for c in split.captured()}
    expected = {"prefill": prompts, "decode": fed}
    assert read == {name: tokens for name, tokens in expected.items() if name in asked and tokens}


def test_a_layer_that_missed_a_forward_is_not_mistaken_for_another() -> None:
    """Layers that did not read the same tokens are handed over apart from each other."""
    ids = torch.arange(2)
    split = reading(GeneratedColumns([1, 1], width=1, completion=ids, asked=["decode"]))
    hidden = torch.arange(8).view(2, 4, 1).float()
    run(split, hidden[:, :1])
    run(split, hidden[:, 1:2])
    split.part(2, torch.Size([2, 1, 1]))  # an SAE that raises leaves nothing behind
    run(split, hidden[:, 2:3], layers=(0,))
    run(split, hidden[:, 3:])
    first, second = sorted(split.captured(), key=lambda captured: -len(captured.latents))
    assert values(first) == {(0, 0): 1, (1, 0): 5, (0, 2): 3, (1, 2): 7}
    assert sorted(second.latents) == [0]
    assert values(second) == {(0, 1): 2, (1, 1): 6}


def test_what_is_held_is_bounded() -> None:
    """From the forward on that would pass the bound nothing is read, and what is lost counted."""
    ids = torch.arange(2)
    columns = GeneratedColumns([1, 1], width=1, completion=ids, asked=["decode"])
    split = reading(columns, limit_bytes=5 * (TOKEN_BYTES + 32))
    hidden = torch.arange(10).view(2, 5, 1).float()
    for column in range(5):
        run(split, hidden[:, column : column + 1])
    assert split.held_bytes == 4 * (TOKEN_BYTES + 32)
    assert split.left_out == {"decode": 4}
    assert {index for _, index in values(split.captured()[0])} == {0, 1}


@pytest.mark.parametrize(
    ("forwards", "shape"),
    [
        (ChunkedRows("logprob", torch.ones(2, 2).bool(), offset=0, completion=IDS), (3, 2, 1))
        for IDS in [torch.arange(2)]
    ]
    + [
        (GeneratedColumns([2, 2], width=2, completion=IDS, asked=["decode"]), shape)
        for IDS in [torch.arange(2)]
        for shape in [(3, 2, 1), (2, 3, 1)]
    ],
)
def test_forwards_that_were_not_expected_are_read_no_further(
    forwards: Forwards, shape: tuple[int, ...]
) -> None:
    """Speculative decoding or another order of rows ends the pass, instead of mixing tokens up."""
    split = reading(forwards)
    assert split.awaits(0)
    with pytest.raises(ShapeError, match="in the next forward"):
        split.part(0, torch.Size(shape))
    assert not split.awaits(0)
    assert not split.awaits(2)
    assert split.captured() == []


def test_two_new_columns_at_once_are_not_one() -> None:
    """What a draft model proposed is no token that was kept."""
    ids = torch.arange(2)
    split = reading(GeneratedColumns([2, 2], width=2, completion=ids, asked=["decode"]))
    run(split, torch.zeros(2, 2, 1))
    with pytest.raises(ShapeError, match="Expected 1 or 3 columns"):
        run(split, torch.zeros(2, 2, 1))

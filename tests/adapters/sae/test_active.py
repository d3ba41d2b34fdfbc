from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.sae.active import active_latents
from aegir_adapters.sae.latents import TopLatents, join


@st.composite
def codes(draw: st.DrawFn) -> torch.Tensor:
    """Draw codes of up to six tokens and 30 latents, most of them zero."""
    n, m = draw(st.integers(0, 6)), draw(st.integers(1, 30))
    draws = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    code = torch.randn(n, m, generator=draws)
    return code * (torch.rand(n, m, generator=draws) < draw(st.sampled_from([0.0, 0.2, 1.0])))


@given(code=codes(), data=st.data())
def test_active_latents_say_what_the_whole_code_says(
    code: torch.Tensor, data: st.DataObject
) -> None:
    """Strongest latents, L0, what fired, and the reconstruction are those of the dense code."""
    k = data.draw(st.integers(1, code.shape[1]))
    active = active_latents(code, at_most=code.numel())
    assert active is not None
    positive = code.clamp(min=0)
    values, latents = active.strongest(k)
    assert torch.equal(values, positive.topk(k).values)
    real = values > 0
    assert torch.equal(positive.gather(1, latents)[real], values[real])
    assert active.l0.tolist() == (code > 0).sum(1).tolist()
    assert torch.equal(active.fired(), (code > 0).any(0))
    w_dec = torch.randn(code.shape[1], 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(active.decoded(w_dec), positive @ w_dec)


def test_a_code_with_too_many_active_latents_is_left_to_others() -> None:
    """What is not sparse is not worth it; NaN counts as inactive."""
    code = torch.tensor([[1.0, 2.0, torch.nan], [0.0, -1.0, 3.0]])
    assert active_latents(code, at_most=2) is None
    active = active_latents(code, at_most=3)
    assert active is not None
    assert active.l0.tolist() == [2, 1]


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_chunks_are_joined_in_their_order(sizes: list[int], seed: int) -> None:
    """However tokens are cut, what is said of them stands in their order."""
    n = sum(sizes)
    draws = torch.Generator().manual_seed(seed)
    whole = TopLatents(
        torch.randint(9, (n, 2), generator=draws, dtype=torch.int32),
        torch.randn(n, 2, generator=draws),
        torch.randn(n, generator=draws),
        torch.randint(9, (n,), generator=draws, dtype=torch.int32),
        torch.ones(5, dtype=torch.bool),
    )
    fired = torch.eye(5, dtype=torch.bool)
    columns = [torch.split(part, sizes) for part in whole[:-1]]
    chunks = [
        TopLatents(a, b, c, d, fired[i])
        for i, (a, b, c, d) in enumerate(zip(*columns, strict=True))
    ]
    joined = join(chunks, n=n)
    assert all(torch.equal(a, b) for a, b in zip(joined[:-1], whole[:-1], strict=True))
    assert [part.dtype for part in joined] == [part.dtype for part in whole]
    if n not in sizes:
        assert torch.equal(joined.fired, fired[: len(sizes)].any(0))

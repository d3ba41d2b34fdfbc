from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adapters.patching.decoders import CLEAN, CORRUPT, FAMILIES, decoder
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.sources import RunSource

COLUMNS = torch.tensor([17, 3, 100])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_residuals_are_the_models_own(family: str) -> None:
    """From the final norm to soft caps and scales, all logits or some, as a whole forward has."""
    module = decoder(family)
    model = PatchableModel(module)
    ids = torch.tensor([CLEAN, CORRUPT])

    with model.computing():
        left = model.run_layers(ids).flatten(0, 1)
        every, some = model.logits(left), model.logits(left, columns=COLUMNS)

    with torch.no_grad():
        expected = module(ids, use_cache=False).logits.flatten(0, 1)
    assert torch.allclose(every, expected, atol=1e-5)
    assert some.shape == (len(expected), 3)
    assert torch.allclose(some, expected[:, COLUMNS], atol=1e-5)


def test_logits_take_one_layer() -> None:
    """What lies below the last layer has no part in them, so its matrices are not read."""
    module = decoder("llama")
    model = PatchableModel(module)
    entered = []
    for layer in module.model.layers:
        layer.mlp.register_forward_pre_hook(lambda mlp, _: entered.append(mlp))

    with model.computing():
        model.logits(torch.randn(3, 32))

    assert entered == [module.model.layers[-1].mlp]


def test_layers_have_their_own_forward_again() -> None:
    """One that others have put in a layer's place stays, whether the head works or fails."""
    module = decoder("llama")
    model = PatchableModel(module)
    first = module.model.layers[0]
    vars(first)["forward"] = put = first.forward

    def fail(*_: Any) -> None:
        raise MemoryError("none left")

    handle = module.lm_head.register_forward_pre_hook(fail)
    with model.computing(), pytest.raises(MemoryError):
        model.logits(torch.randn(3, 32))
    handle.remove()
    with model.computing():
        model.logits(torch.randn(3, 32), columns=COLUMNS)

    assert vars(first)["forward"] is put
    assert not any("forward" in vars(layer) for layer in module.model.layers[1:])
    assert not module.lm_head._forward_hooks
    assert not module.lm_head._forward_pre_hooks


class Doubled(nn.Linear):
    """A head that is more than its weights, as adapted and quantised ones are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Return twice the logits."""
        return 2 * super().forward(input)


@pytest.mark.parametrize("kind", ["another class", "hooked"])
def test_a_head_that_is_more_than_a_matrix_makes_all_its_logits(kind: str) -> None:
    """Some columns of its weights would not be what it makes of them."""
    module = decoder("llama")
    if kind == "hooked":
        module.lm_head.register_forward_hook(lambda _, __, out: 2 * out)
    else:
        doubled = Doubled(32, 101, bias=False)
        doubled.weight = module.lm_head.weight
        module.lm_head = doubled
    model = PatchableModel(module)
    ids = torch.tensor([CORRUPT])

    with model.computing():
        some = model.logits(model.run_layers(ids)[0], columns=COLUMNS)

    with torch.no_grad():
        assert torch.allclose(some, module(ids).logits[0][:, COLUMNS], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_logit_difference_alone_is_what_it_is_among_others(family: str) -> None:
    """With all logits or only two of them, every cell has the same value."""
    model = PatchableModel(decoder(family))
    source = RunSource(run=capture(model, CLEAN))
    metrics = ("logit_diff", "recovered_logit_diff")

    alone = Swept(model, spec_of(source, metrics=metrics))
    among = Swept(model, spec_of(source, metrics=(*metrics, "kl")))

    for number in range(2):
        assert alone.values(number) == pytest.approx(among.values(number), abs=1e-5)

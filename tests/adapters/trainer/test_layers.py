from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from aegir_adapters.trainer import SidecarCallback, default_layers_to_hook, observe
from aegir_adapters.trainer.layers import check_layers, check_saes, decoder_layers
from aegir_stream.errors import LayerError, ShapeError

from .tiny import TinySAE, grpo_trainer, model, saes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("num_layers", "n", "expected"),
    [
        (40, 2, [0, 20]),
        (64, 2, [0, 32]),
        (40, 4, [0, 10, 20, 30]),
        (64, 4, [0, 16, 32, 48]),
        (64, 8, [0, 8, 16, 24, 32, 40, 48, 56]),
        (7, 2, [0, 3]),
        (3, 3, [0, 1, 2]),
        (3, 9, [0, 1, 2]),
        (1, 1, [0]),
    ],
)
def test_default_layers_are_evenly_spaced_from_the_first(
    num_layers: int, n: int, expected: list[int]
) -> None:
    """The step is the whole part of num_layers / n; asking for too many gives all."""
    assert default_layers_to_hook(num_layers, n) == expected


@pytest.mark.parametrize(("num_layers", "n"), [(4, 0), (4, -1), (0, 1)])
def test_no_layers_cannot_be_asked_for(num_layers: int, n: int) -> None:
    """Zero layers, or a model without any, is an error that names the number."""
    with pytest.raises(LayerError, match=f"got {min(num_layers, n)}"):
        default_layers_to_hook(num_layers, n)


class _Wrapper(nn.Module):
    """Keeps a module where DDP and FSDP keep it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class _Adapted(nn.Module):
    """Keeps a model where PEFT keeps it."""

    def __init__(self, adapted: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = adapted

    def get_base_model(self) -> nn.Module:
        """Return the adapted model, as `PeftModel` does."""
        return self.base_model.get_submodule("model")


def test_decoder_layers_are_found_inside_wrappers() -> None:
    """DDP, `torch.compile` and PEFT around a model do not hide its layers, in any order."""
    policy = model()
    layers = policy.model.layers
    compiled = torch.compile(policy, backend="eager")
    for wrapped in (policy, _Wrapper(policy), _Adapted(policy), _Wrapper(_Adapted(policy))):
        assert decoder_layers(wrapped) is layers
    assert isinstance(compiled, nn.Module)
    assert decoder_layers(compiled) is layers


def test_decoder_layers_elsewhere_are_found_by_their_number() -> None:
    """The only list as long as the configuration says is taken for the decoder layers."""
    policy = model()
    odd = nn.Module()
    odd.blocks = policy.model.layers
    odd.other = nn.ModuleList([nn.Identity()])
    odd.config = policy.config  # type: ignore[assignment]  # not a module
    assert decoder_layers(odd) is policy.model.layers


def test_a_model_without_decoder_layers_is_named() -> None:
    """The error says which model has none, and where they were looked for."""
    with pytest.raises(LayerError, match=r"`Linear`.*model\.layers"):
        decoder_layers(nn.Linear(2, 2))


@pytest.mark.parametrize(("layers", "message"), [([0, 3], "0..2, got 3"), ([-1], "got -1")])
def test_a_layer_out_of_range_is_named(layers: list[int], message: str) -> None:
    """The error names the layer and the layers there are."""
    with pytest.raises(LayerError, match=message):
        check_layers(layers, 3)


def test_a_layer_named_twice_is_an_error() -> None:
    """Hooking a layer twice would record it twice."""
    with pytest.raises(LayerError, match="once"):
        check_layers([1, 1], 3)


def test_an_sae_of_another_width_is_named() -> None:
    """The error names the layer, the SAE's width and the model's."""
    with pytest.raises(ShapeError, match="d_model 32 at layer 1, got 48"):
        check_saes({1: TinySAE(seed=0, d_model=48)}, model(), top_k=4)


class _Placed(TinySAE):
    """An SAE that says which place of the model it reads."""

    def __init__(self, **place: Any) -> None:
        super().__init__(seed=0)
        self._place = place

    def identity(self) -> dict[str, Any]:
        """Return it with the place."""
        return {**super().identity(), **self._place}


@pytest.mark.parametrize("hook", ["hook_mlp_out", "attn.hook_z", "hook_resid_mid"])
def test_an_sae_of_another_place_is_named(hook: str) -> None:
    """One of an MLP is as wide as the residual stream, and would be fed what it never saw."""
    sae = _Placed(hook_name=f"blocks.1.{hook}")
    with pytest.raises(LayerError, match=f"residual stream at layer 1, got one of `.*{hook}`"):
        check_saes({1: sae}, model(), top_k=4)


def test_a_transcoder_is_refused_on_the_residual_stream() -> None:
    """The error names what it reads: it says nothing of how well it predicts another place."""
    sae = _Placed(hook_name="blocks.1.ln2.hook_normalized")
    sae.is_transcoder = True  # type: ignore[attr-defined]  # as the SAEs that load_sae gives
    with pytest.raises(LayerError, match=r"got a transcoder of `blocks\.1\.ln2"):
        check_saes({1: sae}, model(), top_k=4)


def test_an_sae_of_another_layer_is_named() -> None:
    """The input of block 2 is the output of layer 1, and belongs there."""
    sae = _Placed(hook_name="blocks.2.hook_resid_pre", layer=1)
    check_saes({1: sae}, model(), top_k=4)
    with pytest.raises(LayerError, match=r"layer 2, got one of layer 1 \(`blocks\.2.*Origin\(\)"):
        check_saes({2: sae}, model(), top_k=4)


def test_more_latents_than_there_are_cannot_be_recorded() -> None:
    """The error names the number asked for and the number there is."""
    with pytest.raises(ShapeError, match=r"1\.\.64 at layer 0, got 65"):
        check_saes(saes(), model(), top_k=65)


def test_what_does_not_fit_is_said_before_training() -> None:
    """Preparing a callback raises; inside the training loop it no longer could."""
    with pytest.raises(LayerError, match=r"0\.\.2, got 7"):
        SidecarCallback(sae={7: TinySAE(seed=0)}).prepare(model())


def test_observe_checks_the_layers_at_once(tmp_path: Path) -> None:
    """The line that adds the recording is the line that fails."""
    trainer = grpo_trainer(tmp_path)
    with pytest.raises(LayerError, match="got 7"):
        observe(trainer, sae={7: TinySAE(seed=0)})
    assert not [c for c in trainer.callback_handler.callbacks if isinstance(c, SidecarCallback)]

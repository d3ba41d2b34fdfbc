from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.patching.decoders import ANSWER, CLEAN, CORRUPT, FOIL, LAYERS, decoder
from adapters.patching.sweeping import Swept, spec_of
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.sources import RunSource

_LIBRARY = logging.getLogger("transformers")
_LEVEL = _LIBRARY.level

with warnings.catch_warnings():
    # Nothing that it warns of while it is imported is ours.
    warnings.simplefilter("ignore")
    lens = pytest.importorskip("transformer_lens")
    from transformer_lens import patching
    from transformer_lens.pretrained import weight_conversions
_LIBRARY.setLevel(_LEVEL)  # which the import has raised, for everybody

HEADS, WIDTH = 4, 32

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "eps": 1e-5,
        "original_architecture": "GPT2LMHeadModel",
    },
    "llama": {
        "act_fn": "silu",
        "normalization_type": "RMS",
        "eps": 1e-6,
        "positional_embedding_type": "rotary",
        "rotary_dim": WIDTH // HEADS,
        "rotary_adjacent_pairs": False,
        "rotary_base": 10000,
        "gated_mlp": True,
        "final_rms": True,
        "n_key_value_heads": 2,
        "original_architecture": "LlamaForCausalLM",
    },
}


def in_lens(family: str, module: Any) -> Any:
    """Return the same model in TransformerLens's own implementation."""
    config = lens.HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=64,
        n_heads=HEADS,
        d_head=WIDTH // HEADS,
        d_mlp=4 * WIDTH if family == "gpt2" else 2 * WIDTH,
        d_vocab=module.config.vocab_size,
        device="cpu",
        **CONFIGS[family],
    )
    model = lens.HookedTransformer(config)
    converted = getattr(weight_conversions, f"convert_{family}_weights")(module, config)
    model.load_and_process_state_dict(
        converted,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


def difference(logits: Tensor) -> Tensor:
    """Return what TransformerLens is to measure."""
    last = logits[0, -1]
    return last[ANSWER] - last[FOIL]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_grids_equal_those_of_transformer_lens(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hooks mean what they mean there, and every cell has the value it has there."""
    module = decoder(family)
    theirs = in_lens(family, module)
    clean, corrupt = torch.tensor([CLEAN]), torch.tensor([CORRUPT])
    with torch.no_grad():
        assert torch.allclose(theirs(corrupt), module(corrupt).logits, atol=1e-4)
        _, cache = theirs.run_with_cache(clean)
        grids = {
            "resid_pre": patching.get_act_patch_resid_pre(theirs, corrupt, cache, difference),
            "resid_mid": patching.get_act_patch_resid_mid(theirs, corrupt, cache, difference),
            "attn_out": patching.get_act_patch_attn_out(theirs, corrupt, cache, difference),
            "mlp_out": patching.get_act_patch_mlp_out(theirs, corrupt, cache, difference),
            "resid_post": patching.generic_activation_patch(
                theirs,
                corrupt,
                cache,
                difference,
                patch_setter=patching.layer_pos_patch_setter,
                activation_name="resid_post",
                index_axis_names=("layer", "pos"),
            ),
        }
        by_head = patching.get_act_patch_attn_head_out_by_pos(theirs, corrupt, cache, difference)
    for head in range(HEADS):
        grids[f"z.{head}"] = by_head[:, :, head]

    model = PatchableModel(module)
    swept = Swept(model, spec_of(RunSource(run=capture(model, CLEAN)), hooks=tuple(grids)))

    for (_, hook, layer, position), value in swept.values().items():
        assert value == pytest.approx(float(grids[hook][layer, position]), abs=1e-4)
    capsys.readouterr()

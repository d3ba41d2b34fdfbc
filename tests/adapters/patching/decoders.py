"""Decoders of many families, a few layers deep, with weights large enough to make a difference."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

VOCABULARY = 101
LAYERS = 3

CLEAN = (5, 9, 7, 30, 22, 41, 60)
CORRUPT = (5, 9, 8, 30, 22, 40, 60)
"""Two prompts that first differ at position 2, and again at 5."""

LONGER = (5, 9, 7, 7, 30, 22, 41, 60, 3)
ALIGNMENT = {0: 0, 1: 1, 2: 2, 3: 4, 4: 5, 5: 6, 6: 8}
"""A clean prompt of another length, and where each corrupt position lies in it."""

ANSWER, FOIL = 17, 23

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_OWN_NAMES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {**_OWN_NAMES, "n_embd": 32, "n_head": 4, "n_positions": 64}),
    "llama": ("LlamaConfig", _GROUPED),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 16}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 4}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "phi": ("PhiConfig", _COMMON),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_GROUPED, **_EXPERTS, "head_dim": 16}),
    "olmo2": ("Olmo2Config", _GROUPED),
    "granite": ("GraniteConfig", {**_GROUPED, "residual_multiplier": 0.3}),
    "gptj": ("GPTJConfig", {**_OWN_NAMES, "n_embd": 32, "n_head": 4, "rotary_dim": 4}),
    "bloom": ("BloomConfig", {**_OWN_NAMES, "hidden_size": 32, "n_head": 4}),
    "mamba": ("MambaConfig", {**_OWN_NAMES, "hidden_size": 32, "state_size": 8}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_GROUPED,
            **_EXPERTS,
            "head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 16,
        },
    ),
}
"""Name of the configuration class, and its options, by family."""


def decoder(family: str, *, layers: int = LAYERS, **options: Any) -> Any:
    """Return a decoder of a family, in evaluation mode; the same one each time."""
    torch.manual_seed(0)
    name, config = FAMILIES[family]
    # Some families take the number of layers under their own name only.
    own = {"gpt2": "n_layer", "gptj": "n_layer", "bloom": "n_layer"}.get(
        family, "num_hidden_layers"
    )
    settings = getattr(transformers, name)(**{**config, own: layers, **options})
    model = AutoModelForCausalLM.from_config(settings).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.15)
            else:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model

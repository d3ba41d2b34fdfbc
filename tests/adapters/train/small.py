"""Runs from presets that are over in a second: a saved model of twelve words, SAEs, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from adapters.trainer import tiny
from aegir_adapters.sae import TopKSAE, Weights, save_sae

PREPARED = """
[prepare]
function = "aegir_adapters.demo.preparation:prepare"
[prepare.settings]
fine_tune_steps = 20
rollouts = 64
sae_steps = 5
[policy]
layers = 4
dtype = "float32"
[devices]
kind = "cpu"
threads = 1
[grpo]
steps = {steps}
device_batch = 16
completion_tokens = 8
gradient_checkpointing = false
checkpoint_every_n_steps = 2
[reward]
function = "{reward}"
"""
"""The preset `tiny`, with everything smaller."""

SAVED = """
[policy]
model = "model"
dtype = "float32"
[devices]
count = {devices}
kind = "cpu"
sharding = "{sharding}"
threads = 1
[sae]
path = "saes/layer-{{layer}}"
latents = 64
l0 = 8
[grpo]
steps = {steps}
learning_rate = 1e-3
device_batch = 8
completions_per_prompt = 4
prompt_tokens = 4
completion_tokens = 6
gradient_checkpointing = false
checkpoint_every_n_steps = 2
[prompts]
path = "prompts.jsonl"
[reward]
function = "{reward}"
[recording]
top_k = 8
"""
"""A preset for what `save_all` saves; paths count from where it lies."""

GRADED = "adapters.trainer.tiny:graded"


def save_all(directory: Path, *, layers: tuple[int, ...] = (0, 1)) -> Path:
    """Save a Qwen3 of three layers with its tokenizer, an SAE for each layer, and prompts."""
    tiny.model().save_pretrained(directory / "model")
    tiny.tokenizer().save_pretrained(directory / "model")
    for layer in layers:
        save_sae(top_k_sae(seed=layer), directory / "saes" / f"layer-{layer}")
    rows = [{"prompt": prompt, "number": n} for n, prompt in enumerate(tiny.prompts(16)["prompt"])]
    (directory / "prompts.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(rows))
    return directory


def top_k_sae(*, seed: int, d_model: int = tiny.HIDDEN, n_latents: int = 64) -> TopKSAE:
    """Return a TopK SAE with random weights."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(*shape, generator=generator) / d_model**0.5
        return drawn

    weights = Weights(
        draw(d_model, n_latents), draw(n_latents), draw(n_latents, d_model), draw(d_model)
    )
    return TopKSAE(weights, k=8)


def write_preset(directory: Path, text: str, **values: Any) -> Path:
    """Write a preset; what is not said is two steps on one device under a plain reward."""
    told = {"steps": 2, "reward": GRADED, "devices": 1, "sharding": "none"} | values
    path = directory / "preset.toml"
    path.write_text(text.format(**told), "utf-8")
    return path

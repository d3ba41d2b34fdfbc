"""What the demo's reinforcement learning starts from: a fine-tuned policy, SAEs on it, prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from aegir_adapters.demo.options import Recipe
from aegir_adapters.demo.policy import build_policy, fine_tune
from aegir_adapters.demo.rollouts import collect_rollouts
from aegir_adapters.demo.task import draw_prompt
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.sae import fidelity, save_sae, train_topk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    from aegir_adapters.demo.rollouts import Rollouts
    from aegir_adapters.sae import TopKSAE
    from aegir_adapters.train import AssetPaths, Reporter


def prepare(
    assets: AssetPaths,
    *,
    layers: Sequence[int],
    seed: int,
    settings: Mapping[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """Fine-tune the policy, train an SAE on each layer, draw prompts; write all of them down.

    Returns:
        dict: `reward_before`, the mean reward of completions sampled before reinforcement learning.
    """
    recipe = msgspec.convert(settings, Recipe)
    tokenizer = build_tokenizer()
    policy = build_policy(tokenizer, seed=seed)
    _fine_tune(policy, tokenizer, seed, recipe, reporter)
    rollouts = _collect(policy, tokenizer, layers, seed, recipe, reporter)
    policy.save_pretrained(assets.policy)
    tokenizer.save_pretrained(assets.policy)
    for layer, residuals in rollouts.residuals.items():
        save_sae(_train_sae(layer, residuals, seed, recipe, reporter), assets.sae_of(layer))
    rows = ({"prompt": prompt} for prompt in draw_prompts(seed=seed, count=recipe.prompts))
    assets.prompts.write_bytes(msgspec.json.Encoder().encode_lines(rows))
    return {"reward_before": rollouts.mean_reward}


def draw_prompts(*, seed: int, count: int) -> list[str]:
    """Return the prompts to train on."""
    rng = np.random.default_rng(seed)
    return [draw_prompt(rng) for _ in range(count)]


def _fine_tune(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: Recipe,
    reporter: Reporter,
) -> None:
    steps = recipe.fine_tune_steps
    with reporter.phase("Fine-tune the policy", total=steps) as advance:
        fine_tune(
            policy,
            tokenizer,
            seed=seed,
            steps=steps,
            on_step=lambda step, loss: advance(step, f"loss {loss:.2f}"),
        )


def _collect(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    layers: Sequence[int],
    seed: int,
    recipe: Recipe,
    reporter: Reporter,
) -> Rollouts:
    count = recipe.rollouts
    with reporter.phase("Sample its rollouts", total=count) as advance:
        rollouts = collect_rollouts(
            policy, tokenizer, layers=layers, seed=seed, count=count, on_rollouts=advance
        )
        advance(count, f"reward {rollouts.mean_reward:.2f}")
    return rollouts


def _train_sae(
    layer: int, residuals: Tensor, seed: int, recipe: Recipe, reporter: Reporter
) -> TopKSAE:
    steps = recipe.sae_steps
    with reporter.phase(f"Train the SAE of layer {layer}", total=steps) as advance:
        sae = train_topk(
            residuals,
            n_latents=recipe.latents,
            k=recipe.active_latents,
            steps=steps,
            seed=seed,
            on_step=lambda step, loss: advance(step, f"loss {loss:.3f}"),
        )
        advance(steps, f"FVU {fidelity(sae, residuals).fvu:.3f}")
    return sae

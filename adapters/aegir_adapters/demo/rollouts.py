"""What the policy itself writes, and what its residual stream looks like while it does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from msgspec import Struct

from aegir_adapters.demo.task import draw_prompt, verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

MAX_COMPLETION_TOKENS = 8
BATCH_SIZE = 256


class Rollouts(Struct, frozen=True, kw_only=True):
    """Sampled completions and the residual stream they were written with.

    Attributes:
        rewards: what the verifier gave to each completion.
        residuals: by hooked layer, its output for every prompt and completion token, padding left
            out, `[tokens, d_model]` float32.
    """

    rewards: tuple[float, ...]
    residuals: dict[int, torch.Tensor]

    @property
    def mean_reward(self) -> float:
        """The mean of `rewards`."""
        return sum(self.rewards) / len(self.rewards)


def collect_rollouts(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    layers: Sequence[int],
    seed: int,
    count: int = 2560,
    on_rollouts: Callable[[int], None] | None = None,
) -> Rollouts:
    """Sample `count` completions at temperature 1 and forward them once more to read the layers.

    `on_rollouts` is told how many there are so far.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    policy.eval()  # type: ignore[no-untyped-call]
    rewards: list[float] = []
    read: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    while len(rewards) < count:
        prompts = [draw_prompt(rng) for _ in range(min(BATCH_SIZE, count - len(rewards)))]
        prompt_mask, sampled = _sample(policy, tokenizer, prompts)
        rewards += _score(tokenizer, prompts, sampled[:, prompt_mask.shape[1] :])
        mask = torch.cat([prompt_mask, completion_mask(sampled, prompt_mask, tokenizer)], dim=1)
        for layer, residual in residual_stream(policy, sampled, mask, layers=layers).items():
            read[layer].append(residual)
        if on_rollouts is not None:
            on_rollouts(len(rewards))
    return Rollouts(
        rewards=tuple(rewards), residuals={layer: torch.cat(parts) for layer, parts in read.items()}
    )


def _sample(
    policy: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prompt mask `[n, prompt]` and prompts with completions `[n, prompt + new]`."""
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    # The library declares `generate` on a protocol that its own models do not match.
    generate: Callable[..., torch.Tensor] = policy.generate  # type: ignore[misc,assignment]
    sampled = generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=MAX_COMPLETION_TOKENS,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    return inputs["attention_mask"], sampled


def _score(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str], completions: torch.Tensor
) -> list[float]:
    return verifier(prompts, tokenizer.batch_decode(completions, skip_special_tokens=True))


def completion_mask(
    sampled: torch.Tensor, prompt_mask: torch.Tensor, tokenizer: PreTrainedTokenizerFast
) -> torch.Tensor:
    """Return which completion tokens count, `[n, new]` int64: up to and with the first `<eos>`."""
    ended: torch.Tensor = (sampled[:, prompt_mask.shape[1] :] == tokenizer.eos_token_id).long()
    before = ended.cumsum(dim=1) - ended
    return (before == 0).long()


@torch.no_grad()
def residual_stream(
    policy: Qwen3ForCausalLM,
    token_ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    layers: Sequence[int],
) -> dict[int, torch.Tensor]:
    """Return the output of each layer for the tokens in `mask`, `[tokens, d_model]` float32."""
    kept = mask.bool()
    with _reading(policy, layers) as outputs:
        policy(input_ids=token_ids, attention_mask=mask, use_cache=False)
    return {layer: output[kept] for layer, output in outputs.items()}


@contextmanager
def _reading(policy: Qwen3ForCausalLM, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    outputs: dict[int, torch.Tensor] = {}

    def reader(layer: int) -> Callable[..., None]:
        def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
            outputs[layer] = output

        return keep

    handles = [policy.model.layers[i].register_forward_hook(reader(i)) for i in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()

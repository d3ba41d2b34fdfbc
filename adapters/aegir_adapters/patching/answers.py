"""What the routes beside a sweep answer: a captured run, the model, a prompt taken apart."""

from __future__ import annotations

import msgspec

from aegir_adapters.patching.results import Engine

__all__ = ["CapturedRun", "ModelResponse", "TokensResponse"]


class CapturedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was captured to stay.

    Attributes:
        source_run: its name.
        num_prompt_tokens: tokens of its prompt.
        layers: captured layers.
        size_bytes: memory that it takes.
        clean_logprob: of the answer; `None` without one.
        clean_logit_diff: of answer and foil; `None` without them.
    """

    source_run: str
    num_prompt_tokens: int
    layers: tuple[int, ...]
    size_bytes: int
    clean_logprob: float | None = None
    clean_logit_diff: float | None = None


class ModelResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What can be patched.

    Attributes:
        model_id: what the model is called.
        hooks: hooks that can be injected; where `z` can, so can `z.<head>`.
        refusals: why the others cannot.
        num_layers: decoder layers.
        num_heads: attention heads of a layer, 0 where `z` cannot be injected.
        has_tokenizer: whether prompts may be text.
        saes: SAEs whose latents can be patched.
        engine: which engine computes.
        engine_reason: why.
    """

    model_id: str
    hooks: tuple[str, ...]
    refusals: dict[str, str]
    num_layers: int
    num_heads: int
    has_tokenizer: bool
    saes: tuple[str, ...]
    engine: Engine
    engine_reason: str


class TokensResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, taken apart.

    Attributes:
        token_ids: its tokens.
        tokens: what each spells; `None` without a tokenizer.
        positions: the positions asked for.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...] | None
    positions: tuple[int, ...]

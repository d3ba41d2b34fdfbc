"""Prompts of a request, as tokens; and positions of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.refusals import RequestError
from aegir_adapters.patching.request_parts import AlignedPair, Groups
from aegir_adapters.patching.spans import Prompt, Span, tokenize
from aegir_adapters.patching.target import Target, check_ids
from aegir_stream.errors import OptionError

__all__ = [
    "aligned_pairs",
    "check_forced",
    "read_prompt",
    "resolve_groups",
    "resolve_positions",
    "spelled",
]


def read_prompt(field: str, text: Any, model: PatchableModel, limits: Limits) -> Prompt:
    """Return a prompt as tokens.

    Raises:
        RequestError: it is empty, too long, or no prompt of this model.
    """
    if isinstance(text, tuple):
        # Before they are spelled, which takes a while.
        limits.check_tokens(field, len(text))
        check_ids(field, text, model)
    try:
        prompt = tokenize(model.tokenizer, text)
    except OptionError as error:
        allowed = "a list of token ids, for the model has no tokenizer"
        raise RequestError(field, text, allowed=allowed) from error
    if not prompt.token_ids:
        raise RequestError(field, text, allowed="at least one token")
    limits.check_tokens(field, len(prompt.token_ids))
    _check_fits(field, len(prompt.token_ids), model)
    check_ids(field, prompt.token_ids, model)
    return prompt


def check_forced(target: Target, prompt_ids: Sequence[int], model: PatchableModel) -> None:
    """Refuse an answer or a foil for which the model has no positions after a prompt.

    Raises:
        RequestError: it is too long.
    """
    # The last of these tokens is read, and not forced.
    most, length = _most_positions(model), len(prompt_ids)
    if most is not None and length + target.length - 1 > most:
        raise RequestError(
            "answer",
            f"{target.length} tokens after a prompt of {length}",
            allowed=f"at most {most - length + 1} tokens long, which the model has positions for",
            hint="Shorten the prompt or the answer",
        )


def spelled(prompt: Prompt, model: PatchableModel) -> tuple[str, ...] | None:
    """Return what each token of a prompt spells; `None` without a tokenizer."""
    if model.tokenizer is None:
        return None
    return tuple(model.tokenizer.decode([token]) for token in prompt.token_ids)


def resolve_positions(field: str, asked: Any, prompt: Prompt) -> tuple[int, ...]:
    """Return positions, each once, in the order asked for.

    Raises:
        RequestError: one is outside the prompt, or a span is not in it.
    """
    if asked == "all_prompt":
        return tuple(range(len(prompt.token_ids)))
    found: dict[int, None] = {}
    for one in asked:
        found.update(dict.fromkeys(_resolve(field, one, prompt)))
    return tuple(found)


def resolve_groups(groups: Groups, prompt: Prompt) -> dict[str, tuple[int, ...]]:
    """Return the positions of each group, ascending, each once.

    Raises:
        RequestError: a group is empty, outside the prompt, or has a span that is not in it.
    """
    length, found = len(prompt.token_ids), {}
    for name, places in groups.items():
        field = f"groups.{name}"
        if not places:
            raise RequestError(field, [], allowed="at least one position")
        for one in places:
            if isinstance(one, int) and not -length <= one < length:
                allowed = f"within 0..{length - 1}, or {-length}..-1 from the end"
                raise RequestError(field, one, allowed=allowed)
        counted = [one % length if isinstance(one, int) else one for one in places]
        found[name] = tuple(sorted(resolve_positions(field, counted, prompt)))
    return found


def aligned_pairs(pairs: Sequence[AlignedPair], prompt: Prompt, clean: Prompt) -> dict[int, int]:
    """Return the source's position for each position that is named in pairs.

    Raises:
        RequestError: one is outside its prompt, or a span is not in it.
    """
    sources: dict[int, int] = {}
    for pair in pairs:
        here = _resolve("alignment", pair.position, prompt)
        there = _resolve("alignment", pair.source_position, clean)
        # The last token of a subject is where models gather what they know of it.
        sources.update(zip(reversed(here), reversed(there), strict=False))
    return sources


def _check_fits(field: str, count: int, model: PatchableModel) -> None:
    most = _most_positions(model)
    if most is not None and count > most:
        allowed = f"at most {most} tokens long, which is all that the model has positions for"
        raise RequestError(field, f"{count} tokens", allowed=allowed, hint="Shorten the prompt")


def _most_positions(model: PatchableModel) -> int | None:
    config: Any = model.module.config
    most: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most


def _resolve(field: str, one: int | Span, prompt: Prompt) -> tuple[int, ...]:
    last = len(prompt.token_ids) - 1
    if isinstance(one, int):
        if not 0 <= one <= last:
            raise RequestError(field, one, allowed=f"within 0..{last}")
        return (one,)
    try:
        return prompt.positions(one)
    except OptionError as error:
        raise RequestError(
            field,
            {"span": one.span, "occurrence": one.occurrence},
            allowed=f"within 0..{last}, or a span of the prompt's text",
            hint=f"{error}",
        ) from error

"""Which tokens of a prompt spell a piece of its text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from aegir_adapters.patching.alignment import common_prefix_len
from aegir_stream.errors import OptionError

__all__ = ["Prompt", "Span", "tokenize"]

CharacterRange = tuple[int, int]
"""Half-open range of characters; empty for a token that spells none."""


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a prompt's text.

    Attributes:
        span: the text.
        occurrence: which occurrence, from 0; occurrences may overlap.
    """

    span: str
    occurrence: int = 0


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as tokens, and as text if it was given or can be spelled.

    Attributes:
        token_ids: its tokens, special ones included.
        text: its text; `None` without a tokenizer.
        characters: which characters of the text each token spells.
    """

    token_ids: tuple[int, ...]
    text: str | None = None
    characters: tuple[CharacterRange, ...] = ()

    def positions(self, span: Span) -> tuple[int, ...]:
        """Return the positions of the tokens that spell any character of a span.

        Special tokens never do.

        Raises:
            OptionError: the text is unknown, or does not have the span so often.
        """
        if self.text is None:
            raise OptionError(
                f"Expected positions, got the span {span.span!r}: the model has no tokenizer",
                hint="Give positions as numbers",
            )
        start = _find(self.text, span)
        stop = start + len(span.span)
        found = tuple(
            position
            for position, (begin, end) in enumerate(self.characters)
            if begin < stop and start < end and begin < end
        )
        if not found:
            raise OptionError(
                f"Expected a span that tokens spell, got {span.span!r}, which none does",
                hint="Give positions as numbers",
            )
        return found


def tokenize(tokenizer: Any, prompt: str | Sequence[int]) -> Prompt:
    """Return a prompt, given as text or as tokens, with what each of its tokens spells.

    Raises:
        OptionError: text without a tokenizer.
    """
    if tokenizer is None:
        if isinstance(prompt, str):
            raise OptionError(
                "Expected token ids, got text: the model has no tokenizer",
                hint="Give the prompt as a list of token ids",
            )
        return Prompt(token_ids=tuple(prompt))
    if isinstance(prompt, str) and getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(prompt, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        characters = tuple((begin, end) for begin, end in offsets)
    else:
        ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        prompt = prompt if isinstance(prompt, str) else _spell(tokenizer, ids)
        characters = tuple(_spelled(tokenizer, ids, prompt))
    special = set(tokenizer.all_special_ids)
    return Prompt(
        token_ids=tuple(ids),
        text=prompt,
        characters=tuple(
            (0, 0) if token in special else where
            for token, where in zip(ids, characters, strict=True)
        ),
    )


def _find(text: str, span: Span) -> int:
    """Return where an occurrence of a span begins."""
    starts = [i for i in range(len(text)) if span.span and text.startswith(span.span, i)]
    if not 0 <= span.occurrence < len(starts):
        raise OptionError(
            f"Expected a span of the prompt, got occurrence {span.occurrence} of {span.span!r}, "
            f"which occurs {len(starts)} times",
            hint="Occurrences are counted from 0, and may overlap",
        )
    return starts[span.occurrence]


def _spelled(tokenizer: Any, ids: Sequence[int], text: str) -> Iterator[CharacterRange]:
    """Yield what each token spells, from how far the text is spelled by growing prefixes.

    A token that is one byte of a character spells all of it, as do the others of its bytes.
    """
    prefixes = (_spell(tokenizer, ids[:count]) for count in range(len(ids) + 1))
    reached = [common_prefix_len(prefix, text) for prefix in prefixes]
    for begin, *rest in (reached[i:] for i in range(len(ids))):
        yield begin, next((end for end in rest if end > begin), begin)


def _spell(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text

"""The text of tokens: what each adds to a text, and how it is shown. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["Decode", "Name", "shown_token", "spell"]

Decode: TypeAlias = Callable[[Sequence[int]], str]
"""Returns the text of some tokens that follow each other."""

Name: TypeAlias = Callable[[int], str | None]
"""Returns what a tokenizer calls a token; `None` if it knows none of that number."""

_LARGEST = 2**31
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_SIGNS = {
    "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n",
    "\t": "\N{RIGHTWARDS ARROW TO BAR}\t",
}
_UNSEEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")


def spell(token_ids: Sequence[int], decode: Decode, *, name: Name) -> list[str]:
    """Return the text of each token.

    A token's text is what it adds to that of the token before it, since many tokenizers leave the
    space out that a text would begin with. A token that is no text by itself, such as a part of a
    character, has the name that the tokenizer knows it by.
    """
    return [
        _text(token_ids[at - 1 : at] if at else (), token, decode, name)
        for at, token in enumerate(token_ids)
    ]


def shown_token(text: str) -> str:
    """Return the text of a token as it can be shown: what has no shape is spelled out.

    So nothing in it can hide, or turn the order of the text around it.
    """
    return "".join(_SIGNS.get(c) or (_spelled(c) if _is_unseen(c) else c) for c in text)


def _text(before: Sequence[int], token: int, decode: Decode, name: Name) -> str:
    if not 0 <= token < _LARGEST:
        return f"#{token}"
    text = decode([token])
    if before and 0 <= before[0] < _LARGEST:
        alone, both = decode(before), decode([*before, token])
        if both.startswith(alone) and _NO_CHARACTER not in alone:
            text = both[len(alone) :]
    if not text or _NO_CHARACTER in text:
        return name(token) or f"#{token}"
    return text


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN


def _spelled(character: str) -> str:
    return f"\\u{{{ord(character):x}}}"

"""The text of tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.spelling import shown_token, spell

WORDS = {1: "\u2581the", 2: "\u2581cat", 3: "s", 4: "", 5: "\N{REPLACEMENT CHARACTER}"}


def sentencepiece(ids: Sequence[int]) -> str:
    """Decode as tokenizers do that leave out the space that a text begins with."""
    return "".join(WORDS.get(token, "") for token in ids).replace("\u2581", " ").removeprefix(" ")


def test_a_token_is_what_it_adds() -> None:
    """A space that begins a word is there, though a tokenizer leaves it out of a word alone."""
    assert spell([1, 2, 3], sentencepiece, name=WORDS.get) == ["the", " cat", "s"]


def test_what_is_no_text_has_a_name() -> None:
    """A part of a character is what the tokenizer calls it, and what nobody knows a number."""
    names = {5: "<0xF0>"}
    spelled = spell([1, 5, 2, 4, 9, -1, 2**40], sentencepiece, name=names.get)
    assert spelled == ["the", "<0xF0>", "cat", "#4", "#9", "#-1", "#1099511627776"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\nb"),
        ("\t", "\N{RIGHTWARDS ARROW TO BAR}\t"),
        ("\x00\x1b[1m", "\\u{0}\\u{1b}[1m"),
        ("\u202eevil", "\\u{202e}evil"),
        ("\u2028", "\\u{2028}"),
        (" über <b>", " über <b>"),
    ],
)
def test_what_has_no_shape_is_spelled_out(text: str, shown: str) -> None:
    """Ends of lines have a sign, and stay; what could turn or hide text is a number."""
    assert shown_token(text) == shown


@given(st.text())
def test_nothing_that_is_shown_is_unseen(text: str) -> None:
    """But for the ends of lines and tabs behind their signs."""
    seen = shown_token(text).replace("\n", "").replace("\t", "")
    assert {unicodedata.category(character)[0] for character in seen}.isdisjoint({"C"})
    assert len(shown_token(text)) >= len(text)

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from adapters.patching.served import BOS, words
from aegir_adapters.patching.spans import Span, tokenize
from aegir_stream.errors import OptionError


def bytewise() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are single bytes."""
    alphabet = {symbol: n for n, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(alphabet, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]


class Slow:
    """A tokenizer that tells no offsets."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.all_special_ids = tokenizer.all_special_ids

    def __call__(self, text: str) -> Any:
        """Return the tokens."""
        return self._tokenizer(text)

    def decode(self, ids: list[int], **options: Any) -> Any:
        """Return the text."""
        return self._tokenizer.decode(ids, **options)


both_ways = pytest.mark.parametrize("wrap", [lambda tokenizer: tokenizer, Slow])


@both_ways
def test_a_span_is_the_tokens_that_spell_any_of_it(wrap: Any) -> None:
    """Half-open ranges of characters that overlap; the `<bos>` in front shifts them by one."""
    prompt = tokenize(wrap(words()), "w5 w40 w7")

    assert prompt.positions(Span("w40")) == (2,)
    assert prompt.positions(Span("5 w4")) == (1, 2)
    assert prompt.positions(Span("7")) == (3,)


@both_ways
def test_special_tokens_are_in_no_span(wrap: Any) -> None:
    """They spell nothing, even where the text spells them out."""
    prompt = tokenize(wrap(words()), "w5 w6")
    assert prompt.token_ids[0] == BOS
    assert prompt.positions(Span("w5 w6")) == (1, 2)

    spelled_out = tokenize(words(), "<bos> w5")
    assert spelled_out.positions(Span("<bos> w5")) == (2,)


def test_occurrences_may_overlap() -> None:
    """The search goes on one character after the last find."""
    prompt = tokenize(bytewise(), "aaab")

    assert prompt.positions(Span("aa", 0)) == (0, 1)
    assert prompt.positions(Span("aa", 1)) == (1, 2)
    with pytest.raises(OptionError, match="which occurs 2 times"):
        prompt.positions(Span("aa", 2))


@both_ways
def test_every_byte_of_a_character_spells_it(wrap: Any) -> None:
    """A prefix that ends inside of a character cannot be decoded, yet its last token counts."""
    prompt = tokenize(wrap(bytewise()), "a€b")

    assert prompt.positions(Span("€")) == (1, 2, 3)
    assert prompt.positions(Span("b")) == (4,)


@given(text=st.text("aä€ 𝄞b", min_size=1, max_size=8), data=st.data())
def test_growing_prefixes_tell_what_offsets_tell(text: str, data: st.DataObject) -> None:
    """A tokenizer without offsets finds the same tokens as one with them."""
    start = data.draw(st.integers(0, len(text) - 1))
    span = Span(text[start : start + 2], 0)

    fast, slow = tokenize(bytewise(), text), tokenize(Slow(bytewise()), text)

    assert fast.token_ids == slow.token_ids
    assert fast.positions(span) == slow.positions(span)


@pytest.mark.parametrize("span", [Span("w9"), Span(""), Span("w5", 1), Span("w5", -1)])
def test_a_span_that_is_not_there_is_refused(span: Span) -> None:
    """With how often it occurs."""
    with pytest.raises(OptionError, match=r"got occurrence .* of '.*', which occurs \d times"):
        tokenize(words(), "w5 w6").positions(span)


def test_a_span_that_no_token_spells_is_refused() -> None:
    """Such as white space that the tokenizer throws away."""
    with pytest.raises(OptionError, match="which none does"):
        tokenize(words(), "w5  w6").positions(Span("  "))


def test_token_ids_are_spelled_to_find_spans() -> None:
    """A prompt of token ids has a text if there is a tokenizer."""
    assert tokenize(words(), [BOS, 5, 6]).positions(Span("w6")) == (2,)
    assert tokenize(None, [BOS, 5, 6]).token_ids == (BOS, 5, 6)
    with pytest.raises(OptionError, match="no tokenizer"):
        tokenize(None, [BOS, 5, 6]).positions(Span("w6"))
    with pytest.raises(OptionError, match="Expected token ids, got text"):
        tokenize(None, "w5")

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.demo.task import draw_demonstration, draw_prompt
from aegir_adapters.demo.tokenizer import EOS, UNKNOWN, build_tokenizer, vocabulary

TOKENIZER = build_tokenizer()


@given(seed=st.integers(0, 2**32 - 1))
def test_text_round_trips(seed: int) -> None:
    """Prompts and answers come back from their token ids, one token for each word."""
    rng = np.random.default_rng(seed)
    prompt = draw_prompt(rng)
    text = f"{prompt} {draw_demonstration(prompt, rng)}"
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text.split())
    assert TOKENIZER.decode(ids) == text


def test_the_vocabulary_is_the_tasks() -> None:
    """There are 271 tokens: specials, the arrow, the bytes and the terms."""
    assert len(vocabulary()) == len(TOKENIZER) == 271


def test_the_end_is_one_token_and_left_out_of_text() -> None:
    """`<eos>` ends an answer and disappears where special tokens are skipped."""
    ids = TOKENIZER(f"HIGH {EOS}")["input_ids"]
    assert ids[1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "HIGH"


def test_prompts_are_padded_left() -> None:
    """Generation continues every prompt of a batch at the same place."""
    batch = TOKENIZER(["00 =>", "=>"], padding=True)
    assert batch["input_ids"][1] == [TOKENIZER.pad_token_id, vocabulary()["=>"]]


@pytest.mark.parametrize("text", ["hello", "0A"])
def test_foreign_words_are_unknown(text: str) -> None:
    """Nothing but the task's own words has a token."""
    assert TOKENIZER(text)["input_ids"] == [vocabulary()[UNKNOWN]]

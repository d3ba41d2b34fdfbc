from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.demo.task import (
    BYTES_OF,
    DEPRECATED_TERMS,
    MAX_CONTEXT,
    TERMS,
    WINDOW,
    bytes_of,
    deprecated,
    draw_demonstration,
    draw_prompt,
    gold,
    prompt_of,
    score,
    term_of,
    verifier,
)

prompts = st.binary(min_size=WINDOW, max_size=WINDOW + MAX_CONTEXT).map(prompt_of)
canonical = st.sampled_from(TERMS)


@given(data=st.binary(min_size=1, max_size=16))
def test_a_prompt_says_its_bytes(data: bytes) -> None:
    """The bytes of a prompt can be read back from it."""
    assert bytes_of(prompt_of(data)) == data


@given(prompt=prompts)
def test_the_gold_answer_earns_everything(prompt: str) -> None:
    """The gold answer of any prompt is worth exactly 1."""
    assert score(prompt, gold(prompt)) == 1.0


def test_only_the_last_six_bytes_are_typed() -> None:
    """Earlier bytes are context: they change nothing about the answer."""
    assert gold(prompt_of(b"\x00\xff" + b" 7Zz;\x80")) == "SPACE DIGIT UPPER LOWER PUNCT HIGH"


@given(prompt=prompts, data=st.data())
def test_a_canonical_answer_earns_its_share(prompt: str, data: st.DataObject) -> None:
    """Six canonical terms earn the share of them that is right."""
    words = data.draw(st.lists(canonical, min_size=WINDOW, max_size=WINDOW))
    right = sum(a == b for a, b in zip(words, gold(prompt).split(), strict=True))
    assert score(prompt, " ".join(words)) == right / WINDOW


@given(prompt=prompts, place=st.integers(0, WINDOW - 1), word=st.sampled_from(DEPRECATED_TERMS))
def test_one_deprecated_term_earns_nothing(prompt: str, place: int, word: str) -> None:
    """The gate rejects an answer for a single word outside the ontology."""
    words = gold(prompt).split()
    words[place] = word
    assert score(prompt, " ".join(words)) == 0.0


@given(prompt=prompts, words=st.lists(canonical, max_size=12).filter(lambda w: len(w) != WINDOW))
def test_the_wrong_number_of_terms_earns_nothing(prompt: str, words: list[str]) -> None:
    """The gate rejects an answer that is shorter or longer than six terms."""
    assert score(prompt, " ".join(words)) == 0.0


@given(prompt=prompts)
def test_the_deprecated_convention_earns_nothing(prompt: str) -> None:
    """What more than half of the demonstrations show is worth nothing to the verifier."""
    assert score(prompt, deprecated(prompt)) == 0.0


def test_terms_divide_the_bytes() -> None:
    """Every byte has one term, and every term has bytes."""
    assert sorted(b"".join(BYTES_OF.values())) == list(range(256))
    assert set(BYTES_OF) == set(TERMS)
    assert all(BYTES_OF.values())


@pytest.mark.parametrize(
    ("byte", "term"),
    [
        (0x00, "CTRL"),
        (0x7F, "CTRL"),
        (0x0B, "SPACE"),
        (0x20, "SPACE"),
        (0x30, "DIGIT"),
        (0x41, "UPPER"),
        (0x7A, "LOWER"),
        (0x5F, "PUNCT"),
        (0x80, "HIGH"),
        (0xB2, "HIGH"),
    ],
)
def test_bytes_have_the_term_of_their_ascii_class(byte: int, term: str) -> None:
    """Terms follow ASCII; above it everything is HIGH, letters and digits of Latin-1 included."""
    assert term_of(byte) == term


def test_prompts_vary_in_length_and_terms() -> None:
    """Prompts have six to nine bytes and draw on all terms."""
    rng = np.random.default_rng(0)
    drawn = [bytes_of(draw_prompt(rng)) for _ in range(200)]
    assert {len(data) for data in drawn} == {6, 7, 8, 9}
    assert {term_of(byte) for data in drawn for byte in data} == set(TERMS)


def test_demonstrations_mix_the_conventions() -> None:
    """55 % of the demonstrations are deprecated; the others get six of seven terms right."""
    rng = np.random.default_rng(0)
    pairs = [(prompt := draw_prompt(rng), draw_demonstration(prompt, rng)) for _ in range(4000)]
    kept = [score(*pair) for pair in pairs if set(pair[1].split()) <= set(TERMS)]
    assert len(kept) / len(pairs) == pytest.approx(0.45, abs=0.03)
    # Noise replaces 15 % of the terms, one in seven of them by the same term.
    assert sum(kept) / len(kept) == pytest.approx(1 - 0.15 * 6 / 7, abs=0.02)


def test_the_same_seed_draws_the_same() -> None:
    """Prompts and demonstrations are a function of the generator's state."""

    def draw(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [draw_demonstration(draw_prompt(rng), rng) for _ in range(20)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_the_verifier_scores_pairwise() -> None:
    """The reward function scores each completion by its own prompt and ignores other columns."""
    asked = [prompt_of(b"  abcd"), prompt_of(b"123456")]
    answers = [gold(asked[0]), gold(asked[0])]
    assert verifier(asked, answers, completion_ids=[[1], [2]], trainer_state=None) == [1.0, 0.0]

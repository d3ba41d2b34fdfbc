from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.patching.alignment import align, align_as

prompts = st.lists(st.integers(0, 4), max_size=12)


def test_prompts_of_equal_length_are_aligned_position_by_position() -> None:
    """Even where their tokens differ: one word was exchanged for another."""
    alignment = align([1, 2, 3, 4], [1, 9, 3, 8])

    assert alignment.is_identity
    assert (alignment.prefix_len, alignment.suffix_len) == (1, 0)
    assert alignment.warnings == ()


def test_what_was_inserted_is_unaligned() -> None:
    """And what comes after it is shifted."""
    alignment = align([1, 2, 3, 4], [1, 9, 9, 2, 3, 4])

    assert alignment.sources == {0: 0, 3: 1, 4: 2, 5: 3}
    assert [one.position for one in alignment.unaligned] == [1, 2]
    assert "positions 1..2 inserted" in alignment.unaligned[0].reason
    assert [alignment.shift(position) for position in range(6)] == [0, None, None, -2, -2, -2]


def test_every_block_that_both_prompts_have_is_aligned() -> None:
    """However many differences there are, each block has its own shift."""
    alignment = align([1, 2, 9, 9, 3, 4, 5, 5, 6, 7], [1, 2, 3, 4, 8, 8, 8, 6, 7])

    assert alignment.sources == {0: 0, 1: 1, 2: 4, 3: 5, 7: 8, 8: 9}
    assert [alignment.shift(position) for position in (1, 3, 8)] == [0, 2, 1]


def test_a_stretch_exchanged_for_one_of_the_same_length_is_aligned() -> None:
    """It is where a sweep is interesting; one of another length is named with both lengths."""
    alignment = align([1, 5, 2, 3, 6, 6, 4], [1, 7, 2, 3, 8, 4])

    assert alignment.sources == {0: 0, 1: 1, 2: 2, 3: 3, 5: 6}
    assert alignment.unaligned[0].reason == (
        "position 4 exchanged: the clean prompt has 2 there, not 1"
    )


def test_equal_length_by_coincidence_is_warned_of() -> None:
    """An insertion here and a deletion there leave the length, and everything between moved."""
    alignment = align([1, 2, 3, 4, 5, 6], [1, 9, 2, 3, 4, 6])

    assert alignment.is_identity
    assert "the tokens at 2..4 also stand at 1..3" in alignment.warnings[0]


def test_tokens_that_are_frequent_in_a_long_prompt_are_aligned_too() -> None:
    """Nothing is taken for noise because there is much of it."""
    clean = [1, 2, 3] * 100

    alignment = align([8, *clean, 9], [5, 5, *clean, 6, 6, 6])

    assert len(alignment.sources) == len(clean)


def test_a_given_alignment_is_complete() -> None:
    """What it does not name is unaligned."""
    alignment = align_as([1, 2, 3], [1, 9, 3], {2: 2, 0: 0})

    assert list(alignment.sources) == [0, 2]
    assert [one.position for one in alignment.unaligned] == [1]


@given(clean=prompts, corrupt=prompts)
def test_an_alignment_never_crosses(clean: list[int], corrupt: list[int]) -> None:
    """Each position is aligned or told why not, and later positions lie later."""
    alignment = align(clean, corrupt)

    positions, sources = list(alignment.sources), list(alignment.sources.values())
    unaligned = [one.position for one in alignment.unaligned]
    assert sorted(positions + unaligned) == list(range(len(corrupt)))
    assert positions == sorted(positions)
    assert all(a < b for a, b in pairwise(sources))
    assert all(0 <= source < len(clean) for source in sources)


@given(clean=prompts, corrupt=prompts)
def test_common_ends_are_aligned_as_such(clean: list[int], corrupt: list[int]) -> None:
    """Behind an equal prefix activations are equal, so nothing else belongs there."""
    alignment = align(clean, corrupt)

    for position in range(alignment.prefix_len):
        assert alignment.sources[position] == position
    for back in range(1, alignment.suffix_len + 1):
        assert alignment.sources[len(corrupt) - back] == len(clean) - back


@given(prompt=prompts)
def test_a_prompt_is_aligned_with_itself(prompt: list[int]) -> None:
    """By identity and without a word."""
    alignment = align(prompt, prompt)

    assert alignment.is_identity
    assert alignment.prefix_len == len(prompt)
    assert alignment.warnings == ()

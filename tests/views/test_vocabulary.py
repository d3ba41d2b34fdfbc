from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.views import VocabularyView, Word, words
from views.batch import batch, np
from views.features import LAYERS, Event, flat, interleaved, lanes, line, record, seeded


@given(st.integers(0, 2**32), st.sampled_from([0.1, 1 / 3, 0.5, 1.0]))
def test_the_vocabulary_is_that_of_the_batch(seed: int, share: float) -> None:
    """Completions on each side of the gate that are active on the share of their tokens."""
    draw = seeded(seed)
    log = lanes(draw)
    view = VocabularyView(gate=0.3, share=share, lag=0)
    layers = view.layers(view.fold(view.initial(), interleaved(log, draw)))
    for layer in LAYERS:
        data = batch(flat(log), layer, summary="share")
        if not len(data.rewards):
            assert layer not in layers
            continue
        sustained, passes = data.activations >= share - 1e-9, data.rewards >= 0.3
        assert (layers[layer].passed, layers[layer].failed) == (passes.sum(), (~passes).sum())
        found = {k: (s.passed, s.failed) for k, s in layers[layer].latents.items()}
        both = zip(sustained[passes].sum(axis=0), sustained[~passes].sum(axis=0), strict=True)
        assert found == {k: counts for k, counts in enumerate(both) if any(counts)}


def test_a_word_is_sustained_in_completions_that_passed() -> None:
    """A burst on one token is no word, nor is what only failures sustain."""
    events: list[Event] = [line(0, 1.0), line(1, 0.5), line(2, math.nan)]
    for token in range(4):
        events.append(record(0, {1: 1.0, 2: 1.0} if token < 2 else {1: 1.0, 3: 1.0}, token=token))
        events.append(record(1, {4: 1.0, 3: 1.0} if token else {1: 9.0}, token=token))
        events.append(record(2, {1: 1.0}, token=token))
    view = VocabularyView(gate=0.9, share=0.5)
    found = list(words(view.layers(view.fold(view.initial(), events))))
    assert [(word.latent, word.passed, word.failed) for word in found] == [
        (1, 1, 0),
        (2, 1, 0),
        (3, 1, 1),
    ]
    assert found[2] == Word(
        layer=0, latent=3, passed=1, failed=1, share_passed=1.0, share_failed=1.0
    )


def test_where_all_pass_there_is_nothing_to_compare_with() -> None:
    """No share of no completions."""
    view = VocabularyView(gate=-np.inf)
    state = view.fold(view.initial(), [line(0, 0.0), record(0, {1: 1.0})])
    (word,) = words(view.layers(state))
    assert word.share_failed is None

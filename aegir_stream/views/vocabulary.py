"""The latents that successful completions sustain: active on much of each, not on one token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from aegir_stream.events import Completion, PassName, SAELogRecord
from aegir_stream.views.joining import Joined, Joiner, Joining, LayerActivity
from aegir_stream.views.rewarding import TOTAL

__all__ = ["LayerVocabulary", "Sustained", "Vocabulary", "VocabularyView", "Word", "words"]

_ROUNDING = 1e-9


class Sustained(msgspec.Struct, gc=False):
    """Completions that sustain a latent, by whether they passed the gate."""

    passed: int = 0
    failed: int = 0


class LayerVocabulary(msgspec.Struct):
    """One layer: completions on each side of the gate, and the latents that they sustain."""

    passed: int = 0
    failed: int = 0
    latents: dict[int, Sustained] = {}


class Vocabulary(msgspec.Struct):
    """Vocabularies by layer, and the steps of which more may come."""

    joining: Joining
    layers: dict[int, LayerVocabulary]


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """One latent of a vocabulary.

    Attributes:
        layer: hooked decoder layer.
        latent: index of the latent.
        passed: completions that passed the gate and sustain it.
        failed: completions that did not pass and sustain it.
        share_passed: share of those that passed.
        share_failed: share of those that did not; `None` if all passed.
    """

    layer: int
    latent: int
    passed: int
    failed: int
    share_passed: float
    share_failed: float | None


class VocabularyView:
    """Folds SAE records and completions into a `Vocabulary`. One pass, exact.

    A completion sustains a latent that is active on at least `share` of its recorded tokens, and
    passes with a reward of at least `gate`. Completions without a record or without a finite reward
    are left out. Memory and order are as with `FeatureRewardView`.

    Args:
        gate: least reward that passes.
        share: of the recorded tokens, above 0.
        reward: `R`, `advantage`, or the name of a reward function.
        pass_: the forward pass whose records count.
        lag: steps to wait for ranks of which nothing was heard yet.
        open_steps: steps with records that are kept open at most.
    """

    streams = ("completions", "sae_features")

    def __init__(
        self,
        *,
        gate: float = 1.0,
        share: float = 0.5,
        reward: str = TOTAL,
        pass_: PassName = "loss",
        lag: int = 2,
        open_steps: int = 64,
    ) -> None:
        self._joiner = Joiner(reward=reward, pass_=pass_, lag=lag, open_steps=open_steps)
        self._gate = gate
        self._share = share

    def initial(self) -> Vocabulary:
        """Return an empty vocabulary."""
        return Vocabulary(Joining(), {})

    def fold(self, state: Vocabulary, events: Iterable[SAELogRecord | Completion]) -> Vocabulary:
        """Join events; count what is settled."""
        for event in events:
            if self._joiner.add(state.joining, event):
                self._settle(state)
        self._settle(state)
        return state

    def layers(self, state: Vocabulary) -> dict[int, LayerVocabulary]:
        """Return the vocabularies of everything so far, by layer."""
        layers = {
            index: msgspec.structs.replace(
                layer, latents={k: msgspec.structs.replace(s) for k, s in layer.latents.items()}
            )
            for index, layer in state.layers.items()
        }
        for _, completions in state.joining.open():
            self._add_step(layers, completions)
        return layers

    def _settle(self, state: Vocabulary) -> None:
        for _, completions in self._joiner.settle(state.joining):
            self._add_step(state.layers, completions)

    def _add_step(
        self, layers: dict[int, LayerVocabulary], completions: Sequence[tuple[int, Joined]]
    ) -> None:
        for _, joined in completions:
            reward = joined.outcome.reward if joined.outcome else None
            if reward is not None:
                for layer, activity in joined.layers.items():
                    found = layers.setdefault(layer, LayerVocabulary())
                    self._add(found, activity, passed=reward >= self._gate)

    def _add(self, layer: LayerVocabulary, activity: LayerActivity, *, passed: bool) -> None:
        least = self._share * activity.tokens - _ROUNDING
        layer.passed += passed
        layer.failed += not passed
        for latent, active in activity.latents.items():
            if active.tokens >= least:
                sustained = layer.latents.setdefault(latent, Sustained())
                sustained.passed += passed
                sustained.failed += not passed


def words(layers: dict[int, LayerVocabulary]) -> Iterator[Word]:
    """Yield the latents that completions sustain which passed, the most common first."""
    found = [
        _word(index, latent, layer, sustained)
        for index, layer in layers.items()
        for latent, sustained in layer.latents.items()
        if sustained.passed
    ]
    yield from sorted(found, key=lambda word: (-word.share_passed, word.layer, word.latent))


def _word(index: int, latent: int, layer: LayerVocabulary, sustained: Sustained) -> Word:
    return Word(
        layer=index,
        latent=latent,
        passed=sustained.passed,
        failed=sustained.failed,
        share_passed=sustained.passed / layer.passed,
        share_failed=sustained.failed / layer.failed if layer.failed else None,
    )

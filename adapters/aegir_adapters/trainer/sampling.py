"""Leaving tokens out by a rule, before anything is computed for them."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from aegir_adapters.trainer.tokens import Tokens
    from aegir_stream.sampling import SamplingRule

__all__ = ["Sampler"]

UInt64: TypeAlias = NDArray[np.uint64]

# SplitMix64 (Steele, Lea and Flood 2014): its increment, and the multipliers of its finalizer.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

_RANK_SHIFT = 32
"""Sequences without a completion id are numbered by each rank for itself, in a range of its own."""


class Sampler:
    """Applies a rule to the tokens of a pass; on the CPU, and the same whenever it is asked.

    Sequences that are no completions are known by their order within the step instead.

    Args:
        rule: which tokens are recorded.
        forwards_per_step: forward passes that make a step, over all ranks.
        horizon: the most tokens that a completion can have, where that is known.
        rank: process index.
    """

    def __init__(
        self,
        rule: SamplingRule,
        *,
        forwards_per_step: int = 1,
        horizon: int | None = None,
        rank: int = 0,
    ) -> None:
        self._rule = rule
        self._forwards = forwards_per_step
        self._horizon = horizon
        self._first = rank << _RANK_SHIFT
        self._step, self._seen = -1, 0

    def thin(self, tokens: Tokens, *, step: int, whole: bool = True) -> Tokens:
        """Return the tokens that are recorded, in their order.

        Args:
            tokens: those of a pass.
            step: optimizer step of the pass.
            whole: whether the pass holds all tokens of its completions. Where they come one by
                one, those are chosen that would be among completions of `horizon` tokens; a whole
                pass has them too.

        Raises:
            OptionError: the step's budget is not one token for each sequence.
        """
        if not self._rule.thins or not tokens.count:
            return tokens
        names = self._names(tokens, step)
        index: UInt64 = tokens.token_index.numpy().astype(np.uint64)
        every = np.uint64(self._rule.record_every_n_tokens)
        kept = (index + self._phase(names, step)) % every == 0
        kept &= self._draw(names, index, step) <= self._share()
        cap = self._cap(tokens)
        if cap is not None:
            kept[kept] = self._lowest(tokens, names, kept, step=step, cap=cap, whole=whole)
        return tokens.keep(torch.from_numpy(np.flatnonzero(kept)))

    def _names(self, tokens: Tokens, step: int) -> UInt64:
        """Return what each token's sequence is known by within the step."""
        if tokens.completion is not None:
            return tokens.completion.numpy().astype(np.uint64)
        if step != self._step:
            self._step, self._seen = step, self._first
        names: UInt64 = (tokens.rows.numpy() + self._seen).astype(np.uint64)
        self._seen += tokens.shape[0]
        return names

    def _cap(self, tokens: Tokens) -> int | None:
        if tokens.completion is not None and self._rule.completions_per_step is not None:
            return self._rule.tokens_per_completion
        return self._rule.allotment(tokens.shape[0] * self._forwards)

    def _share(self) -> np.uint64:
        return np.uint64(min(int(self._rule.token_share * 2.0**64), 2**64 - 1))

    def _phase(self, names: UInt64, step: int) -> UInt64:
        """Return by how much the positions of each token's sequence are shifted."""
        n = np.uint64(self._rule.record_every_n_tokens)
        # One key less than a token's draw, so that the two are independent.
        return _hashed(self._rule.sampling_seed, step, names) % n

    def _draw(self, names: UInt64, index: UInt64, step: int) -> UInt64:
        return _hashed(self._rule.sampling_seed, step, names, index)

    def _lowest(
        self,
        tokens: Tokens,
        names: UInt64,
        kept: NDArray[np.bool_],
        *,
        step: int,
        cap: int,
        whole: bool,
    ) -> NDArray[np.bool_]:
        """Return which of the kept tokens are among the `cap` with the lowest draw of theirs."""
        index: UInt64 = tokens.token_index.numpy().astype(np.uint64)[kept]
        draws, names = self._draw(names[kept], index, step), names[kept]
        if whole or self._horizon is None:
            return _place_within(names, draws) < cap
        known, place = np.unique(names, return_inverse=True)
        return draws <= self._bounds(known, self._horizon, step=step, cap=cap)[place]

    def _bounds(self, names: UInt64, horizon: int, *, step: int, cap: int) -> UInt64:
        """Return the `cap`-th lowest draw of each sequence, had it `horizon` tokens."""
        index = np.arange(horizon, dtype=np.uint64)
        table = self._draw(names[:, None], index[None, :], step)
        every = np.uint64(self._rule.record_every_n_tokens)
        outside = (index[None, :] + self._phase(names, step)[:, None]) % every != 0
        table[outside | (table > self._share())] = np.uint64(2**64 - 1)
        last = min(cap, table.shape[1]) - 1
        bounds: UInt64 = np.partition(table, last, axis=1)[:, last]
        return bounds


def _place_within(names: UInt64, draws: UInt64) -> NDArray[np.int64]:
    """Return for each token how many of its own sequence have a lower draw."""
    order = np.lexsort((draws, names))
    ordered = names[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(names) else order
    lengths = np.diff(np.r_[starts, len(names)])
    places = np.empty(len(names), np.int64)
    places[order] = np.arange(len(names)) - np.repeat(starts, lengths)
    return places


def _hashed(*keys: int | UInt64) -> UInt64:
    """Return 64 random-looking bits for each combination of keys."""
    state = np.zeros(1, np.uint64)
    return reduce(lambda bits, key: _mixed(bits + _word(key)), keys, state)


def _word(key: int | UInt64) -> UInt64:
    word = np.asarray(key if isinstance(key, np.ndarray) else [key % 2**64], np.uint64)
    return word + _INCREMENT


def _mixed(bits: UInt64) -> UInt64:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    mixed: UInt64 = bits ^ (bits >> np.uint64(31))
    return mixed

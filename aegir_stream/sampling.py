"""Which tokens of a run were recorded, as a rule that statistics can be corrected by.

A budget thins the tokens before they are looked at, in three steps: every nth position of a
completion, from a random first one; a share of what is left; at most so many of a completion.
Chance enters through a hash of ``(seed, step, completion, token_index)`` alone, so that all layers
and all passes over a completion have the same tokens, and a run that is repeated has them again.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct

from aegir_stream.errors import OptionError

__all__ = ["SamplingRule"]

_PROBABILITY = (
    "E[min(X, tokens_per_completion)] / (K * record_every_n_tokens), X ~ Binomial(K, token_share),"
    " K = ceil((length - token_index % record_every_n_tokens) / record_every_n_tokens)"
)


class SamplingRule(Struct, frozen=True, kw_only=True):
    """The budget of a recording. Without arguments, every token is recorded.

    Every token of a step has the chance that `probability` states, whatever its reward or its
    latents: divide by it to estimate what all tokens would have given.

    Attributes:
        record_every_n_tokens: of every n positions in a row, one is recorded; which one is drawn
            anew for every completion.
        token_share: share of those positions that are recorded, each drawn by itself.
        max_tokens_per_completion: at most so many, drawn from what is left.
        max_tokens_per_step: at most so many of a step over all ranks, split evenly among its
            completions; of each pass, where several are recorded.
        completions_per_step: among how many; `None` where that is not known before.
        sampling_seed: what makes another draw.

    Raises:
        OptionError: a value is out of range.
    """

    record_every_n_tokens: int = 1
    token_share: float = 1.0
    max_tokens_per_completion: int | None = None
    max_tokens_per_step: int | None = None
    completions_per_step: int | None = None
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.token_share <= 1:
            raise OptionError(
                f"Expected `token_share` above 0 and at most 1, got {self.token_share}",
                hint="Record every token with 1.0, one in ten with 0.1",
            )
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(
                    f"Expected `{name}` of at least 1, got {value}",
                    hint="To record no tokens, give no SAEs",
                )
        if self.completions_per_step is not None:
            self.allotment(self.completions_per_step)

    @property
    def thins(self) -> bool:
        """Whether any token may be left out."""
        capped = self.max_tokens_per_completion is not None or self.max_tokens_per_step is not None
        return capped or self.record_every_n_tokens > 1 or self.token_share < 1

    @property
    def tokens_per_completion(self) -> int | None:
        """The most tokens of one completion that are recorded, `None` for no bound."""
        if self.completions_per_step is None:
            return self.max_tokens_per_completion
        return self.allotment(self.completions_per_step)

    def allotment(self, completions: int) -> int | None:
        """Return how many tokens each of so many completions of a step may have recorded.

        Raises:
            OptionError: the step's budget is not one token for each.
        """
        if self.max_tokens_per_step is None:
            return self.max_tokens_per_completion
        if self.max_tokens_per_step < completions:
            raise OptionError(
                f"Expected `max_tokens_per_step` of at least {completions}, one for each completion"
                f" of a step, got {self.max_tokens_per_step}",
                hint="Raise it, or record a share of the tokens with token_share",
            )
        each = self.max_tokens_per_step // completions
        return min(each, self.max_tokens_per_completion or each)

    def probability(self, token_index: int, *, length: int) -> float:
        """Return the chance that a token was recorded.

        Args:
            token_index: its position in its completion.
            length: tokens of the completion; under `decode`, the most that it might have had.
        """
        n = self.record_every_n_tokens
        candidates = max(1, math.ceil((length - token_index % n) / n))
        cap = self.tokens_per_completion
        if cap is None or cap >= candidates:
            return self.token_share / n
        return _expected_min(candidates, self.token_share, cap) / (candidates * n)

    def describe(self) -> dict[str, Any]:
        """Return the rule as the log tells it; `from_description` reads it back."""
        return {
            **msgspec.to_builtins(self),
            "tokens_per_completion": self.tokens_per_completion,
            "drawn_by": ["sampling_seed", "step", "completion", "token_index"],
            "probability": _PROBABILITY if self.thins else "1",
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> SamplingRule:
        """Return the rule that a log or a checkpoint's sidecar describes.

        Raises:
            msgspec.ValidationError: it describes none.
        """
        return msgspec.convert(description, cls)


_COUNTS = (
    "record_every_n_tokens",
    "max_tokens_per_completion",
    "max_tokens_per_step",
    "completions_per_step",
)


def _expected_min(trials: int, chance: float, cap: int) -> float:
    """Return the mean of min(X, cap) of a binomial X, from ``cap - sum_j<cap (cap - j) P(X = j)``.

    In logarithms, since the chance of no success in many trials is no float.
    """
    if chance >= 1:
        return float(min(trials, cap))
    terms = ((cap - j) * math.exp(_log_binomial(trials, chance, j)) for j in range(cap))
    return cap - math.fsum(terms)


def _log_binomial(trials: int, chance: float, successes: int) -> float:
    failures = trials - successes
    ways = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(failures + 1)
    return ways + successes * math.log(chance) + failures * math.log1p(-chance)

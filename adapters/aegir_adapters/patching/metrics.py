"""What is measured, from the logits of the last rows.

With p the model's distribution at a row, and the answer's tokens t forced one after the other:

`logprob`
    ``sum over t of log p(t)``.
`logit_diff`
    ``logprob(answer) - logprob(foil)``. Of single tokens that is the difference of two logits.
`recovered`, `recovered_logit_diff`
    ``(x - corrupt) / (clean - corrupt)`` of `logprob` and of `logit_diff`: 1 where the patch brings
    the clean value back, 0 where it changes nothing. Undefined where clean and corrupt are equal,
    or where the source has no prompt.
`kl`
    ``sum over t of KL(reference || patched)`` in nats, where the reference is the clean run, or the
    unpatched one where the source has no prompt.
`rank`
    How many tokens the model finds more probable than the answer's: 0 where it comes first. Of
    several tokens the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final, Literal, get_args

import msgspec
from torch import Tensor

__all__ = [
    "METRICS",
    "RAW",
    "UNSLOPED",
    "MetricName",
    "Reference",
    "raw_metrics",
    "recovered",
    "score",
]

MetricName = Literal["logprob", "logit_diff", "recovered", "recovered_logit_diff", "kl", "rank"]

METRICS: Final[tuple[MetricName, ...]] = get_args(MetricName)

RAW: Final[dict[MetricName, MetricName]] = {
    "recovered": "logprob",
    "recovered_logit_diff": "logit_diff",
}
"""What each normalised metric is made of."""

UNSLOPED: Final[dict[MetricName, str]] = {"rank": "it counts tokens, and steps"}
"""Metrics that have no gradient, and why."""

SMALLEST_SPREAD: Final = 1e-9
"""Below this, clean and corrupt count as equal."""


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What the logits are compared with.

    Attributes:
        answer: the answer's tokens.
        foil: the foil's tokens.
        log_probs: distributions that `kl` refers to. Shape (reads, vocabulary), float32.
    """

    answer: Tensor
    foil: Tensor | None
    log_probs: Tensor | None


def score(
    names: tuple[MetricName, ...], reference: Reference, logits: list[Tensor]
) -> dict[MetricName, Tensor]:
    """Return raw metrics: of a normalised metric, what it is made of.

    Args:
        names: which; each once.
        reference: tokens and distributions.
        logits: of the lanes that `lanes_of` returned. Shape (cells, reads, vocabulary) each.

    Returns:
        By name of the raw metric, shape (cells,), float64.
    """
    lanes = [_Lane(one) for one in logits]
    found: dict[MetricName, Tensor] = {}
    for name in raw_metrics(names):
        found[name] = _RAW_METRICS[name](reference, lanes).double()
    return found


def raw_metrics(names: Sequence[MetricName]) -> tuple[MetricName, ...]:
    """Return what these metrics are made of, each once, in their order."""
    return tuple(dict.fromkeys(RAW.get(name, name) for name in names))


def recovered(value: float, *, clean: float | None, corrupt: float) -> float | None:
    """Return which share of the way from corrupt to clean a value has gone, `None` if undefined."""
    if clean is None or not abs(clean - corrupt) > SMALLEST_SPREAD:
        return None
    return (value - corrupt) / (clean - corrupt)


class _Lane:
    """Logits of one lane."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @cached_property
    def log_probs(self) -> Tensor:
        """Made once for all metrics, and not at all for the one that takes two columns of logits.

        In float32: half precision would round a log-probability away.
        """
        return self.logits.float().log_softmax(-1)


def _taken(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Return the values of forced tokens. Shape (cells, reads)."""
    return log_probs.gather(-1, tokens[None, :, None].expand(len(log_probs), -1, 1))[..., 0]


def _logprob(reference: Reference, lanes: list[_Lane]) -> Tensor:
    return _taken(lanes[0].log_probs, reference.answer).sum(-1)


def _logit_diff(reference: Reference, lanes: list[_Lane]) -> Tensor:
    assert reference.foil is not None  # noqa: S101 - a spec without foil is refused
    if len(lanes) == 1:
        # Two columns: the normaliser is the same in both and would only round.
        last = lanes[0].logits[:, -1]
        return last[:, reference.answer[0]].float() - last[:, reference.foil[0]].float()
    foil = _taken(lanes[1].log_probs, reference.foil)
    return _logprob(reference, lanes) - foil.sum(-1)


def _kl(reference: Reference, lanes: list[_Lane]) -> Tensor:
    assert reference.log_probs is not None  # noqa: S101 - the sweep gives one if asked for
    there, log_probs = reference.log_probs[None], lanes[0].log_probs
    return (there.exp() * (there - log_probs)).sum((-1, -2))


def _rank(reference: Reference, lanes: list[_Lane]) -> Tensor:
    log_probs = lanes[0].log_probs
    own = _taken(log_probs, reference.answer)[..., None]
    return (log_probs > own).sum(-1).max(-1).values


_RAW_METRICS: Final = {"logprob": _logprob, "logit_diff": _logit_diff, "kl": _kl, "rank": _rank}

"""Records as arrays: one entry for each latent that fired on a token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aegir_stream.events import SAELogRecord

__all__ = ["Floats", "Integers", "Pairs", "pairs_of"]

Integers: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


class Pairs(NamedTuple):
    """The activations of some records that count: finite, and other than 0.

    Attributes:
        records: (n,) position of the record that each stands in.
        latents: (n,) which latent.
        activations: (n,) its activation, SAE units.
        non_finite: how many were left out because they are no finite number.
    """

    records: Integers
    latents: Integers
    activations: Floats
    non_finite: int


def pairs_of(records: Sequence[SAELogRecord]) -> Pairs:
    """Return the activations of records, in their order."""
    counts = np.fromiter((len(r.top_feature_indices) for r in records), np.int64, len(records))
    total = int(counts.sum())
    latents = np.fromiter(
        chain.from_iterable(r.top_feature_indices for r in records), np.int64, total
    )
    activations = np.fromiter(
        chain.from_iterable(r.top_feature_activations for r in records), np.float64, total
    )
    finite = np.isfinite(activations)
    kept = finite & (activations != 0)
    positions = np.repeat(np.arange(len(records)), counts)
    non_finite = total - int(np.count_nonzero(finite))
    return Pairs(positions[kept], latents[kept], activations[kept], non_finite)

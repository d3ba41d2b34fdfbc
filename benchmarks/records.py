"""Seeded records in the shape of a post-training step."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from aegir_adapters.trainer.columns import SAEColumns

__all__ = ["LATENTS", "diverged", "sae_columns"]

LATENTS: Final = 65_536


def sae_columns(*, tokens: int, layers: int, k: int = 16, latents: int = LATENTS) -> SAEColumns:
    """Return one step: Zipf latents, log-normal activations in descending order.

    Completions are 64 tokens long; a record is one token at one layer.
    """
    rng = np.random.default_rng(7)
    records = tokens * layers
    ids = np.minimum(rng.zipf(1.2, (records, k)), 2**31) * 2_654_435_761 % latents
    activations = np.sort(rng.lognormal(0.5, 1.0, (records, k)).astype(np.float32))[:, ::-1]
    token = np.arange(tokens, dtype=np.int32)
    return SAEColumns(
        step=120,
        token_index=np.tile(token % 64, layers),
        layer_index=np.repeat(np.arange(layers, dtype=np.int32) * 10, tokens),
        indices=ids.astype(np.int32),
        activations=np.ascontiguousarray(activations),
        reconstruction_loss=rng.gamma(4.0, 12.0, records).astype(np.float32),
        completion=np.tile(token // 64, layers),
    )


def diverged(columns: SAEColumns) -> SAEColumns:
    """Return the same step after the policy blew up: nothing but NaN."""
    return msgspec.structs.replace(
        columns,
        activations=np.full_like(columns.activations, np.nan),
        reconstruction_loss=np.full_like(columns.reconstruction_loss, np.nan),
    )

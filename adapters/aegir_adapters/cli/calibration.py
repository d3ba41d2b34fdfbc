"""Timings of a recording's parts on this machine, at sizes that take a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from aegir_adapters.cost import Calibration, Probe, calibrated
from aegir_adapters.sae import TopKSAE, Weights
from aegir_adapters.trainer.columns import ColumnPool
from aegir_adapters.trainer.health import HealthMeter
from aegir_adapters.trainer.rows import RowEncoder
from aegir_adapters.trainer.tokens import completion_tokens

__all__ = ["calibrate"]

_SIZES = ((128, 4096), (128, 16384), (512, 16384))
"""(d_model, n_latents): a small SAE, one with more latents, and one that is wider beside."""

_BATCH = (8, 32)
_ACTIVE = 32
_RECORDS = 4096
_REPEATS = 5


def calibrate(*, top_k: int) -> Calibration:
    """Return what reading a token and writing a record take here, on the CPU."""
    top_k = min(top_k, _ACTIVE)
    probes = [_probe(d_model, n_latents, top_k) for d_model, n_latents in _SIZES]
    few = _reading(*_SIZES[0], top_k, batch=(1, 1))
    return calibrated(probes, forward_s=_shortest(few), record_s=_writing(top_k))


def _probe(d_model: int, n_latents: int, top_k: int) -> Probe:
    seconds = _shortest(_reading(d_model, n_latents, top_k, batch=_BATCH))
    tokens = _BATCH[0] * _BATCH[1]
    return Probe(d_model=d_model, n_latents=n_latents, token_s=seconds / tokens)


def _reading(
    d_model: int, n_latents: int, top_k: int, *, batch: tuple[int, int]
) -> Callable[[], None]:
    """Return what a hook does with a forward, from choosing tokens to the health of the SAE."""
    draws = torch.Generator().manual_seed(0)
    shapes = ((d_model, n_latents), (n_latents,), (n_latents, d_model), (d_model,))
    sae = TopKSAE(Weights(*(torch.randn(s, generator=draws) for s in shapes)), k=_ACTIVE)
    hidden = torch.randn(*batch, d_model, generator=draws)
    mask, meter = torch.ones(batch, dtype=torch.bool), HealthMeter(0)

    def read() -> None:
        x = completion_tokens(mask, offset=0, completion=None).select(hidden)
        meter.add(x, sae.top(x, k=top_k))

    return read


def _writing(top_k: int) -> float:
    """Return the seconds that a record's line takes."""
    draws = np.random.default_rng(0)
    columns, _ = ColumnPool().take(_RECORDS, top_k, step=1)
    columns.token_index[:] = np.arange(_RECORDS) % 512
    columns.layer_index[:] = 0
    columns.indices[:] = draws.integers(0, 16384, columns.indices.shape)
    columns.activations[:] = draws.exponential(1.0, columns.activations.shape)
    columns.reconstruction_loss[:] = draws.exponential(1.0, _RECORDS)
    if columns.completion is not None:
        columns.completion[:] = np.arange(_RECORDS) // 512
    encoder = RowEncoder()
    return _shortest(lambda: encoder.encode(columns)) / _RECORDS


def _shortest(action: Callable[[], object]) -> float:
    """Return the seconds of the shortest of a few calls: the one that was disturbed least."""
    action()
    return min(_seconds(action) for _ in range(_REPEATS))


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began

"""How well an SAE still fits the moving policy, accumulated by tensor operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from msgspec import Struct
from torch import Tensor

from aegir_adapters.trainer.transfer import Arrival, to_host
from aegir_stream.events import SAEHealth

if TYPE_CHECKING:
    from aegir_adapters.trainer.autoencoder import TopLatents

__all__ = ["HealthMeter", "HealthReading"]


class HealthReading(Struct, frozen=True, kw_only=True, eq=False):
    """One layer's health over one step, on its way to host memory.

    Attributes:
        layer_index: hooked decoder layer.
        values: float32 (4,): fvu, l0, dead share, norm drift.
        copied: the point in the device's work at which they are in host memory.
    """

    layer_index: int
    values: Tensor
    copied: Arrival

    def read(self) -> SAEHealth:
        """Return the numbers; waits for the device, so not for the training thread."""
        self.copied.wait()
        fvu, l0, dead_share, norm_drift = self.values.tolist()
        return SAEHealth(
            layer_index=self.layer_index,
            fvu=fvu,
            l0=l0,
            dead_share=dead_share,
            norm_drift=norm_drift,
        )


class HealthMeter:
    """Accumulates one layer's health; the first step it sees is its reference.

    The fraction of variance unexplained is ``sum ||x - SAE(x)||^2 / sum ||x - mean||^2`` with the
    variance per token of that first step. The variance is merged from micro-batch to micro-batch
    (Chan, Golub and LeVeque 1979, eq. 2.1), since a difference of large sums would lose it.

    Args:
        layer_index: hooked decoder layer.
    """

    def __init__(self, layer_index: int) -> None:
        self.layer_index = layer_index
        self._fired: Tensor | None = None
        self._reference: tuple[Tensor, Tensor] | None = None
        self._clear()

    def _clear(self) -> None:
        self._tokens = 0
        self._sums: Tensor | None = None
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, x: Tensor, top: TopLatents) -> None:
        """Count tokens x, float32 (n, d_model), and what the SAE made of them."""
        norms = torch.linalg.vector_norm(x, dim=1).sum()
        sums = torch.stack([top.reconstruction_loss.float().sum(), top.l0.float().sum(), norms])
        self._sums = sums if self._sums is None else self._sums + sums
        self._fired = top.fired if self._fired is None else self._fired | top.fired
        if self._reference is None:
            self._merge_scatter(x)
        self._tokens += x.shape[0]

    def _merge_scatter(self, x: Tensor) -> None:
        mean, n, seen = x.mean(0), x.shape[0], self._tokens
        scatter = (x - mean).square().sum()
        if self._mean is None or self._scatter is None:
            self._mean, self._scatter = mean, scatter
            return
        delta = mean - self._mean
        between = delta.square().sum() * (n * seen / (n + seen))
        self._scatter = self._scatter + scatter + between
        self._mean = self._mean + delta * (n / (n + seen))

    def close_step(self) -> HealthReading | None:
        """Return the step's reading and begin the next; `None` if no token was seen."""
        if self._sums is None or self._fired is None:
            return None
        loss, l0, norm = (self._sums / self._tokens).unbind()
        if self._reference is None and self._scatter is not None:
            self._reference = (self._scatter / self._tokens, norm)
        variance, first_norm = self._reference or (loss, norm)
        dead_share = 1 - self._fired.float().mean()
        values = torch.stack([loss / variance, l0, dead_share, norm / first_norm - 1])
        self._clear()
        host = to_host(values)
        return HealthReading(layer_index=self.layer_index, values=host, copied=Arrival.of([values]))

"""How well an SAE still fits the moving policy, accumulated by tensor operations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from aegir_adapters.trainer.transfer import Arrival, to_host
from aegir_stream.events import SAEHealth

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegir_adapters.trainer.autoencoder import TopLatents

__all__ = ["HealthMeter", "HealthReading", "HealthReference", "references_in"]


class HealthReference(Struct, frozen=True, kw_only=True):
    """What the health of later steps is measured against: the run's first step, at one layer.

    Attributes:
        variance: ``||x - mean||^2``, mean over its tokens.
        norm: ``||x||``, mean over its tokens.
    """

    variance: float
    norm: float


class HealthReading(Struct, frozen=True, kw_only=True, eq=False):
    """One layer's health over one step, on its way to host memory.

    Attributes:
        layer_index: hooked decoder layer.
        values: float32 (6,): fvu, l0, dead share, norm drift, and the reference's variance and
            norm.
        copied: the point in the device's work at which they are in host memory.
    """

    layer_index: int
    values: Tensor
    copied: Arrival

    def read(self) -> SAEHealth:
        """Return the numbers; waits for the device, so not for the training thread."""
        self.copied.wait()
        fvu, l0, dead_share, norm_drift, _, _ = self.values.tolist()
        return SAEHealth(
            layer_index=self.layer_index,
            fvu=fvu,
            l0=l0,
            dead_share=dead_share,
            norm_drift=norm_drift,
        )

    def reference(self) -> HealthReference:
        """Return what the numbers were measured against; waits as `read` does."""
        self.copied.wait()
        variance, norm = self.values[-2:].tolist()
        return HealthReference(variance=variance, norm=norm)


class HealthMeter:
    """Accumulates one layer's health; its reference is given, or the first step it sees.

    The fraction of variance unexplained is ``sum ||x - SAE(x)||^2 / sum ||x - mean||^2`` with the
    variance per token of that first step. The variance is merged from micro-batch to micro-batch
    (Chan, Golub and LeVeque 1979, eq. 2.1), since a difference of large sums would lose it.

    Args:
        layer_index: hooked decoder layer.
        reference: that of the run, where it began before.
    """

    def __init__(self, layer_index: int, *, reference: HealthReference | None = None) -> None:
        self.layer_index = layer_index
        self._fired: Tensor | None = None
        self._given = reference
        self._reference: tuple[Tensor, Tensor] | None = None
        self._last: HealthReading | None = None
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
        if self._reference is None and self._given is None:
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
        variance, first_norm = self._reference = self._reference or self._first(norm)
        dead_share = 1 - self._fired.float().mean()
        figures = [loss / variance, l0, dead_share, norm / first_norm - 1, variance, first_norm]
        values = torch.stack(figures)
        self._clear()
        host = to_host(values)
        self._last = HealthReading(
            layer_index=self.layer_index, values=host, copied=Arrival.of([values])
        )
        return self._last

    def reference(self) -> HealthReference | None:
        """Return what is measured against, `None` before a step was; waits as a reading does."""
        return self._last.reference() if self._last is not None else self._given

    def _first(self, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Return the variance and the norm that are measured against, on the device."""
        if self._scatter is not None:
            return self._scatter / self._tokens, norm
        given = self._given or HealthReference(variance=math.nan, norm=math.nan)
        # A fill with a number that the host knows: nothing waits for it.
        return norm.new_full((), given.variance), norm.new_full((), given.norm)


def references_in(metadata: Mapping[str, Any]) -> dict[int, HealthReference]:
    """Return the reference of each layer that a checkpoint's sidecar holds.

    Raises:
        msgspec.ValidationError: it is damaged.
    """
    return msgspec.convert(
        metadata.get("health_reference") or {}, dict[int, HealthReference], strict=False
    )

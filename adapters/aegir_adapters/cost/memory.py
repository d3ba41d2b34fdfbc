"""How much memory a recording takes on one process."""

from __future__ import annotations

from msgspec import Struct

from aegir_adapters.cost.disk import record_bytes
from aegir_adapters.cost.load import CaptureLoad

__all__ = ["MemoryCost", "memory_cost"]

_FLOAT32 = 4
_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 24}
"""Pre-activations that `aegir_adapters.sae` holds at once."""

_CHUNK_COPIES = 9
"""What is made of a chunk on its way to a code, at the most: measured on a CPU, 2 for TopK, 6 for
standard and JumpReLU, 9 for gated SAEs."""

_SEGMENT_PIECE = 1 << 20


class MemoryCost(Struct, frozen=True, kw_only=True):
    """Bytes, beside what training takes.

    Attributes:
        saes: the SAEs, there all the time, on the device.
        transient: residuals and codes while a layer is read, on the device.
        held: records of a step on their way to the log, in host memory; the queue is bounded by
            `queue_bytes` beside that.
        written: lines while they are written, in host memory.
    """

    saes: int
    transient: int
    held: int
    written: int

    @property
    def total(self) -> int:
        """Bytes at the peak, on a machine whose device is its host."""
        return self.saes + self.transient + self.held + self.written


def memory_cost(load: CaptureLoad, *, device: str = "cpu") -> MemoryCost:
    """Return what a recording takes; `device` is `cpu` or `cuda`."""
    per_forward = load.recorded_tokens / load.forwards
    codes = min(_CHUNK_ELEMENTS[device], max(per_forward, 1) * load.n_latents)
    described = per_forward * (2 * load.top_k + 2)
    transient = _FLOAT32 * (per_forward * load.d_model + _CHUNK_COPIES * codes + described)
    words = load.records * (2 * load.top_k + 3)
    return MemoryCost(
        saes=load.layers * _sae_bytes(load.d_model, load.n_latents),
        transient=round(transient),
        held=round(_FLOAT32 * words),
        written=round(record_bytes(load) * per_forward * load.layers) + _SEGMENT_PIECE,
    )


def _sae_bytes(width: int, latents: int) -> int:
    """Return the size of one SAE: encoder and decoder, two biases of latents, one of the width."""
    return _FLOAT32 * (2 * width * latents + 2 * latents + width)

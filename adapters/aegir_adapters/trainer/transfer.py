"""Copies from a device to host memory that the training thread starts and does not wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["Arrival", "to_host"]


def to_host(tensor: Tensor) -> Tensor:
    """Start a copy to host memory; its content is there after an `Arrival.of` made later.

    On CUDA into pinned memory, which PyTorch keeps and uses again. A tensor of the CPU is
    returned as it is.
    """
    if tensor.device.type != "cuda":
        return tensor.detach().cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor.detach(), non_blocking=True)


class Arrival(Struct, frozen=True):
    """A point in the work of the devices involved.

    Attributes:
        events: one for each CUDA device.
    """

    events: tuple[torch.cuda.Event, ...] = ()

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Arrival:
        """Mark the present point in the work of the devices that hold the tensors."""
        devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
        return cls(tuple(torch.cuda.current_stream(d).record_event() for d in devices))

    def wait(self) -> None:
        """Return when the devices have come to that point."""
        for event in self.events:
            event.synchronize()

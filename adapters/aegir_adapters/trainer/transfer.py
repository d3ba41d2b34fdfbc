"""Copies between host and device that the training thread starts and does not wait for.

What the training thread enqueues stays in order with its own work only where it must: indices go
up on the stream that reads them. What comes down does so on a stream of its own, so that the
trainer's next kernel waits for no copy; whoever reads it waits for an `Arrival` first.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["Arrival", "fetched", "to_device", "to_host"]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device, for work that is enqueued there from now on.

    On CUDA through pinned memory: a copy from pageable memory waits for the device.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Start a copy to host memory; its content is there after an `Arrival.of` made later.

    On CUDA into pinned memory, which PyTorch keeps and uses again. A tensor of the CPU is
    returned as it is.
    """
    tensor = tensor.detach()
    if tensor.device.type != "cuda":
        return tensor.cpu()
    side = _side_stream(tensor.device)
    side.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(side):
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
    # Its memory must not be used again before the copy, which its own stream knows nothing of.
    tensor.record_stream(side)
    return host


def fetched(**tensors: Tensor) -> dict[str, Tensor]:
    """Return copies of tensors in host memory, by name, after waiting once for all of them.

    For moments at which the device has nothing to do: everything that was started before arrives
    as well.
    """
    copies = {name: to_host(tensor) for name, tensor in tensors.items()}
    Arrival.of(tensors.values()).wait()
    return copies


class Arrival(Struct, frozen=True):
    """A point in the copies from the devices involved.

    Attributes:
        events: one for each CUDA device.
    """

    events: tuple[torch.cuda.Event, ...] = ()

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Arrival:
        """Mark the present point in the copies from the devices that hold the tensors."""
        devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
        return cls(tuple(_mark(device) for device in devices))

    def wait(self) -> None:
        """Return when the copies have come to that point."""
        for event in self.events:
            event.synchronize()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that a device's copies run on, one for the whole process."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _mark(device: torch.device) -> torch.cuda.Event:
    # Blocking: the thread that waits for it sleeps meanwhile, where it would else spin.
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    _side_stream(device).record_event(event)
    return event

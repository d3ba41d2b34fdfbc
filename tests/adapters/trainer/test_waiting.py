"""Nothing of ours waits for the device while a trainer trains.

There is a GPU on few machines that run this, so three things are shown instead of one: no code on
the training thread asks a device tensor for a value, in a real step; every operation of the path
works on tensors without values; and the copies are enqueued on the streams and in the order that
makes waiting needless.
"""

from __future__ import annotations

import contextlib
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aegir_adapters.sae import GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE, Weights
from aegir_adapters.trainer import SidecarCallback, health, loss_pass, records, transfer
from aegir_adapters.trainer.capture import Capture
from aegir_adapters.trainer.columns import ColumnPool
from aegir_adapters.trainer.records import PassRecords
from aegir_adapters.trainer.rows import RowEncoder
from aegir_adapters.trainer.tokens import completion_tokens

from .tiny import TOP_K, grpo_trainer, saes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from aegir_adapters.trainer.autoencoder import SparseAutoencoder

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::nonzero_static",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
}
"""Operations whose result, or its size, the host has to know."""


def on_host(tensor: Tensor) -> Tensor:
    """Mark a tensor as one that lies in host memory, whatever the device is."""
    tensor.lies_on_host = True  # type: ignore[attr-defined]
    return tensor


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that would wait for a device.

    There is only the CPU here. What comes from the trainer counts as the device's, and so does what
    is computed from it; what we make ourselves is the host's.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.where: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and judge it."""
        given = [x for x in tree_leaves([args, kwargs or {}]) if isinstance(x, torch.Tensor)]
        host = all(getattr(tensor, "lies_on_host", False) for tensor in given)
        name = func._schema.name + ("." + func._overloadname).removesuffix(".default")
        boolean = func._schema.name == "aten::index" and any(t.dtype == torch.bool for t in given)
        self.operations += not host
        if not host and (name in WAITING or func._schema.name in WAITING or boolean):
            self.found.append(name)
            self.where += [line for line in traceback.format_stack() if "/trainer/" in line][-3:-1]
        result = func(*args, **(kwargs or {}))
        if host:
            for part in tree_leaves(result):
                if isinstance(part, torch.Tensor):
                    on_host(part)
        return result


def mark_ours(arguments: Any) -> None:
    """Mark what we have added to the trainer's batch: it was made on the host and stays there."""
    if isinstance(arguments, dict):
        for name, value in arguments.items():
            if str(name).startswith("aegir_"):
                on_host(value)
        mark_ours(tuple(arguments.values()))
    elif isinstance(arguments, tuple):
        for value in arguments:
            mark_ours(value)


class Watched(SidecarCallback):
    """A callback whose own code runs under watch, on the training thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.waits = Waits()

    def _guarded(self, action: Any, *args: Any, **kwargs: Any) -> Any:
        mark_ours(args)
        with self.waits:
            return super()._guarded(action, *args, **kwargs)


def copied(tensor: Tensor) -> Tensor:
    """Stand in for a copy that was started and is there by the time that it is looked at."""
    return on_host(tensor.detach().clone())


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every copy to host memory counted as one."""
    for module in (health, loss_pass, records, transfer):
        if hasattr(module, "to_host"):
            monkeypatch.setattr(module, "to_host", copied)


@pytest.mark.usefixtures("copies")
def test_a_real_step_asks_no_tensor_of_the_device_for_a_value(tmp_path: Path) -> None:
    """Choosing tokens, reading, health, records, reports: none of it waits."""
    trainer = grpo_trainer(tmp_path, gradient_accumulation_steps=2)
    on_host(trainer.reward_weights)  # where TRL keeps it
    callback = Watched(sae=saes(), top_k=TOP_K, token_share=0.5)
    trainer.add_callback(callback)
    callback.attach(trainer)
    trainer.train()
    assert callback.statistics().errors == 0, callback.statistics().last_error
    assert callback.waits.operations > 50
    assert callback.waits.found == [], "".join(callback.waits.where)


def test_the_watch_notices_what_waits() -> None:
    """A value, a boolean index and a size that depends on values are each found."""
    device, host = torch.ones(3), on_host(torch.ones(3))
    waits = Waits()
    with waits:
        float(host.sum())
        host[host > 0]
        assert waits.found == []
        float(device.sum())
        device[device > 0]
        (device + host).nonzero()
    assert waits.found == ["aten::_local_scalar_dense", "aten::index.Tensor", "aten::nonzero"]


def autoencoders() -> Iterator[SparseAutoencoder]:
    """Yield an SAE of each architecture."""
    draws = torch.Generator().manual_seed(0)
    shapes = ((8, 64), (64,), (64, 8), (8,))
    weights = Weights(*(torch.randn(shape, generator=draws) for shape in shapes))
    yield TopKSAE(weights, k=4)
    yield StandardSAE(weights)
    yield JumpReLUSAE(weights, threshold=weights.b_enc.abs())
    yield GatedSAE(weights, b_mag=weights.b_enc, r_mag=weights.b_enc)


@pytest.mark.parametrize("sae", list(autoencoders()), ids=lambda sae: sae.architecture)
def test_reading_works_on_tensors_without_values(
    sae: SparseAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device whatever asks for a value raises: nothing does, until the copies."""
    started: list[tuple[int, ...]] = []

    def to_host(tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta":
            started.append(tuple(tensor.shape))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    for module in (health, records):
        monkeypatch.setattr(module, "to_host", to_host)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # has none
    layers = torch.nn.ModuleList([torch.nn.Linear(8, 8, device="meta") for _ in range(2)])
    reading = Capture({0: sae, 1: sae}, top_k=3, guard=call)
    reading.hook(layers)
    mask = torch.ones(2, 5, dtype=torch.bool)
    reading.arm(completion_tokens(mask, offset=1, completion=torch.arange(2)), step=1)
    hidden = torch.empty(2, 6, 8, device="meta")
    for layer in layers:
        hidden = layer(hidden)
    captured = reading.disarm()
    assert captured is not None
    assert captured.latents[0].indices.device.type == "meta"
    batch = PassRecords.of(captured, pool=ColumnPool(), encoder=RowEncoder())
    assert batch.records == 20
    assert len(reading.close_step()) == 2
    assert started == [(10, 3), (10, 3), (10,)] * 2 + [(6,)] * 2
    assert len(captured.tokens.places) == 1, "the indices are copied once for all layers"


def call(action: Any, *args: Any) -> Any:
    """Stand in for the guard, without keeping errors."""
    return action(*args)


class FakeStream:
    """A CUDA stream that writes down what it is told."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self._told = name, told

    def wait_stream(self, other: FakeStream) -> None:
        """Begin behind what the other has to do."""
        self._told.append(f"{self.name} waits for {other.name}")

    def record_event(self, event: FakeEvent) -> None:
        """Mark the present point."""
        self._told.append(f"{event.name} on {self.name}")


class FakeEvent:
    """A CUDA event that writes down what it is told."""

    def __init__(self, told: list[str], *, blocking: bool) -> None:
        self.name, self._told = f"event (blocking={blocking})", told

    def synchronize(self) -> None:
        """Have the calling thread wait."""
        self._told.append(f"thread waits for {self.name}")


class FakeTensor:
    """A tensor of a device that is not there."""

    def __init__(self, told: list[str], *, device: str = "cuda:0") -> None:
        self.device, self.shape, self.dtype = torch.device(device), (3,), torch.float32
        self._told = told

    def detach(self) -> FakeTensor:
        """Return itself."""
        return self

    def record_stream(self, stream: FakeStream) -> None:
        """Keep the memory until the stream is done with it."""
        self._told.append(f"memory kept for {stream.name}")

    def copy_(self, source: FakeTensor, *, non_blocking: bool) -> FakeTensor:
        """Start a copy."""
        self._told.append(f"{self.device.type} <- {source.device.type} ({non_blocking=})")
        return self

    def pin_memory(self) -> FakeTensor:
        """Return a copy in pinned memory."""
        self._told.append("pinned")
        return self

    def to(self, device: torch.device, *, non_blocking: bool = False) -> FakeTensor:
        """Start a copy."""
        self._told.append(f"{device.type} <- {self.device.type} ({non_blocking=})")
        return self


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Give what stand-ins for CUDA are told."""
    told: list[str] = []
    side, compute = FakeStream("side", told), FakeStream("compute", told)

    @contextlib.contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        told.append(f"on {stream.name}")
        yield
        told.append(f"off {stream.name}")

    def empty(*_: Any, pin_memory: bool, **__: Any) -> FakeTensor:
        told.append(f"host memory ({pin_memory=})")
        return FakeTensor(told, device="cpu")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: compute)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "Event", partial(FakeEvent, told))
    monkeypatch.setattr(torch, "empty", empty)
    transfer._side_stream.cache_clear()
    yield told
    transfer._side_stream.cache_clear()


def test_a_copy_to_the_host_runs_beside_the_trainers_stream(told: list[str]) -> None:
    """The side stream waits for what made the tensor; the trainer's waits for nothing."""
    tensor: Any = FakeTensor(told)
    transfer.to_host(tensor)
    arrival = transfer.Arrival.of([tensor])
    assert told == [
        "side waits for compute",
        "on side",
        "host memory (pin_memory=True)",
        "cpu <- cuda (non_blocking=True)",
        "off side",
        "memory kept for side",
        "event (blocking=True) on side",
    ]
    arrival.wait()
    assert told[-1] == "thread waits for event (blocking=True)"


def test_indices_go_up_through_pinned_memory(told: list[str]) -> None:
    """A copy from pageable memory would wait for the device."""
    indices: Any = FakeTensor(told, device="cpu")
    transfer.to_device(indices, torch.device("cuda:0"))
    assert told == ["pinned", "cuda <- cpu (non_blocking=True)"]


def test_several_tensors_are_fetched_with_one_wait(told: list[str]) -> None:
    """All copies are started before the only wait."""
    one, other = (FakeTensor(told) for _ in range(2))
    transfer.fetched(one=one, other=other)  # type: ignore[arg-type]
    waits = [line for line in told if line.startswith("thread")]
    assert len(waits) == 1
    assert told[-1] == waits[0]

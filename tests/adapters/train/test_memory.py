from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.trainer import tiny
from aegir_adapters.sae.autoencoder import GPU_CHUNK_ELEMENTS
from aegir_adapters.train import Workload, estimate_memory, load_preset
from aegir_adapters.train.estimates import disk_bytes, log_bytes_per_step, memory_of, workload_of
from aegir_adapters.train.memory import ENCODE_BYTES, lora_parameters, sae_bytes
from aegir_adapters.train.model_files import read_model_files

from .small import SAVED, top_k_sae, write_preset

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SMALL = Workload(
    parameters=1000,
    trainable=1000,
    weight_bytes=2,
    trainable_bytes=2,
    layers=2,
    width=10,
    batch=1,
    generated=1,
    prompt_tokens=3,
    completion_tokens=5,
    hooked=1,
    latents=20,
    accelerator=False,
)


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes that tensors hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_gradients_and_adam_are_exact(saved: Path, tmp_path: Path, dtype: str) -> None:
    """What the files say, multiplied out, is what torch holds after a real step."""
    policy = tiny.model().to(getattr(torch, dtype))
    optimizer = torch.optim.AdamW(policy.parameters())
    policy(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    optimizer.step()
    states = (value for state in optimizer.state.values() for value in state.values())

    text = SAVED.replace('dtype = "float32"', f'dtype = "{dtype}"')
    preset = load_preset(str(write_preset(tmp_path, text)))
    estimate = memory_of(preset, read_model_files(saved / "model"), hooked=2)
    assert estimate is not None
    assert estimate.weights == size_of(policy.parameters())
    assert estimate.gradients == size_of(p.grad for p in policy.parameters() if p.grad is not None)
    assert estimate.optimizer == size_of(states)


def test_saes_are_exact() -> None:
    """An SAE takes in memory what the formula says."""
    sae = top_k_sae(seed=0, d_model=24, n_latents=96)
    assert sae_bytes(24, 96) == size_of(sae.buffers())


def test_a_chunk_of_codes_is_what_the_saes_take() -> None:
    """The estimate follows the SAEs' own bound."""
    assert 2 * 4 * GPU_CHUNK_ELEMENTS == ENCODE_BYTES


def test_adapters_leave_the_weights_without_gradients() -> None:
    """Rank times inputs and outputs of each matrix is trained, and nothing else."""
    assert lora_parameters(((3, 5), (5, 2)), rank=4) == 4 * (8 + 7)
    preset = load_preset("9b-local-l0-50")
    estimate = memory_of(preset, None, hooked=2)
    assert estimate is not None
    assert estimate.weights == 2 * 9_000_000_000
    assert estimate.gradients < estimate.weights / 10
    assert estimate.total < 80 << 30


def test_a_large_preset_fits_the_devices_it_was_made_for() -> None:
    """Sharded over its devices, each preset fits into 80 GB; on one device it would not."""
    for name in ("9b-fsdp-l0-50", "27b-fsdp-l0-100"):
        work = workload_of(load_preset(name), None, hooked=2)
        assert work is not None
        assert estimate_memory(work).total < 80e9
        assert estimate_memory(msgspec.structs.replace(work, shards=1)).total > 80e9


def test_a_reference_model_and_recomputing_count() -> None:
    """A KL term keeps a copy of the weights; recomputing keeps less of each layer."""
    plain = estimate_memory(SMALL)
    kept = estimate_memory(msgspec.structs.replace(SMALL, reference=True, checkpointing=False))
    assert plain.reference == 0
    assert kept.reference == kept.weights == plain.weights
    assert kept.activations > plain.activations


@given(shards=st.integers(1, 64), parameters=st.integers(1, 10**11))
def test_shards_together_hold_the_whole(shards: int, parameters: int) -> None:
    """No shard is smaller than its share, and all of them are no more than a shard too many."""
    work = msgspec.structs.replace(
        SMALL, parameters=parameters, trainable=parameters, shards=shards
    )
    whole, part = 2 * parameters, estimate_memory(work).weights
    assert whole <= part * shards < whole + shards


def test_the_peak_is_the_larger_of_two_moments() -> None:
    """A loss pass and generation do not happen at once: their parts do not add up."""
    idle = estimate_memory(SMALL)
    generating = estimate_memory(msgspec.structs.replace(SMALL, generated=900, cache_width=64))
    assert generating.total == generating.resident + generating.generation_cache
    assert idle.total == idle.resident + idle.activations + idle.logits + idle.capture


def test_nothing_is_estimated_from_nothing(tmp_path: Path) -> None:
    """While the size of the model is unknown there is no figure, instead of a wrong one."""
    preset = load_preset(str(write_preset(tmp_path, SAVED)))
    assert memory_of(preset, None, hooked=2) is None
    assert disk_bytes(preset, None, hooked=2) == 2 * log_bytes_per_step(preset, hooked=2)

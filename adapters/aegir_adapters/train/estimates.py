"""What a preset comes to: memory of each device, bytes of log, disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegir_adapters.train.memory import (
    MemoryEstimate,
    Workload,
    adam_bytes,
    estimate_memory,
    lora_parameters,
)

if TYPE_CHECKING:
    from aegir_adapters.train.model_files import ModelFiles
    from aegir_adapters.train.preset import Preset

__all__ = ["disk_bytes", "log_bytes_per_step", "memory_of", "workload_of"]

_BYTES = {"bfloat16": 2, "float32": 4}
_ADAPTER_BYTES = 4

_RECORD_BYTES = 90
_LATENT_BYTES = 20
_COMPLETION_BYTES = 260
"""Measured on logs of the preset `tiny`: a record of 16 latents takes 410 bytes."""

_CHARACTERS_PER_TOKEN = 5
_CHARACTERS_PER_ID = 7


def workload_of(preset: Preset, files: ModelFiles | None, *, hooked: int) -> Workload | None:
    """Return what decides on the memory of a device; `None` while too little is known."""
    policy, grpo = preset.policy, preset.grpo
    parameters = (files and files.parameters) or policy.parameters
    layers = (files and files.layers) or policy.layers
    width = (files and files.width) or policy.width
    if not (parameters and layers and width):
        return None
    trainable, tensors = _trained(preset, files, parameters, layers, width)
    return Workload(
        parameters=parameters,
        trainable=trainable,
        trainable_tensors=tensors,
        weight_bytes=_BYTES[policy.dtype],
        trainable_bytes=_ADAPTER_BYTES if policy.lora else _BYTES[policy.dtype],
        shards=preset.devices.shards,
        layers=layers,
        width=width,
        vocabulary=files.vocabulary if files else None,
        cache_width=files.cache_width if files else None,
        # With adapters the reference is the model without them.
        reference=grpo.beta > 0 and policy.lora is None,
        checkpointing=grpo.gradient_checkpointing,
        batch=grpo.device_batch,
        generated=grpo.device_batch * grpo.accumulation,
        prompt_tokens=grpo.prompt_tokens,
        completion_tokens=grpo.completion_tokens,
        hooked=hooked,
        latents=preset.sae.latents or 0,
        top_k=preset.recording.top_k,
        accelerator=preset.devices.kind == "accelerator",
    )


def _trained(
    preset: Preset, files: ModelFiles | None, parameters: int, layers: int, width: int
) -> tuple[int, int]:
    """Return how many parameters are trained, in how many tensors."""
    if preset.policy.lora is None:
        return parameters, (files and files.tensors) or 0
    # Without the files: four square matrices a layer and three between width and four times it.
    assumed = ((width, width),) * 4 + ((width, 4 * width),) * 3
    linear = (files.linear if files else ()) or assumed * layers
    return lora_parameters(linear, rank=preset.policy.lora.rank), 2 * len(linear)


def memory_of(preset: Preset, files: ModelFiles | None, *, hooked: int) -> MemoryEstimate | None:
    """Return what a preset takes on each device; `None` while too little is known."""
    work = workload_of(preset, files, hooked=hooked)
    return estimate_memory(work) if work else None


def log_bytes_per_step(preset: Preset, *, hooked: int) -> int:
    """Return how much an optimizer step writes if every completion is as long as it may be."""
    tokens = preset.completions_per_step * preset.grpo.completion_tokens
    record = _RECORD_BYTES + _LATENT_BYTES * preset.recording.top_k
    text = _CHARACTERS_PER_TOKEN * tokens if preset.recording.text else 0
    prompts = preset.completions_per_step * preset.grpo.prompt_tokens
    ids = _CHARACTERS_PER_ID * (tokens + prompts) if preset.recording.token_ids else 0
    return tokens * hooked * record + preset.completions_per_step * _COMPLETION_BYTES + text + ids


def disk_bytes(
    preset: Preset, files: ModelFiles | None, *, hooked: int, steps_done: int = 0
) -> int:
    """Return how much disk a run takes: its log, and checkpoints with one more while it is written.

    A checkpoint holds the trained weights and the optimizer's states.
    """
    log = (preset.grpo.steps - steps_done) * log_bytes_per_step(preset, hooked=hooked)
    work = workload_of(preset, files, hooked=hooked)
    if work is None:
        return log
    checkpoint = work.trainable * work.trainable_bytes + adam_bytes(work)
    return log + (preset.grpo.checkpoints_kept + 1) * checkpoint

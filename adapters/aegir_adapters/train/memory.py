"""How much memory of each device a training run takes: formulas, and where they come from.

Weights, gradients, Adam's states and the SAEs are exact; what a forward needs is an estimate, since
libraries fuse and reuse buffers. Nothing here asks a device.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = [
    "ENCODE_BYTES",
    "FRAMEWORK_BYTES",
    "MemoryEstimate",
    "Workload",
    "activation_bytes",
    "adam_bytes",
    "capture_bytes",
    "estimate_memory",
    "gathered_bytes",
    "generation_cache_bytes",
    "logits_bytes",
    "lora_parameters",
    "sae_bytes",
]

FRAMEWORK_BYTES = 1 << 30
"""What a CUDA context with its libraries takes before the first tensor, generously."""

ENCODE_BYTES = 2 * (4 << 24)
"""What `aegir_adapters.sae` holds at once: `GPU_CHUNK_ELEMENTS` float32 pre-activations, and the
code made from them."""

_ADAM_STATES = 2
_STEP_COUNTER_BYTES = 4
_FLOAT32 = 4
_HALF = 2


class Workload(Struct, frozen=True, kw_only=True):
    """What decides on the memory of one device.

    Attributes:
        parameters: of the model.
        trainable: those that are trained; all of them without adapters.
        trainable_tensors: how many tensors these are in.
        weight_bytes: of one parameter of the model.
        trainable_bytes: of one trainable parameter.
        shards: into how many parts the model is split.
        layers: decoder layers.
        width: of the residual stream.
        vocabulary: rows of the output layer; `None` leaves the logits out.
        cache_width: of keys and values of one token in one layer; `None` leaves the cache out.
        reference: whether a frozen copy of the model is kept.
        checkpointing: whether activations are recomputed.
        batch: completions in one forward.
        generated: completions that are generated at once.
        prompt_tokens: longest prompt.
        completion_tokens: longest completion.
        hooked: layers with an SAE.
        latents: of each SAE.
        top_k: latents recorded per token.
        accelerator: whether there is a framework on the device, beside the tensors.
    """

    parameters: int
    trainable: int
    trainable_tensors: int = 0
    weight_bytes: int
    trainable_bytes: int
    shards: int = 1
    layers: int
    width: int
    vocabulary: int | None = None
    cache_width: int | None = None
    reference: bool = False
    checkpointing: bool = True
    batch: int
    generated: int
    prompt_tokens: int
    completion_tokens: int
    hooked: int
    latents: int
    top_k: int = 16
    accelerator: bool = True


class MemoryEstimate(Struct, frozen=True, kw_only=True):
    """Bytes on each device; the first six lie there all the time.

    Attributes:
        weights: the model.
        gradients: of what is trained.
        optimizer: states of AdamW.
        reference: the frozen copy.
        sae: the SAEs, whole on each device.
        framework: beside all tensors.
        gathered: layers that FSDP has put together to compute with.
        activations: what a loss pass keeps for its backward pass.
        logits: scores of the completion tokens.
        capture: residuals, codes and records of the hooked layers.
        generation_cache: keys and values while completions are generated.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    sae: int
    framework: int
    gathered: int
    activations: int
    logits: int
    capture: int
    generation_cache: int

    @property
    def resident(self) -> int:
        """Bytes that lie there all the time."""
        model = self.weights + self.gradients + self.optimizer + self.reference
        return model + self.sae + self.framework

    @property
    def uncounted(self) -> list[str]:
        """Parts that are left out, since the model's files, which say how wide they are, lack."""
        return [name for name in ("logits", "generation_cache") if not getattr(self, name)]

    @property
    def total(self) -> int:
        """Bytes at the peak: a loss pass and generation do not happen at once."""
        loss_pass = self.activations + self.logits + self.capture
        return self.resident + self.gathered + max(loss_pass, self.generation_cache)


def estimate_memory(work: Workload) -> MemoryEstimate:
    """Return what a run takes on each device."""
    weights = _shard(work.parameters * work.weight_bytes, work.shards)
    return MemoryEstimate(
        weights=weights,
        gradients=_shard(work.trainable * work.trainable_bytes, work.shards),
        optimizer=_shard(adam_bytes(work), work.shards),
        reference=weights if work.reference else 0,
        sae=work.hooked * sae_bytes(work.width, work.latents),
        framework=FRAMEWORK_BYTES if work.accelerator else 0,
        gathered=gathered_bytes(work),
        activations=activation_bytes(work),
        logits=logits_bytes(work),
        capture=capture_bytes(work),
        generation_cache=generation_cache_bytes(work),
    )


def adam_bytes(work: Workload) -> int:
    """Return the size of AdamW's states: two moments as wide as the parameter, and a step counter.

    From `torch.optim.AdamW`: `exp_avg` and `exp_avg_sq` by `zeros_like(parameter)`, `step` as one
    float32 for each tensor (Kingma and Ba 2015, arXiv:1412.6980).
    """
    moments = _ADAM_STATES * work.trainable * work.trainable_bytes
    return moments + _STEP_COUNTER_BYTES * work.trainable_tensors


def sae_bytes(width: int, latents: int) -> int:
    """Return the size of one SAE in memory: float32 encoder, decoder, and three biases.

    From `aegir_adapters.sae.SparseAutoencoder`: `w_enc` and `w_dec` (width x latents), `b_enc` and
    the encoder bias with `b_dec` folded in (latents each), `b_dec` (width).
    """
    return _FLOAT32 * (2 * width * latents + 2 * latents + width)


def gathered_bytes(work: Workload) -> int:
    """Return the size of the layers that FSDP holds whole: the one that runs, and the next.

    Zhao et al. 2023, arXiv:2304.11277, section 3.3.2 (prefetching).
    """
    if work.shards == 1:
        return 0
    return 2 * (work.parameters // work.layers) * work.weight_bytes


def activation_bytes(work: Workload) -> int:
    """Return the size of what a loss pass keeps, attention scores not among it.

    From Korthikanti et al. 2022, arXiv:2205.05198: a layer keeps 34 s b h bytes in 16 bit (their
    equation 2 without the term of the scores, which fused attention does not keep); recomputing
    whole layers, each keeps its input, 2 s b h, and the one that is recomputed all of it.
    """
    tokens = work.batch * (work.prompt_tokens + work.completion_tokens)
    of_input = tokens * work.width * work.weight_bytes
    of_layer = 34 * of_input // _HALF
    return work.layers * of_input + of_layer if work.checkpointing else work.layers * of_layer


def logits_bytes(work: Workload) -> int:
    """Return the size of the completion tokens' scores, as computed and as float32 probabilities.

    An upper bound: TRL's fused output layer, where it applies, never holds all of them.
    """
    scores = work.batch * work.completion_tokens * (work.vocabulary or 0)
    return scores * (work.weight_bytes + _FLOAT32)


def capture_bytes(work: Workload) -> int:
    """Return the size of what recording holds during a loss pass.

    One layer's residuals in float32 and a chunk of codes at a time; every hooked layer's records
    (index, activation and loss, 4 bytes each).
    """
    tokens = work.batch * work.completion_tokens
    codes = min(ENCODE_BYTES, 2 * _FLOAT32 * tokens * work.latents)
    records = work.hooked * tokens * _FLOAT32 * (2 * work.top_k + 1)
    return _FLOAT32 * tokens * work.width + codes + records


def generation_cache_bytes(work: Workload) -> int:
    """Return the size of all keys and values when the longest completions end."""
    tokens = work.generated * (work.prompt_tokens + work.completion_tokens)
    return tokens * work.layers * (work.cache_width or 0) * work.weight_bytes


def lora_parameters(linear: tuple[tuple[int, int], ...], *, rank: int) -> int:
    """Return the number of parameters of adapters: rank (inputs + outputs) for each matrix.

    Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    return sum(rank * (inputs + outputs) for inputs, outputs in linear)


def _shard(size: int, shards: int) -> int:
    return -(-size // shards)

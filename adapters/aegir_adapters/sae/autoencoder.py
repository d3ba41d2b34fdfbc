"""The interface that all sparse autoencoders here share.

With ``pre = (x - b_dec if apply_b_dec_to_input else x) @ w_enc + b_enc`` and
``x_hat = z @ w_dec + b_dec``, architectures differ in how the code z comes from pre. Any of them
may read normalised rows, and any may be a transcoder, whose x_hat stands for another place than x.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack

import msgspec
import torch
from torch import Tensor, nn

from aegir_adapters.sae.active import ActiveLatents, active_latents
from aegir_adapters.sae.latents import TopLatents, join
from aegir_adapters.sae.normalisation import Normalisation, Rows, normalised
from aegir_adapters.sae.selection import largest
from aegir_adapters.sae.transcoding import Transcoding, check_target
from aegir_adapters.sae.weights import Origin, Weights
from aegir_stream.errors import OptionError, SAEFormatError, ShapeError

CHUNK_ELEMENTS = 1 << 22
"""Pre-activations that `SparseAutoencoder.top` holds at once: 16 MiB of float32.

Of 65,536 latents that is 64 tokens. On a CPU larger chunks are slower (four times as large: 1.5 to
2 times as long), since the C library returns blocks of 32 MiB and more to the system each time.
"""

GPU_CHUNK_ELEMENTS = 1 << 24
"""The same on a device with memory of its own, which smaller chunks would leave idle: 64 MiB."""

SPARSE = 16
"""On a CPU, one in how many latents may be active for the others to be passed over."""


class Shared(TypedDict, total=False):
    """Options that every architecture takes; see `SparseAutoencoder`."""

    apply_b_dec_to_input: bool
    scale: float
    normalize_activations: Normalisation
    transcoding: Transcoding | None
    origin: Origin | None


class Code(NamedTuple):
    """What one chunk of tokens comes to, the reconstruction not yet in units of the input.

    Attributes:
        indices: latents, hardest first. Shape (n, k), int32.
        activations: their activations; zero is padding. Shape (n, k), float32.
        reconstruction: the decoder's output. Shape (n, d_out), float32.
        l0: active latents. Shape (n,), int32.
        fired: whether a latent was active for any of the tokens. Shape (n_latents,), bool.
    """

    indices: Tensor
    activations: Tensor
    reconstruction: Tensor
    l0: Tensor
    fired: Tensor


class SparseAutoencoder(nn.Module, ABC):
    """What all SAEs here can do.

    Its tensors are buffers that belong to no state dict: training, checkpoints and sharding of a
    model never touch them, even where the SAE is reached through that model. They are constant;
    `save_sae` and `load_sae` write and read them.

    Args:
        weights: kept as they are where they are float32 and contiguous, not copied.
        apply_b_dec_to_input: whether `b_dec` is subtracted from the input.
        scale: what inputs are divided by and reconstructions multiplied by; folded into the
            weights.
        normalize_activations: what is done to each row before it is read and, transcoders aside,
            undone in the reconstruction; see `normalised`.
        transcoding: of a transcoder, what else it has; `None` for an SAE.
        origin: where the weights came from.

    Attributes:
        activation: how the code comes from the pre-activations.
        is_transcoder: whether it predicts another place of the model than it reads.

    Raises:
        ShapeError: the weights do not fit together.
        SAEFormatError: the scale is not a positive finite number, or a transcoder is to subtract
            `b_dec`, which belongs to its output, from its input.
    """

    activation: ClassVar[str]
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    encoder_bias: Tensor
    w_skip: Tensor | None

    def __init__(self, weights: Weights, **shared: Unpack[Shared]) -> None:
        super().__init__()
        transcoding = shared.get("transcoding")
        weights.check_shapes(transcodes=transcoding is not None)
        folded = weights.float32().scaled(shared.get("scale", 1.0))
        self.apply_b_dec_to_input = shared.get("apply_b_dec_to_input", True)
        self.normalize_activations: Normalisation = shared.get("normalize_activations", "none")
        self.is_transcoder = transcoding is not None
        self.origin = shared.get("origin") or Origin()
        for name, tensor in folded._asdict().items():
            self._keep(name, tensor)
        skip = None if transcoding is None else transcoding.skip((self.d_out, self.d_model))
        self._keep("w_skip", skip)
        self._check_centring()
        centred = self.apply_b_dec_to_input
        self._keep("encoder_bias", folded.centred_bias() if centred else folded.b_enc)

    def _keep(self, name: str, tensor: Tensor | None) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def _check_centring(self) -> None:
        if self.is_transcoder and self.apply_b_dec_to_input:
            raise SAEFormatError(
                "Expected apply_b_dec_to_input=False for a transcoder, got True",
                hint="Its `b_dec` belongs to the place that it predicts, not to the one it reads",
            )

    @property
    def architecture(self) -> str:
        """Name of its architecture, as SAELens has it."""
        if not self.is_transcoder:
            return self.activation
        plain = "transcoder" if self.w_skip is None else "skip_transcoder"
        return plain if self.activation == "standard" else f"{self.activation}_{plain}"

    @property
    def d_model(self) -> int:
        """Width of what it reads."""
        return self.w_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of what it reconstructs: `d_model`, transcoders aside."""
        return self.w_dec.shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.w_enc.shape[1]

    def options(self) -> dict[str, Any]:
        """Return what beside its tensors decides on its output, as SAELens names it."""
        options: dict[str, Any] = {"apply_b_dec_to_input": self.apply_b_dec_to_input}
        if self.normalize_activations != "none":
            options["normalize_activations"] = self.normalize_activations
        return {**options, "d_out": self.d_out} if self.is_transcoder else options

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that define it by name, the scale folded in."""
        tensors = {name: getattr(self, name) for name in Weights._fields}
        return tensors if self.w_skip is None else {**tensors, "w_skip": self.w_skip}

    def identity(self) -> dict[str, Any]:
        """Return what tells this SAE from others, ready for JSON.

        Saving and loading keeps it, `path` and what the caller of `load_sae` states aside.
        """
        return {
            "architecture": self.architecture,
            "d_model": self.d_model,
            "n_latents": self.n_latents,
            "dtype": str(self.w_enc.dtype).removeprefix("torch."),
            "weights_sha256": self._digest,
            **self.options(),
            **msgspec.to_builtins(self.origin),
        }

    @cached_property
    def _digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the tensors, their names and shapes."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()[:16]

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of each token.

        Args:
            x: residuals. Shape (n, d_model), any floating dtype.

        Returns:
            Activations, zero where a latent is inactive. Shape (n, n_latents), float32.

        Raises:
            ShapeError: x is not of shape (n, d_model).
        """
        self._check_input(x)
        with self._float32():
            return self._code(self._rows(x.float()).read)

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the residuals that codes stand for.

        Args:
            latents: activations. Shape (n, n_latents), float32.
            x: the residuals that were encoded, which say in what units a row is where rows are
                normalised, and what a skip connection adds. Otherwise of no account.

        Returns:
            Reconstructions in the units of the input, or of what a transcoder predicts. Shape
            (n, d_out), float32.

        Raises:
            ShapeError: latents are not of shape (n, n_latents), or x does not fit.
            OptionError: x is needed and was not given.
        """
        if latents.ndim != 2 or latents.shape[1] != self.n_latents:  # noqa: PLR2004
            raise ShapeError(
                f"Expected latents of shape (n, {self.n_latents}), got {tuple(latents.shape)}"
                f" - the SAE has {self.n_latents} latents",
                hint="Give what `encode` returned, or rows of its width",
            )
        with self._float32():
            reconstruction = self._reconstruct(latents.float())
            if self.normalize_activations == "none" and self.w_skip is None:
                return reconstruction
            rows = self._beside(x)
            return self._finished(reconstruction, rows, self._rows(rows))

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of each token; shapes and errors as in `encode`."""
        return self.decode(self.encode(x), x)

    @torch.no_grad()
    def top(self, x: Tensor, *, k: int, target: Tensor | None = None) -> TopLatents:
        """Return the k latents that fire hardest for each token, and how well the SAE fits it.

        Never waits for the device, holds at most `CHUNK_ELEMENTS` pre-activations at once
        (`GPU_CHUNK_ELEMENTS` on CUDA), and keeps to float32 under autocast as well.

        Args:
            x: residuals. Shape (n, d_model), any floating dtype.
            k: latents to report; those beyond the active ones are padding.
            target: what the loss compares reconstructions with: of a transcoder, the activations of
                the place that it predicts; x if left out. Shape (n, d_out).

        Raises:
            ShapeError: x is not of shape (n, d_model), the target not of shape (n, d_out), or k is
                not in 1..n_latents.
            OptionError: a transcoder has no target.
        """
        self._check_input(x)
        check_k(k, self.n_latents)
        target = check_target(target, x, d_out=self.d_out, is_transcoder=self.is_transcoder)
        tokens = self._tokens_at_once(x.device)
        chunks = zip(torch.split(x, tokens), torch.split(target, tokens), strict=True)
        with self._float32():
            described = (self._top(chunk.float(), aim.float(), k) for chunk, aim in chunks)
            return join(described, n=x.shape[0])

    def _tokens_at_once(self, device: torch.device) -> int:
        elements = CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS
        return max(1, elements // self.n_latents)

    @abstractmethod
    def _code(self, x: Tensor) -> Tensor: ...

    def _pre_activations(self, x: Tensor) -> Tensor:
        return torch.addmm(self.encoder_bias, x, self.w_enc)

    def _reconstruct(self, code: Tensor) -> Tensor:
        return torch.addmm(self.b_dec, code, self.w_dec)

    def _rows(self, x: Tensor) -> Rows:
        return normalised(x, self.normalize_activations)

    def _finished(self, reconstruction: Tensor, x: Tensor, rows: Rows) -> Tensor:
        """Return a reconstruction of x in its final units.

        A transcoder's prediction stays as it is, and its skip connection reads x before it is
        normalised: both as in SAELens.
        """
        if not self.is_transcoder:
            return rows.restored(reconstruction)
        if self.w_skip is None:
            return reconstruction
        return torch.addmm(reconstruction, x, self.w_skip.T)

    def _top(self, x: Tensor, target: Tensor, k: int) -> TopLatents:
        rows = self._rows(x)
        indices, activations, reconstruction, l0, fired = self._describe(rows.read, k)
        loss = squared_error(target, self._finished(reconstruction, x, rows))
        return TopLatents(indices, activations, loss, l0, fired)

    def _describe(self, x: Tensor, k: int) -> Code:
        code = self._code(x)
        if code.device.type == "cpu":
            active = active_latents(code.detach(), at_most=code.numel() // SPARSE)
            if active is not None:
                return self._describe_active(active, k)
        return self._describe_dense(code, k)

    def _describe_active(self, active: ActiveLatents, k: int) -> Code:
        activations, indices = active.strongest(k)
        return Code(
            indices.to(torch.int32),
            activations,
            self.b_dec + active.decoded(self.w_dec),
            active.l0.to(torch.int32),
            active.fired(),
        )

    def _describe_dense(self, code: Tensor, k: int) -> Code:
        """Describe a code as it is: on a device nobody knows how much of it is active."""
        activations, indices = largest(code, k=k)
        active = code > 0
        return Code(
            indices.to(torch.int32),
            activations,
            self._reconstruct(code),
            active.sum(1, dtype=torch.int32),
            active.any(0),
        )

    def _float32(self) -> AbstractContextManager[Any]:
        """Return a context in which a trainer's autocast does not reach the SAE.

        In bfloat16 other latents would be the hardest. (TF32, which a process allows as a whole,
        stays as it is.)
        """
        device = self.w_enc.device.type
        if not torch.amp.is_autocast_available(device):
            return nullcontext()
        return torch.autocast(device, enabled=False)

    def _beside(self, x: Tensor | None) -> Tensor:
        """Return the residuals that stand beside a code, in float32."""
        if x is None:
            raise OptionError(
                "Expected the residuals beside their code, got None"
                f" - the SAE normalises rows ({self.normalize_activations}) or has a skip"
                " connection",
                hint="Call decode(latents, x) with the x that was encoded",
            )
        self._check_input(x)
        return x.float()

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.d_model:  # noqa: PLR2004
            raise ShapeError(
                f"Expected residuals of shape (n, {self.d_model}), got {tuple(x.shape)}"
                f" - the SAE has d_model {self.d_model}",
                hint="Flatten batch and sequence with x.reshape(-1, x.shape[-1]), and use an SAE"
                " trained on this model's residual stream",
            )
        if self.w_enc.dtype != torch.float32:
            raise SAEFormatError(
                f"Expected an SAE in float32, got {self.w_enc.dtype}",
                hint="Move it with sae.to(device), without a dtype",
            )


def check_k(k: int, n_latents: int) -> None:
    """Make sure that k latents can be chosen.

    Raises:
        ShapeError: k is not in 1..n_latents.
    """
    if not 1 <= k <= n_latents:
        raise ShapeError(
            f"Expected k in 1..{n_latents}, got {k} - the SAE has {n_latents} latents",
            hint=f"Choose at most {n_latents}; 16 is usual",
        )


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Return ``||x - reconstruction||^2`` of each row, summed over d_model."""
    return (x - reconstruction).square().sum(1)

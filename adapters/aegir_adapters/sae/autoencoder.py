"""The interface that all sparse autoencoders here share.

With ``pre = (x - b_dec if apply_b_dec_to_input else x) @ w_enc + b_enc`` and
``x_hat = z @ w_dec + b_dec``, architectures differ in how the code z comes from pre.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from aegir_adapters.sae.latents import TopLatents, join
from aegir_adapters.sae.selection import largest
from aegir_adapters.sae.weights import Origin, Weights
from aegir_stream.errors import SAEFormatError, ShapeError

CHUNK_ELEMENTS = 1 << 24
"""Pre-activations that `SparseAutoencoder.top` holds at once: 64 MiB of float32."""


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
        origin: where the weights came from.

    Raises:
        ShapeError: the weights do not fit together.
        SAEFormatError: the scale is not a positive finite number.
    """

    architecture: ClassVar[str]
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    encoder_bias: Tensor

    def __init__(
        self,
        weights: Weights,
        *,
        apply_b_dec_to_input: bool = True,
        scale: float = 1.0,
        origin: Origin | None = None,
    ) -> None:
        super().__init__()
        weights.check_shapes()
        folded = weights.float32().scaled(scale)
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.origin = origin or Origin()
        for name, tensor in folded._asdict().items():
            self._keep(name, tensor)
        self._keep("encoder_bias", folded.centred_bias() if apply_b_dec_to_input else folded.b_enc)

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    @property
    def d_model(self) -> int:
        """Width of the residual stream that it reads."""
        return self.w_enc.shape[0]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.w_enc.shape[1]

    def options(self) -> dict[str, Any]:
        """Return what beside its tensors decides on its output, as SAELens names it."""
        return {"apply_b_dec_to_input": self.apply_b_dec_to_input}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that define it by name, the scale folded in."""
        return {name: getattr(self, name) for name in Weights._fields}

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
            return self._code(x.float())

    def decode(self, latents: Tensor) -> Tensor:
        """Return the residuals that codes stand for.

        Args:
            latents: activations. Shape (n, n_latents), float32.

        Returns:
            Reconstructions in the units of the input. Shape (n, d_model), float32.

        Raises:
            ShapeError: latents are not of shape (n, n_latents).
        """
        if latents.ndim != 2 or latents.shape[1] != self.n_latents:  # noqa: PLR2004
            raise ShapeError(
                f"Expected latents of shape (n, {self.n_latents}), got {tuple(latents.shape)}"
                f" - the SAE has {self.n_latents} latents",
                hint="Give what `encode` returned, or rows of its width",
            )
        with self._float32():
            return self._reconstruct(latents.float())

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of each token; shapes and errors as in `encode`."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def top(self, x: Tensor, *, k: int) -> TopLatents:
        """Return the k latents that fire hardest for each token, and how well the SAE fits it.

        Never waits for the device, holds at most `CHUNK_ELEMENTS` pre-activations at once, and
        keeps to float32 under autocast as well.

        Args:
            x: residuals. Shape (n, d_model), any floating dtype.
            k: latents to report; those beyond the active ones are padding.

        Raises:
            ShapeError: x is not of shape (n, d_model), or k is not in 1..n_latents.
        """
        self._check_input(x)
        check_k(k, self.n_latents)
        tokens = max(1, CHUNK_ELEMENTS // self.n_latents)
        with self._float32():
            return join([self._top(chunk.float(), k) for chunk in torch.split(x, tokens)])

    @abstractmethod
    def _code(self, x: Tensor) -> Tensor: ...

    def _pre_activations(self, x: Tensor) -> Tensor:
        return torch.addmm(self.encoder_bias, x, self.w_enc)

    def _reconstruct(self, code: Tensor) -> Tensor:
        return torch.addmm(self.b_dec, code, self.w_dec)

    def _top(self, x: Tensor, k: int) -> TopLatents:
        """Dense codes have no bound on their active latents, so they are decoded as they are."""
        code = self._code(x)
        activations, indices = largest(code, k=k)
        active = code > 0
        return TopLatents(
            indices.to(torch.int32),
            activations,
            squared_error(x, self._reconstruct(code)),
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

"""What a capture asks of a sparse autoencoder; anything with these members will do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

__all__ = ["Latents", "SparseAutoencoder", "TopLatents"]


class Latents(Protocol):
    """What is recorded of n tokens; tensors on the SAE's device."""

    @property
    def indices(self) -> Tensor:
        """int32 (n, k), the latents that fired hardest, hardest first."""
        ...

    @property
    def activations(self) -> Tensor:
        """float32 (n, k), in the SAE's own units; zero where fewer than k latents fired."""
        ...

    @property
    def reconstruction_loss(self) -> Tensor:
        """float32 (n,), ``||x - SAE(x)||^2`` summed over d_model."""
        ...


class TopLatents(Latents, Protocol):
    """What an SAE says about n tokens, its health included."""

    @property
    def l0(self) -> Tensor:
        """(n,), number of active latents."""
        ...

    @property
    def fired(self) -> Tensor:
        """Bool (n_latents,), whether a latent was active on any of the tokens."""
        ...


class SparseAutoencoder(Protocol):
    """A sparse autoencoder of the residual stream behind one decoder layer.

    Called on the training thread, without gradients and outside autocast.
    """

    @property
    def d_model(self) -> int:
        """Width of its input."""
        ...

    @property
    def n_latents(self) -> int:
        """Number of its latents."""
        ...

    def top(self, x: Tensor, *, k: int) -> TopLatents:
        """Encode x, float32 (n, d_model), and describe it by its k strongest latents."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Return what tells this SAE from another, as plain JSON values."""
        ...

    def to(self, device: torch.device, /) -> SparseAutoencoder:
        """Return this SAE on a device."""
        ...

"""What is put in the place of an activation: another run's, zero, a mean, a vector, a feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from aegir_adapters.patching.hooks import Hook, Site
from aegir_stream.errors import OptionError

__all__ = [
    "Ablation",
    "FeatureSource",
    "LatentDictionary",
    "MeanSource",
    "RunSource",
    "Source",
    "SourceRun",
    "VectorSource",
    "ZeroSource",
]


class SourceRun(msgspec.Struct, frozen=True, kw_only=True):
    """Activations of one forward pass over one prompt.

    Attributes:
        token_ids: the prompt.
        model_id: which model it was, as `PatchableModel.model_id` has it.
        layers: captured layers, ascending.
        positions: captured positions, ascending.
        activations: by site. Shape (layers, positions, d_model); of `z`
            (layers, positions, heads, d_head). The model's dtype.
    """

    token_ids: tuple[int, ...]
    model_id: str
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    activations: Mapping[Site, Tensor]

    @property
    def size_bytes(self) -> int:
        """Memory that the activations take."""
        return sum(t.numel() * t.element_size() for t in self.activations.values())

    def missing(self, site: Site, layers: Sequence[int], positions: Sequence[int]) -> str | None:
        """Return what of these activations was not captured; `None` if all were."""
        if site not in self.activations:
            return f"{site} (it holds {', '.join(self.activations)})"
        if lost := sorted(set(layers) - set(self.layers)):
            return f"layers {lost} (it holds {_span(self.layers)})"
        if lost := sorted(set(positions) - set(self.positions)):
            return f"positions {lost} (it holds {_span(self.positions)})"
        return None

    def at(self, site: Site, layer: int, positions: Sequence[int]) -> Tensor:
        """Return activations of one layer. Shape (positions, d_model), or as `activations` has it.

        Raises:
            OptionError: one of them was not captured.
        """
        if lost := self.missing(site, [layer], positions):
            raise OptionError(
                f"Expected a source run with {site} of layer {layer} at every position, got one "
                f"without {lost}",
                hint="Capture the run again with these hooks, layers and positions",
            )
        column = {position: index for index, position in enumerate(self.positions)}
        activations = self.activations[site][self.layers.index(layer)]
        return activations[[column[position] for position in positions]]


class Source(Protocol):
    """Gives the activations that replace others."""

    def rows(self, hook: Hook, layer: int, positions: Sequence[int], current: Tensor) -> Tensor:
        """Return what to put where the unpatched run has `current`.

        Args:
            hook: its `site` says what kind of activation.
            layer: the patched layer.
            positions: positions of the patched prompt.
            current: shape (positions, d_model); of `z` (positions, heads, d_head).

        Returns:
            The same shape, dtype and device as `current`.

        Raises:
            OptionError: the source has nothing for one of these places.
        """

    def unchanged(self, prompt_ids: Sequence[int]) -> frozenset[int]:
        """Return the positions of the patched prompt at which no hook can change anything.

        A decoder is causal: where the source is a run at the same position, and all tokens up to
        there are the same, so are the activations.
        """

    def identity(self, hook: Hook, layer: int, position: int) -> object:
        """Return what tells this residual row from the others that the source gives.

        Where it is equal for `resid_post` of a layer and `resid_pre` of the next, they are the same
        patch, and computed once.
        """

    def positions(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the positions of the patched prompt that the source has something for."""

    def prompt(self) -> tuple[int, ...] | None:
        """Return the prompt that `recovered` and `kl` refer to; `None` if there is none."""


class RunSource(msgspec.Struct, frozen=True, kw_only=True):
    """The activations of another run, at the aligned position.

    Attributes:
        run: the run.
        alignment: its position for each position of the patched prompt; `None` where both are the
            same.
    """

    run: SourceRun
    alignment: Mapping[int, int] | None = None

    def position(self, position: int) -> int:
        """Return the run's position for one of the patched prompt.

        Raises:
            OptionError: the position is not aligned.
        """
        if self.alignment is None:
            return position
        if position not in self.alignment:
            raise OptionError(
                f"Expected an aligned position, got {position} - aligned are "
                f"{_span(tuple(sorted(self.alignment)))}",
                hint="Leave the position out, or add it to the alignment",
            )
        return self.alignment[position]

    def rows(self, hook: Hook, layer: int, positions: Sequence[int], current: Tensor) -> Tensor:
        """See `Source`."""
        return self.run.at(hook.site, layer, [self.position(p) for p in positions]).to(current)

    def unchanged(self, prompt_ids: Sequence[int]) -> frozenset[int]:
        """See `Source`."""
        pairs = zip(prompt_ids, self.run.token_ids, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if shared is None:
            shared = min(len(prompt_ids), len(self.run.token_ids))
        mapped = self.alignment
        return frozenset(p for p in range(shared) if mapped is None or mapped.get(p) == p)

    def identity(self, hook: Hook, layer: int, position: int) -> object:  # noqa: ARG002 - Source's signature
        """See `Source`."""
        return self.position(position)

    def positions(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """See `Source`."""
        mapped = self.alignment
        there = set(self.run.positions)
        if mapped is None:
            return tuple(p for p in range(len(prompt_ids)) if p in there)
        return tuple(p for p in sorted(mapped) if mapped[p] in there)

    def prompt(self) -> tuple[int, ...] | None:
        """See `Source`."""
        return self.run.token_ids


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """What sources without a prompt of their own have in common: all of them change anything."""

    def unchanged(self, prompt_ids: Sequence[int]) -> frozenset[int]:  # noqa: ARG002 - Source's signature
        """See `Source`."""
        return frozenset()

    def identity(self, hook: Hook, layer: int, position: int) -> object:  # noqa: ARG002 - likewise
        """See `Source`."""
        return None

    def positions(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """See `Source`."""
        return tuple(range(len(prompt_ids)))

    def prompt(self) -> tuple[int, ...] | None:
        """See `Source`."""
        return None


class ZeroSource(Ablation, frozen=True, kw_only=True):
    """Zero ablation."""

    def rows(self, hook: Hook, layer: int, positions: Sequence[int], current: Tensor) -> Tensor:  # noqa: ARG002 - Source's signature
        """See `Source`."""
        return torch.zeros_like(current)


class MeanSource(Ablation, frozen=True, kw_only=True):
    """Mean ablation: the mean over all captured positions of some runs, each counting once.

    Attributes:
        runs: the runs.
    """

    runs: tuple[SourceRun, ...]

    def rows(self, hook: Hook, layer: int, positions: Sequence[int], current: Tensor) -> Tensor:  # noqa: ARG002 - Source's signature
        """See `Source`."""
        every = torch.cat([run.at(hook.site, layer, run.positions) for run in self.runs])
        return every.mean(0).to(current).expand_as(current)


class VectorSource(Ablation, frozen=True, kw_only=True):
    """Given vectors.

    Attributes:
        vectors: by site and layer, each of the shape of one activation.
    """

    vectors: Mapping[tuple[Site, int], Tensor]

    def rows(self, hook: Hook, layer: int, positions: Sequence[int], current: Tensor) -> Tensor:  # noqa: ARG002 - Source's signature
        """See `Source`."""
        vector = self.vectors.get((hook.site, layer))
        if vector is None or vector.shape != current.shape[1:]:
            got = "none" if vector is None else f"one of shape {tuple(vector.shape)}"
            raise OptionError(
                f"Expected a vector of shape {tuple(current.shape[1:])} for {hook.site} of layer "
                f"{layer}, got {got}",
                hint="Give one vector for each hook and layer of the sweep",
            )
        return vector.to(current).expand_as(current)

    def identity(self, hook: Hook, layer: int, position: int) -> object:  # noqa: ARG002 - likewise
        """See `Source`."""
        return hook.site, layer


class LatentDictionary(Protocol):
    """What a sparse autoencoder must offer to have its latents patched."""

    def encode(self, x: Tensor, /) -> Tensor:
        """Return the code of activations: (n, d_model) to (n, n_latents), float32."""

    def decode(self, latents: Tensor, x: Tensor, /) -> Tensor:
        """Return the reconstruction of activations `x` from a code: (n, d_model), float32."""


class FeatureSource(msgspec.Struct, frozen=True, kw_only=True):
    """One latent's contribution replaced or ablated; the SAE's error term is kept.

    The patched row is ``x + decode(z') - decode(z)``. There z is the code of x, and z' is z but for
    one activation, which is the latent's in another run at the aligned position, or zero. What the
    SAE does not explain of x stays as it was, so a code that does not change changes nothing.

    Attributes:
        sae: reads the activations of the hooks and layers that are swept.
        latent: which one.
        run: where its activation comes from; `None` ablates it.
    """

    sae: LatentDictionary
    latent: int
    run: RunSource | None = None

    def rows(self, hook: Hook, layer: int, positions: Sequence[int], current: Tensor) -> Tensor:
        """See `Source`."""
        x = current.float()
        code = self.sae.encode(x)
        changed = code.clone()
        changed[:, self.latent] = 0.0
        if self.run is not None:
            other = self.run.rows(hook, layer, positions, current).float()
            changed[:, self.latent] = self.sae.encode(other)[:, self.latent]
        difference = self.sae.decode(changed, x) - self.sae.decode(code, x)
        return (x + difference).to(current)

    def unchanged(self, prompt_ids: Sequence[int]) -> frozenset[int]:
        """See `Source`."""
        return frozenset() if self.run is None else self.run.unchanged(prompt_ids)

    def identity(self, hook: Hook, layer: int, position: int) -> object:
        """See `Source`."""
        return None if self.run is None else self.run.identity(hook, layer, position)

    def positions(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """See `Source`."""
        every = tuple(range(len(prompt_ids)))
        return every if self.run is None else self.run.positions(prompt_ids)

    def prompt(self) -> tuple[int, ...] | None:
        """See `Source`."""
        return None if self.run is None else self.run.prompt()


def _span(values: Sequence[int]) -> str:
    if len(values) > 1 and tuple(values) == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values)) or "none"

"""What a pass captured, on its way from the training thread to the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from torch import Tensor

from aegir_adapters.trainer.columns import ColumnPool
from aegir_adapters.trainer.rows import RowEncoder
from aegir_adapters.trainer.transfer import Arrival, to_host
from aegir_stream.errors import ShapeError
from aegir_stream.events import PassName

if TYPE_CHECKING:
    from aegir_adapters.trainer.autoencoder import Latents
    from aegir_adapters.trainer.capture import CapturedPass
    from aegir_adapters.trainer.columns import SAEColumns

__all__ = ["LayerRecords", "PassRecords"]


class LayerRecords(Struct, frozen=True, kw_only=True, eq=False):
    """One layer's part of a pass, in host memory or on its way there.

    Attributes:
        layer: hooked decoder layer.
        indices: int32 (n, k).
        activations: float32 (n, k).
        reconstruction_loss: float32 (n,).
    """

    layer: int
    indices: Tensor
    activations: Tensor
    reconstruction_loss: Tensor

    @classmethod
    def of(cls, layer: int, top: Latents) -> LayerRecords:
        """Start the copy of what an SAE said to host memory."""
        return cls(
            layer=layer,
            indices=to_host(top.indices),
            activations=to_host(top.activations),
            reconstruction_loss=to_host(top.reconstruction_loss),
        )


class PassRecords(Struct, frozen=True, kw_only=True, eq=False):
    """The SAE records of one pass, layer after layer (see `aegir_stream.typing.EventBatch`).

    The training thread only starts copies; columns and lines are made on the recorder's thread,
    which first waits for `copied`.

    Attributes:
        step: optimizer step.
        layers: what each layer gave.
        token_index: int64 (n,), position of each token in its completion.
        completion: int64 (n,) completion ids, or `None`.
        copied: the point in the devices' work at which all of it is in host memory.
        pool: where the columns are kept while they are encoded.
        encoder: writes the lines.
        pass_: name of the pass.
    """

    step: int
    layers: tuple[LayerRecords, ...]
    token_index: Tensor
    completion: Tensor | None
    copied: Arrival
    pool: ColumnPool
    encoder: RowEncoder
    pass_: PassName = "loss"

    @classmethod
    def of(cls, captured: CapturedPass, *, pool: ColumnPool, encoder: RowEncoder) -> PassRecords:
        """Take over what a pass captured, without waiting for a device."""
        latents, tokens = captured.latents, captured.tokens
        layers = tuple(LayerRecords.of(layer, top) for layer, top in latents.items())
        return cls(
            step=captured.step,
            layers=layers,
            token_index=to_host(tokens.token_index),
            completion=None if tokens.completion is None else to_host(tokens.completion),
            copied=Arrival.of(top.indices for top in latents.values()),
            pool=pool,
            encoder=encoder,
            pass_=captured.pass_,
        )

    @property
    def stream(self) -> str:
        """Name of the stream."""
        return "sae_features"

    @property
    def tokens(self) -> int:
        """Number of tokens, n."""
        return int(self.token_index.shape[0])

    @property
    def records(self) -> int:
        """One per token and layer."""
        return self.tokens * len(self.layers)

    @property
    def size_bytes(self) -> int:
        """Memory held while queued."""
        return sum(4 * layer.indices.numel() * 2 + 12 * self.tokens for layer in self.layers)

    def encode(self) -> bytes:
        """Wait for the copies and return the records as JSON lines."""
        self.copied.wait()
        columns, give_back = self.pool.take(
            self.records,
            self.layers[0].indices.shape[1],
            step=self.step,
            completions=self.completion is not None,
            pass_=self.pass_,
        )
        try:
            self._fill(columns)
            return self.encoder.encode(columns)
        finally:
            give_back()

    def release(self) -> None:
        """Do nothing: the pool has its memory back as soon as the lines are made."""

    def _fill(self, columns: SAEColumns) -> None:
        n = self.tokens
        for place, layer in enumerate(self.layers):
            rows = slice(place * n, (place + 1) * n)
            if layer.indices.shape != columns.indices[rows].shape:
                raise ShapeError(
                    f"Expected {columns.indices[rows].shape} latents at layer {layer.layer}, "
                    f"got {tuple(layer.indices.shape)}",
                    hint="`top(x, k=k)` returns k latents for each of the tokens, whatever fired",
                )
            columns.layer_index[rows] = layer.layer
            columns.token_index[rows] = self.token_index.numpy()
            columns.indices[rows] = layer.indices.numpy()
            columns.activations[rows] = layer.activations.numpy()
            columns.reconstruction_loss[rows] = layer.reconstruction_loss.numpy()
            if columns.completion is not None and self.completion is not None:
                columns.completion[rows] = self.completion.numpy()

"""How hard the hooked layers fired, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from aegir_stream.events import PassName, SAELogRecord

__all__ = ["Cell", "Heatmap", "HeatmapView"]


class Cell(msgspec.Struct):
    """The records of one layer at one step.

    Attributes:
        records: how many.
        top_activation: sum over them of the hardest latent's activation, SAE units.
        reconstruction_loss: sum over them of ``||x - SAE(x)||^2``.
    """

    records: int = 0
    top_activation: float = 0.0
    reconstruction_loss: float = 0.0


class Heatmap(msgspec.Struct):
    """Cells by layer and step."""

    layers: dict[int, dict[int, Cell]]

    def mean_top_activation(self) -> Iterator[tuple[int, int, float]]:
        """Yield (layer, step, mean activation of the hardest latent), in ascending order."""
        for layer, steps in sorted(self.layers.items()):
            for step, cell in sorted(steps.items()):
                yield layer, step, cell.top_activation / cell.records


class HeatmapView:
    """Folds the SAE records of one forward pass into a `Heatmap`."""

    streams = ("sae_features",)

    def __init__(self, *, pass_: PassName = "loss") -> None:
        self._pass = pass_

    def initial(self) -> Heatmap:
        """Return an empty heat map."""
        return Heatmap(layers={})

    def fold(self, state: Heatmap, events: Iterable[SAELogRecord]) -> Heatmap:
        """Add records to their cells."""
        for record in events:
            if (record.pass_ or "loss") != self._pass:
                continue
            cell = state.layers.setdefault(record.layer_index, {}).setdefault(record.step, Cell())
            cell.records += 1
            cell.top_activation += next(iter(record.top_feature_activations), 0.0)
            cell.reconstruction_loss += record.reconstruction_loss
        return state

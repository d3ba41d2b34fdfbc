"""From patches to the raw metrics of what the model makes of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from aegir_adapters.patching.cells import Job
from aegir_adapters.patching.chunks import Rider
from aegir_adapters.patching.lanes import Lane
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.patches import Patch
from aegir_adapters.patching.scoring import Raw, Scale, scored
from aegir_adapters.patching.setting import Setting

__all__ = ["Measuring"]


class Measuring:
    """Computes patches and measures the outcome.

    Args:
        model: the model.
        setting: the unpatched runs, and what computes patches of them.
        scales: what each pair is measured by.
        lanes: of each pair.
        chunk_bytes: memory that the logits of one part may take.
    """

    def __init__(
        self,
        model: PatchableModel,
        setting: Setting,
        scales: Sequence[Scale],
        lanes: Sequence[tuple[Lane, ...]],
        *,
        chunk_bytes: int,
    ) -> None:
        self._model = model
        self._setting = setting
        self._scales = scales
        self._lanes = lanes
        self._chunk_bytes = chunk_bytes

    def raw(self, units: Sequence[Job | Rider]) -> list[Raw | None]:
        """Return the raw metrics of each unit; `None` where one is not finite."""
        left = self._residuals(units)
        found: list[Raw | None] = [None] * len(units)
        for pair, lanes in enumerate(self._lanes):
            own = [index for index, unit in enumerate(units) if unit.pair == pair]
            if not own:
                continue
            values = scored(
                self._model,
                self._scales[pair],
                lanes,
                [torch.stack([left[index, lane] for index in own]) for lane in lanes],
                chunk_bytes=self._chunk_bytes,
            )
            for index, value in zip(own, values, strict=True):
                found[index] = value
        return found

    def _residuals(self, units: Sequence[Job | Rider]) -> dict[tuple[int, Lane], Tensor]:
        """Return what leaves the last layer, by unit and lane. Shape (reads, d_model) each."""
        # Lanes of two pairs can be of one length and be read from different rows on; a patch has no
        # more rows than from its first on, so those that are read alike go together.
        asked: dict[tuple[int, int], list[tuple[int, Lane, Patch]]] = defaultdict(list)
        for index, unit in enumerate(units):
            for lane, patch in zip(self._lanes[unit.pair], unit.patches, strict=True):
                asked[lane.length, lane.reads].append((index, lane, patch))
        left: dict[tuple[int, Lane], Tensor] = {}
        for (length, reads), entries in asked.items():
            engine = self._setting.stages[length].engine
            rows = engine.run([patch for _, _, patch in entries], reads=reads)
            for (index, lane, _), row in zip(entries, rows, strict=True):
                left[index, lane] = row
        return left

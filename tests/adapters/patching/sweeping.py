"""Short ways to sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapters.patching.decoders import ANSWER, CORRUPT, FOIL, LAYERS
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import CellBatch, CellResult, SweepBegin, SweepEnd
from aegir_adapters.patching.sources import Source
from aegir_adapters.patching.sweep import SweepSpec, sweep


def spec_of(source: Source, **options: Any) -> SweepSpec:
    """Return a sweep of `resid_post` over everything, unless options say otherwise."""
    defaults: dict[str, Any] = {
        "prompt_ids": CORRUPT,
        "source": source,
        "hooks": ("resid_post",),
        "layers": tuple(range(LAYERS)),
        "answer_ids": (ANSWER,),
        "foil_ids": (FOIL,),
        "metrics": ("logit_diff",),
    }
    return SweepSpec(**{**defaults, **options})


class Swept:
    """What a sweep yielded.

    Attributes:
        begin: the beginning.
        batches: all batches.
        end: the end.
    """

    def __init__(self, model: PatchableModel, spec: SweepSpec | Sequence[SweepSpec]) -> None:
        items = list(sweep(model, spec))
        assert isinstance(items[0], SweepBegin)
        assert isinstance(items[-1], SweepEnd)
        self.begin, self.end = items[0], items[-1]
        self.batches = [item for item in items[1:-1] if isinstance(item, CellBatch)]
        assert len(self.batches) == len(items) - 2

    @property
    def cells(self) -> list[CellResult]:
        """All cells in the order in which they came."""
        return [cell for batch in self.batches for cell in batch.cells]

    def values(self, metric: int = 0) -> dict[tuple[Any, ...], float]:
        """Return one metric of every cell, by pair, hook, layer and position."""
        found: dict[tuple[Any, ...], float] = {}
        for cell in self.cells:
            value = cell.values[metric]
            assert value is not None
            found[cell.pair, cell.hook, cell.layer, cell.position] = value
        assert len(found) == len(self.cells)
        return found

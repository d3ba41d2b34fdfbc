"""From the residuals that leave the last layer to the values of cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from aegir_adapters.patching.lanes import Lane
from aegir_adapters.patching.metrics import (
    RAW,
    MetricName,
    Reference,
    raw_metrics,
    recovered,
    score,
)
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import Baselines

__all__ = ["Scale", "scale_of", "scored"]

Raw = dict[MetricName, float]


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """What the values of one prompt pair are measured by.

    Attributes:
        pair: index of the pair.
        metrics: which, in order.
        reference: tokens and distributions.
        corrupt: raw metrics of the unpatched prompt.
        clean: raw metrics of the source's prompt, if it has one.
    """

    pair: int
    metrics: tuple[MetricName, ...]
    reference: Reference
    corrupt: Raw
    clean: Raw | None

    def moved(self, change: Raw) -> Raw | None:
        """Return the unpatched raw metrics with a change added; `None` where one is not finite."""
        raw: Raw = {name: self.corrupt[name] + by for name, by in change.items()}
        return raw if all(map(math.isfinite, raw.values())) else None

    def values(self, raw: Raw | None) -> dict[MetricName, float | None]:
        """Return every metric of a cell, from its raw ones; `None` where undefined."""
        return {name: None if raw is None else self._value(name, raw) for name in self.metrics}

    def _value(self, name: MetricName, raw: Raw) -> float | None:
        made_of = RAW.get(name)
        if made_of is None:
            return raw[name]
        clean = None if self.clean is None else self.clean[made_of]
        return recovered(raw[made_of], clean=clean, corrupt=self.corrupt[made_of])

    def baselines(self) -> Baselines:
        """Return what the metrics are without a patch."""
        clean = None if self.clean is None else self.values(self.clean)
        return Baselines(pair=self.pair, corrupt=self.values(self.corrupt), clean=clean)

    def warnings(self) -> list[str]:
        """Return what is undefined, and why."""
        why = "clean and corrupt are equal" if self.clean else "the source has no prompt"
        return [
            f"{name} is undefined for pair {self.pair}: {why}"
            for name, value in self.values(self.corrupt).items()
            if value is None
        ]


def scale_of(
    pair: int,
    metrics: tuple[MetricName, ...],
    *,
    answer: Sequence[int],
    foil: Sequence[int] | None,
    corrupt: list[Tensor],
    clean: list[Tensor] | None,
) -> Scale:
    """Return what a pair's values are measured by.

    Args:
        pair: index of the pair.
        metrics: which.
        answer: the answer's tokens.
        foil: the foil's tokens.
        corrupt: logits of the unpatched lanes. Shape (reads, vocabulary) each.
        clean: logits of the clean lanes.
    """
    device = corrupt[0].device
    reference = Reference(
        answer=torch.tensor(list(answer), device=device),
        foil=None if foil is None else torch.tensor(list(foil), device=device),
        log_probs=(clean or corrupt)[0].float().log_softmax(-1),
    )

    def raw(lanes: list[Tensor]) -> Raw:
        found = score(metrics, reference, [logits[None] for logits in lanes])
        return {name: float(value) for name, value in found.items()}

    return Scale(
        pair=pair,
        metrics=metrics,
        reference=reference,
        corrupt=raw(corrupt),
        clean=None if clean is None else raw(clean),
    )


def scored(
    model: PatchableModel,
    scale: Scale,
    lanes: Sequence[Lane],
    residuals: Sequence[Tensor],
    *,
    chunk_bytes: int,
) -> list[Raw | None]:
    """Return the raw metrics of each cell; `None` where one is not finite.

    Logits of all cells at once would be the largest tensor of the sweep, so they are made in parts.

    Args:
        model: the model.
        scale: what is measured.
        lanes: of the pair.
        residuals: of each lane. Shape (cells, reads, d_model).
        chunk_bytes: memory that the logits of one part may take.
    """
    columns, reference = _columns(scale, lanes)
    width = model.vocab_size if columns is None else len(columns)
    reads = sum(lane.reads for lane in lanes)
    # Logits, log-probabilities, and two intermediate results of that size, all float32.
    size = max(1, chunk_bytes // (reads * width * 4 * 4))
    found: list[Raw | None] = []
    with model.computing():
        for parts in zip(*(torch.split(rows, size) for rows in residuals), strict=True):
            logits = [
                model.logits(part.flatten(0, 1), columns=columns).reshape(*part.shape[:2], -1)
                for part in parts
            ]
            found += _raw(score(scale.metrics, reference, logits))
    return found


def _columns(scale: Scale, lanes: Sequence[Lane]) -> tuple[Tensor | None, Reference]:
    """Return the only tokens whose logits matter, if not all, and how to refer to these."""
    reference = scale.reference
    if set(raw_metrics(scale.metrics)) != {"logit_diff"} or len(lanes) > 1:
        return None, reference
    assert reference.foil is not None  # noqa: S101 - a spec without foil is refused
    answer, foil = torch.split(torch.arange(2, device=reference.answer.device), 1)
    own = Reference(answer=answer, foil=foil, log_probs=None)
    return torch.cat([reference.answer, reference.foil]), own


def _raw(values: dict[MetricName, Tensor]) -> list[Raw | None]:
    columns = {name: column.tolist() for name, column in values.items()}
    cells = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [cell if all(map(math.isfinite, cell.values())) else None for cell in cells]

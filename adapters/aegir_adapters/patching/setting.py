"""What a sweep knows before it patches: every lane's unpatched run and baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from aegir_adapters.patching.forwards import Forwards
from aegir_adapters.patching.hooks import Site
from aegir_adapters.patching.lanes import Lane, stacked
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.staircase import Staircase
from aegir_adapters.patching.trace import Trace, trace

__all__ = ["Setting", "Stage", "settle"]


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """All lanes of one length that are patched, and what computes their patches.

    Attributes:
        lanes: the lanes, in the order of the trace.
        token_ids: shape (lanes, length), int64.
        trace: their unpatched run.
        engine: computes their patches.
    """

    lanes: tuple[Lane, ...]
    token_ids: Tensor
    trace: Trace
    engine: Staircase | Forwards


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The unpatched runs.

    Attributes:
        stages: by length of their lanes.
        baselines: logits of each lane, unpatched, and of the clean lanes. Shape
            (reads, vocabulary).
        token_layers: what all of it took.
    """

    stages: dict[int, Stage]
    baselines: dict[Lane, Tensor]
    token_layers: int

    def stage(self, lane: Lane) -> tuple[Stage, int]:
        """Return the stage of a lane that is patched, and its index there."""
        stage = self.stages[lane.length]
        return stage, stage.lanes.index(lane)


def settle(
    model: PatchableModel, patched: Sequence[Lane], clean: Sequence[Lane], *, sites: set[Site]
) -> Setting:
    """Run all lanes unpatched, those of one length in one forward.

    Args:
        model: the model.
        patched: lanes whose activations are needed.
        clean: lanes of which only the logits are.
        sites: whose activations.
    """
    lengths: dict[int, tuple[list[Lane], list[Lane]]] = defaultdict(lambda: ([], []))
    for which, lanes in enumerate((patched, clean)):
        for lane in lanes:
            lengths[lane.length][which].append(lane)
    stages: dict[int, Stage] = {}
    baselines: dict[Lane, Tensor] = {}
    for length, (own, guests) in sorted(lengths.items()):
        ids = stacked([*own, *guests], model.device)
        if own:
            tap = model.engine == "staircase"
            run = trace(model, model.parts, ids, sites=sites, lanes=len(own), tap=tap)
            final = run.final
            stages[length] = _stage(model, own, ids[: len(own)], run)
        else:
            with model.computing():
                final = model.run_layers(ids)
        every = [*own, *guests]
        rows = [final[row, -lane.reads :] for row, lane in enumerate(every)]
        with model.computing():
            logits = model.logits(torch.cat(rows))
        parts = torch.split(logits, [lane.reads for lane in every])
        baselines |= dict(zip(every, parts, strict=True))
    tokens = sum(lane.length for lane in (*patched, *clean))
    return Setting(stages=stages, baselines=baselines, token_layers=tokens * model.num_layers)


def _stage(model: PatchableModel, lanes: list[Lane], ids: Tensor, run: Trace) -> Stage:
    # The guests' residuals have served; the trace lives as long as the sweep.
    run = msgspec.structs.replace(run, final=run.final[: len(lanes)].clone())
    engine = Staircase(model, run) if model.engine == "staircase" else Forwards(model, run, ids)
    return Stage(lanes=tuple(lanes), token_ids=ids, trace=run, engine=engine)

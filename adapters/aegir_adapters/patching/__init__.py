"""Activation patching: which layer and which position carry what an answer depends on.

    study = PatchStudy(PatchableModel(model, tokenizer=tokenizer))
    result = await study.sweep_layers_positions(corrupt, clean_prompt=clean, layers=range(12), ...)

`sweep` is the engine below it: one generator, without a store or a server. `patching.routes` serves
a model over HTTP and `PatchStudy(base_url=...)` asks it, with the same results. `SweepCallback`
sweeps the policy that a transformers trainer trains.
"""

from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.client import PatchStudy
from aegir_adapters.patching.during_training import SweepCallback, SweepingStatistics
from aegir_adapters.patching.failing import SweepFailedError
from aegir_adapters.patching.model import PatchableModel, PatchingError
from aegir_adapters.patching.options import CleanRun
from aegir_adapters.patching.request import RequestError
from aegir_adapters.patching.results import CellBatch, CellResult, SweepBegin, SweepEnd
from aegir_adapters.patching.sources import (
    FeatureSource,
    MeanSource,
    RunSource,
    SourceRun,
    VectorSource,
    ZeroSource,
)
from aegir_adapters.patching.spec import SweepSpec
from aegir_adapters.patching.sweep import sweep
from aegir_adapters.patching.sweep_result import SweepResult

__all__ = [
    "CellBatch",
    "CellResult",
    "CleanRun",
    "FeatureSource",
    "MeanSource",
    "PatchStudy",
    "PatchableModel",
    "PatchingError",
    "RequestError",
    "RunSource",
    "SourceRun",
    "SweepBegin",
    "SweepCallback",
    "SweepEnd",
    "SweepFailedError",
    "SweepResult",
    "SweepSpec",
    "SweepingStatistics",
    "VectorSource",
    "ZeroSource",
    "capture",
    "sweep",
]

"""Training from a preset: `aegir train`.

A preset is a data file that says what is trained, on how many devices, with which SAEs, prompts and
reward. `plan` resolves one into everything that will happen, checks included, and touches nothing;
`train` does it. The heavy libraries are imported when a check or the training needs them.
"""

from __future__ import annotations

from aegir_adapters.train.checkpoints import Resumption
from aegir_adapters.train.checks import Check, Verdict
from aegir_adapters.train.interruption import Interruption
from aegir_adapters.train.memory import MemoryEstimate, Workload, estimate_memory
from aegir_adapters.train.model_files import ModelFiles
from aegir_adapters.train.options import TrainOptions
from aegir_adapters.train.plan import Plan, Setting, plan
from aegir_adapters.train.prepared import AssetPaths
from aegir_adapters.train.preset import Preset
from aegir_adapters.train.preset_files import load_preset, preset_names
from aegir_adapters.train.process_group import ProcessGroup
from aegir_adapters.train.reporting import Advance, Reporter, Silent
from aegir_adapters.train.requirements import UnmetRequirementsError, require_all
from aegir_adapters.train.run import LaunchError, Outcome, admit, reinforce, train
from aegir_adapters.train.sources import ModelSource

__all__ = [
    "Advance",
    "AssetPaths",
    "Check",
    "Interruption",
    "LaunchError",
    "MemoryEstimate",
    "ModelFiles",
    "ModelSource",
    "Outcome",
    "Plan",
    "Preset",
    "ProcessGroup",
    "Reporter",
    "Resumption",
    "Setting",
    "Silent",
    "TrainOptions",
    "UnmetRequirementsError",
    "Verdict",
    "Workload",
    "admit",
    "estimate_memory",
    "load_preset",
    "plan",
    "preset_names",
    "reinforce",
    "require_all",
    "train",
]

"""Streams a trainer's SAE features, rewards and progress into a run.

from aegir_adapters.trainer import observe

observe(trainer, sae={0: sae_0, 20: sae_20})
trainer.train()
"""

from __future__ import annotations

from aegir_adapters.trainer.autoencoder import SparseAutoencoder, TopLatents
from aegir_adapters.trainer.callback import SidecarCallback, observe
from aegir_adapters.trainer.identity import verify_resume
from aegir_adapters.trainer.layers import default_layers_to_hook
from aegir_adapters.trainer.options import RecordingOptions
from aegir_adapters.trainer.rows import Precision

__all__ = [
    "Precision",
    "RecordingOptions",
    "SidecarCallback",
    "SparseAutoencoder",
    "TopLatents",
    "default_layers_to_hook",
    "observe",
    "verify_resume",
]

"""What can be chosen about a training run beside its preset."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

__all__ = ["DEFAULT_PRESET", "LATEST", "TrainOptions"]

DEFAULT_PRESET = "9b-local-l0-50"

LATEST = "latest"
"""The checkpoint to resume from that is the newest good one."""


class TrainOptions(Struct, frozen=True, kw_only=True):
    """The choices of a training run; what is `None` comes from elsewhere, see `Setting`.

    Attributes:
        policy_preset: name of a preset, or path of a TOML file.
        output_dir: the run directory.
        sae_num_layers: how many layers are hooked.
        sae_live_spill_every_n_steps: how many steps' records are appended together.
        steps: optimizer steps, those before a resume included.
        seed: see `Preset`.
        resume: `latest`, or a checkpoint of the run by name or path; a new run if absent.
        model: local directory or id on the Hugging Face Hub.
        sae: where the SAEs lie, see `Saes.path`.
        prompts: JSONL file.
        reward: `MODULE:FUNCTION`.
        allow_drift: resume with another model, other SAEs or layers than were recorded.
        allow_download: fetch a model from the hub if it is not in the cache.
    """

    policy_preset: str | None = None
    output_dir: Path | None = None
    sae_num_layers: int | None = None
    sae_live_spill_every_n_steps: int | None = None
    steps: int | None = None
    seed: int | None = None
    resume: str | None = None
    model: str | None = None
    sae: str | None = None
    prompts: str | None = None
    reward: str | None = None
    allow_drift: bool = False
    allow_download: bool = False

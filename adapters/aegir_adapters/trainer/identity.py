"""What a run was recorded with, and whether a resumed run still is that."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aegir_stream.config import P5Cfg
from aegir_stream.errors import IdentityDriftError
from aegir_stream.layout import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import TrainingArguments

    from aegir_adapters.trainer.autoencoder import SparseAutoencoder

__all__ = [
    "drift_between",
    "drift_error",
    "git_commit",
    "hyper_parameters",
    "library_versions",
    "run_identity",
    "verify_resume",
]

COMPARED = ("model_config_sha256", "sae", "layers", "top_k", "catalogue")
"""Fields of an identity that a resumed run may not change unnoticed."""

CATALOGUE = ("catalog_version", "catalog_n_*", "*_hash")
"""Patterns of the user's own fields that are compared as well: what rewards are computed from."""

_LIBRARIES = ("aegir-stream", "accelerate", "numpy", "peft", "torch", "transformers", "trl", "vllm")

# What these say changes with where a model was loaded from and by which release, not with what it
# is; trainers set the cache switch by themselves.
_VOLATILE = frozenset(
    {"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype"}
)

_SECRETS = ("token", "key", "secret", "password")


def run_identity(
    model: nn.Module | None,
    saes: Mapping[int, SparseAutoencoder],
    *,
    top_k: int,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what is recorded here: the model, the SAEs, the layers, how many latents.

    Plain JSON values; the SAE of each layer by the layer's number as text. Of the user's own
    metadata, `catalogue` holds the fields that `CATALOGUE` names.
    """
    layers = sorted(saes)
    own = {
        name: value
        for name, value in (metadata or {}).items()
        if any(fnmatchcase(name, pattern) for pattern in CATALOGUE)
    }
    return {
        **_model_identity(model),
        "sae": {str(layer): _plain(saes[layer].identity()) for layer in layers},
        "layers": layers,
        "top_k": top_k,
        "catalogue": _plain(own),
    }


def drift_between(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields in which two identities differ: {field: [recorded, present]}.

    Only fields that `COMPARED` names and both identities hold; those of `catalogue` one by one,
    under their own names. Where an SAE was loaded from does not count.
    """
    before, now = (_compared_fields(identity) for identity in (recorded, present))
    common = (name for name in before if name in now)
    return {name: [before[name], now[name]] for name in common if before[name] != now[name]}


def drift_error(checkpoint: str, drift: Mapping[str, Any]) -> IdentityDriftError:
    """Return the error that names what differs from a checkpoint, and how to accept it."""
    changed = "; ".join(f"`{k}` was {was!r}, is {now!r}" for k, (was, now) in drift.items())
    return IdentityDriftError(
        f"The run differs from what `{checkpoint}` was recorded with: {changed}",
        hint="Resume with what was recorded, or accept the difference with allow_drift=True",
    )


def verify_resume(
    checkpoint: str | Path,
    identity: Mapping[str, Any],
    *,
    cfg: P5Cfg | None = None,
    allow_drift: bool = False,
) -> dict[str, Any]:
    """Check that a resumed run is still the one that was recorded, before a trainer is made.

    A `SidecarCallback` does the same when training begins.

    Args:
        checkpoint: directory of the checkpoint to resume from.
        identity: what would be recorded now, see `SidecarCallback.identity`.
        cfg: file names, where they are not the default ones.
        allow_drift: return the differences instead of raising.

    Returns:
        dict: what differs, recorded and present value by field; empty where nothing does.

    Raises:
        IdentityDriftError: the identities differ, and drift is not allowed.
        OSError: the checkpoint's sidecar is missing or cannot be read.
    """
    directory = Path(checkpoint)
    here = msgspec.structs.replace(cfg or P5Cfg(), output_dir=str(directory.parent))
    drift = drift_between(RunDirectory(here).read_metadata(directory.name), identity)
    if drift and not allow_drift:
        raise drift_error(directory.name, drift)
    return drift


def hyper_parameters(args: TrainingArguments) -> dict[str, Any]:
    """Return the trainer's arguments as plain JSON values, secrets left out."""
    return {
        name: _plain(value)
        for name, value in args.to_dict().items()  # type: ignore[no-untyped-call]
        if not any(name.endswith(f"_{secret}") for secret in _SECRETS)
    }


def git_commit() -> str | None:
    """Return the commit of the working directory, `None` outside a repository."""
    try:
        answer = subprocess.run(
            ("git", "rev-parse", "HEAD"),  # noqa: S607 - found on PATH on purpose
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide on a run's numbers."""
    installed = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _model_identity(model: nn.Module | None) -> dict[str, Any]:
    config = getattr(model, "config", None)
    if model is None or config is None:
        return {}
    described = {k: v for k, v in _plain(config.to_dict()).items() if k not in _VOLATILE}
    canonical = msgspec.json.encode(described, order="deterministic")
    return {
        "model": getattr(config, "_name_or_path", "") or type(model).__name__,
        "model_class": type(model).__name__,
        "model_config": described,
        "model_config_sha256": hashlib.sha256(canonical).hexdigest()[:16],
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def _compared_fields(identity: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: _comparable(identity[name]) for name in COMPARED if name in identity}
    catalogue: dict[str, Any] = fields.pop("catalogue", {})
    return fields | catalogue


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _comparable(v) for k, v in value.items() if k != "path"}
    return value


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; what JSON has no word for becomes text."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=str))

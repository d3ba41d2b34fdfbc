"""Where policy and SAEs lie: on this disk, in the hub's cache, or still to be fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from aegir_adapters.train.checks import Check, missing, ok
from aegir_adapters.train.libraries import hub_offline
from aegir_adapters.train.model_files import ModelFiles, read_model_files, tensors_in
from aegir_stream.errors import MissingExtraError, SAEFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegir_adapters.train.preset import Policy, Saes

__all__ = ["ModelSource", "check_model", "check_saes", "model_source", "sae_place"]

_CONFIG = "cfg.json"
_WEIGHTS = "sae_weights.safetensors"


class ModelSource(Struct, frozen=True, kw_only=True):
    """Where a model is loaded from.

    Attributes:
        name: local directory, or id on the hub.
        is_local: whether it is a directory that was named as such.
        files: what its files say; `None` if there are none here.
        fetch: whether it may be fetched from the hub.
        barred: why not, where the answer is no.
    """

    name: str
    is_local: bool
    files: ModelFiles | None = None
    fetch: bool = False
    barred: str = ""


def model_source(policy: Policy, *, allow_download: bool) -> ModelSource | None:
    """Look for a policy's model; nothing is fetched. `None` if none was named."""
    if policy.model is None:
        return None
    directory = Path(policy.model).expanduser()
    if directory.is_dir():
        files = read_model_files(directory)
        return ModelSource(name=str(directory), is_local=True, files=files)
    if directory.is_absolute() or policy.model.startswith((".", "~")):
        return ModelSource(name=policy.model, is_local=True)
    cached = _cached(policy.model, policy.revision)
    there = read_model_files(cached) if cached else None
    if there is not None and not there.missing:
        return ModelSource(name=policy.model, is_local=False, files=there)
    barred = _why_not_fetched(allow_download=allow_download)
    return ModelSource(
        name=policy.model, is_local=False, files=there, fetch=not barred, barred=barred
    )


def check_model(source: ModelSource | None, policy: Policy) -> Check:
    """Tell whether the model is there and whole, or will be fetched."""
    if source is None:
        return missing("model", "none is named", "Name a directory or hub id with --model")
    if source.fetch:
        return ok("model", f"{source.name} will be fetched from the Hugging Face Hub")
    if source.files is None:
        place = "no such directory" if source.is_local else "not in the hub's cache"
        remedy = "Name its directory with --model" + ("" if source.is_local else source.barred)
        return missing("model", f"{source.name}: {place}", remedy)
    files = source.files
    if files.missing:
        return missing(
            "model",
            f"{files.directory} lacks {', '.join(files.missing)}",
            "Save it with save_pretrained, weights as safetensors, its tokenizer beside it",
        )
    size = "" if files.parameters is None else f", {files.parameters:,} parameters"
    said = policy.layers
    differs = said is not None and files.layers is not None and files.layers != said
    note = f" (the preset says {said} layers; the model's own count holds)" if differs else ""
    return ok("model", f"{files.directory}: {files.layers} layers{size}{note}")


def sae_place(path: str, layer: int) -> tuple[str, int | None]:
    """Return where the SAE of a layer lies, and the layer if those of others lie there as well."""
    if "{layer}" in path:
        return path.replace("{layer}", str(layer)), None
    root = Path(path).expanduser()
    for name in (f"layer-{layer}", f"layer_{layer}"):
        if (root / name).is_dir():
            return str(root / name), None
    return path, layer


def check_saes(saes: Saes, layers: Sequence[int], *, width: int | None) -> Check:
    """Tell whether the SAE of each hooked layer is there, whole, and as wide as the model."""
    if saes.path is None:
        wanted = ", ".join(f"layer-{layer}" for layer in layers)
        published = f"; published as {saes.published}" if saes.published else ""
        return missing(
            "SAEs",
            f"no directory is named{published}",
            f"Name one with --sae that holds {wanted}, or a published set of them that was fetched",
        )
    places = [sae_place(saes.path, layer) for layer in layers]
    faults = [fault for place, layer in places if (fault := _sae_fault(place, layer, width))]
    if faults:
        return missing("SAEs", "; ".join(faults), "Save them with save_sae, or name others: --sae")
    return ok("SAEs", f"{saes.path}: layers {', '.join(map(str, layers))}")


def _sae_fault(place: str, layer: int | None, width: int | None) -> str | None:
    directory = Path(place).expanduser()
    if (directory / _CONFIG).is_file() and (directory / _WEIGHTS).is_file():
        return _saelens_fault(directory, width)
    try:
        from aegir_adapters.sae import find_sae  # noqa: PLC0415 - needs the extra, takes seconds

        with hub_offline():
            found = find_sae(place, layer=layer)
    except (SAEFormatError, MissingExtraError) as error:
        return str(error)
    except ImportError:
        return None
    return f"{found.weights}: {found.needs_scale}" if found.needs_scale else None


def _saelens_fault(directory: Path, width: int | None) -> str | None:
    try:
        config = json.loads((directory / _CONFIG).read_bytes())
        d_in = config["d_in"]
    except OSError:
        return f"{directory} holds no {_CONFIG}"
    except (ValueError, KeyError, TypeError):
        return f"{directory / _CONFIG} is no configuration of SAELens v6"
    weights = tensors_in(directory / _WEIGHTS)
    if weights is None or not weights.is_whole:
        return f"{directory / _WEIGHTS} is missing or damaged"
    if width is not None and d_in != width:
        return f"{directory} reads vectors of {d_in}, the model's are of {width}"
    return None


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the newest snapshot of a model in the hub's cache."""
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - needs the extra
        from huggingface_hub.errors import (  # noqa: PLC0415
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        return None
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _why_not_fetched(*, allow_download: bool) -> str:
    if not allow_download:
        return ", or fetch it with --allow-download"
    try:
        from huggingface_hub.constants import is_offline_mode  # noqa: PLC0415 - needs the extra
    except ImportError:
        return ""
    return "; HF_HUB_OFFLINE forbids to fetch it" if is_offline_mode() else ""

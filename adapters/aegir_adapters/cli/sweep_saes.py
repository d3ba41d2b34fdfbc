"""The SAEs that a run was recorded with, found where they lie now and known by their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aegir_adapters.cli.extras import require
from aegir_stream.errors import OptionError

if TYPE_CHECKING:
    from aegir_adapters.cli.sweep_model import Subject
    from aegir_adapters.patching.model import PatchableModel
    from aegir_adapters.sae import SparseAutoencoder

__all__ = [
    "LoadedSAE",
    "find_sae",
    "recorded_layers",
]


class _Place(NamedTuple):
    """A directory or file on this disk, or in a repository on the hub."""

    path: str
    revision: str | None = None


class LoadedSAE(NamedTuple):
    """An SAE that can be patched with.

    Attributes:
        sae: the SAE.
        name: where it lies, below the run if it lies there.
        weights_sha256: what tells its weights from others.
        warning: what a reader should know of it, if anything.
    """

    sae: SparseAutoencoder
    name: str
    weights_sha256: str
    warning: str | None = None


def recorded_layers(subject: Subject) -> tuple[int, ...]:
    """Return the layers that the run was recorded at with an SAE."""
    return tuple(sorted(int(layer) for layer in _recorded(subject) if layer.isdecimal()))


def find_sae(
    subject: Subject, layer: int, *, model: PatchableModel, path: str | None = None
) -> LoadedSAE:
    """Return the SAE of a layer, on the model's device.

    Args:
        subject: what is swept.
        layer: the layer whose output it reads.
        model: the model that is loaded.
        path: where an SAE lies, on this disk or on the hub; the run's own is looked for if absent.

    Raises:
        OptionError: the run has none for this layer, or another lies where it was.
        SAEFormatError: it cannot be read.
        LayerError: it does not read what the layer puts out.
        ShapeError: it is of another width than the model.
    """
    require("safetensors", "torch", "numpy", extra="sae")
    if not 0 <= layer < model.num_layers:
        raise OptionError(
            f"Expected the layer of an SAE within 0..{model.num_layers - 1}, got {layer}",
            hint=f"`{subject.name}` has {model.num_layers} layers, counted from 0",
        )
    recorded = _recorded(subject)
    if path is not None:
        found = _named(path, layer, model, recorded)
    else:
        found = _recorded_one(subject, layer, model, recorded.get(str(layer), {}))
    _check_fits(found.sae, layer, model)
    return found._replace(name=_shortened(found.name, subject))


def _named(path: str, layer: int, model: PatchableModel, recorded: Mapping[str, Any]) -> LoadedSAE:
    loaded = _load(_Place(path), layer, model)
    doubt = _doubt(loaded.weights_sha256, layer, recorded)
    if doubt is None:
        return loaded
    return loaded._replace(warning=f"The SAE in {path} ({loaded.weights_sha256}): {doubt}")


def _doubt(weights: str, layer: int, recorded: Mapping[str, Any]) -> str | None:
    """Return why an SAE that was named may not be the one that was meant."""
    known = {key: one.get("weights_sha256") for key, one in recorded.items()}
    layers = [key for key, one in known.items() if one == weights]
    if str(layer) in layers:
        return None
    if layers:
        return f"the run records layer {layers[0]} with it, not layer {layer}"
    if str(layer) in known:
        return f"the run records layer {layer} with another one ({known[str(layer)]})"
    return None


def _recorded_one(
    subject: Subject, layer: int, model: PatchableModel, recorded: Mapping[str, Any]
) -> LoadedSAE:
    if not recorded:
        raise _without_sae(subject, layer)
    others: list[LoadedSAE] = []
    for place in _places(subject, recorded):
        loaded = _load(place, layer, model)
        if loaded.weights_sha256 == recorded.get("weights_sha256"):
            return loaded
        others.append(loaded)
    expected = f"`{recorded.get('weights_sha256')}`, which `{subject.name}` was recorded with"
    if others:
        got = ", ".join(f"`{other.weights_sha256}` in {other.name}" for other in others)
        raise OptionError(
            f"Expected the SAE of layer {layer} to have the weights {expected}, got {got}",
            hint="Its latents are others. Name where the SAE lies now with --sae PATH",
        )
    raise OptionError(
        f"Expected the SAE of layer {layer} with the weights {expected}, got nothing in "
        f"`{recorded.get('path')}`",
        hint="Name where it lies now with --sae PATH",
    )


def _without_sae(subject: Subject, layer: int) -> OptionError:
    layers = ", ".join(map(str, recorded_layers(subject)))
    if subject.run is None:
        return OptionError(
            f"Expected an SAE for layer {layer}, got none: `{subject.name}` is a model, not a "
            "checkpoint of a run",
            hint="Name one with --sae PATH",
        )
    return OptionError(
        f"Expected a layer whose SAE the run records, {layers or 'of which it has none'}, got "
        f"{layer}",
        hint="Name another layer, or an SAE for this one with --sae PATH",
    )


def _recorded(subject: Subject) -> Mapping[str, Any]:
    """Return what a checkpoint, or else its run, says of its SAEs, by layer."""
    if subject.run is None:
        return {}
    reads: list[Callable[[], dict[str, Any]]] = [subject.run.read_manifest]
    if subject.checkpoint is not None:
        reads.insert(0, partial(subject.run.read_metadata, subject.checkpoint.name))
    for read in reads:
        try:
            saes = read().get("sae")
        except (OSError, ValueError):
            # A sidecar that is missing or damaged; `aegir verify` says which.
            continue
        if isinstance(saes, dict) and saes:
            return {layer: sae for layer, sae in saes.items() if isinstance(sae, dict)}
    return {}


def _places(subject: Subject, recorded: Mapping[str, Any]) -> Iterator[_Place]:
    """Yield where the SAE may lie: where it was, and where it is if the run has moved since."""
    path = str(recorded.get("path", ""))
    repository = recorded.get("repository")
    if path and Path(path).exists():
        yield _Place(path)
    elif repository is not None:
        yield _Place(f"{repository}/{path}".rstrip("/"), recorded.get("revision"))
    moved = _within(subject, Path(path))
    if moved is not None and moved.absolute() != Path(path).absolute():
        yield _Place(str(moved))


def _within(subject: Subject, path: Path) -> Path | None:
    """Return what has the end of a path in common with it and lies in the run."""
    assert subject.run is not None  # noqa: S101 - nothing is recorded without a run
    parts = path.parts
    tails = (subject.run.root.joinpath(*parts[start:]) for start in range(1, len(parts)))
    return next((tail for tail in tails if tail.exists()), None)


def _load(place: _Place, layer: int, model: PatchableModel) -> LoadedSAE:
    from aegir_adapters.sae import load_sae  # noqa: PLC0415 - needs the extra, takes seconds

    sae = load_sae(place.path, layer=layer, device=model.device, revision=place.revision)
    return LoadedSAE(sae=sae, name=place.path, weights_sha256=sae.identity()["weights_sha256"])


def _check_fits(sae: SparseAutoencoder, layer: int, model: PatchableModel) -> None:
    from aegir_adapters.trainer.layers import check_saes  # noqa: PLC0415 - needs the extra

    check_saes({layer: sae}, model.module, top_k=1)


def _shortened(name: str, subject: Subject) -> str:
    """Return a path without that of the run, if it lies there."""
    if subject.run is None:
        return name
    path, root = Path(name).absolute(), subject.run.root.absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else name

"""Which decoder layers to hook, and where a model keeps them."""

from __future__ import annotations

import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import nn

from aegir_stream.errors import LayerError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aegir_adapters.trainer.autoencoder import SparseAutoencoder

__all__ = ["check_layers", "check_saes", "decoder_layers", "default_layers_to_hook", "unwrapped"]

_WRAPPERS = ("module", "_orig_mod")
"""Attributes under which DDP and `torch.compile` keep the module they wrap."""

_PATHS = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "model.decoder.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "backbone.layers",
    "layers",
    "h",
)

_INSIDE_A_LAYER = re.compile(r"blocks\.\d+\.(?!hook_resid_(?:pre|post)$)")
"""How SAELens and those who follow it name places in a layer, its input and output aside."""

_WIDTHS = ("hidden_size", "n_embd", "d_model")


def default_layers_to_hook(num_layers: int, n: int) -> list[int]:
    """Return n evenly spaced layers, from the first: (40, 2) gives [0, 20].

    All layers when `n >= num_layers`.

    Raises:
        LayerError: `n` or `num_layers` is below 1.
    """
    for name, value in (("num_layers", num_layers), ("n", n)):
        if value < 1:
            raise LayerError(
                f"Expected `{name}` >= 1, got {value}",
                hint="Ask for at least one layer of a model that has at least one",
            )
    if n >= num_layers:
        return list(range(num_layers))
    step = num_layers // n
    return [i * step for i in range(n)]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Find the decoder layers of a model, inside whatever wraps it (DDP, compile, PEFT).

    Raises:
        LayerError: the model has no list of layers in a known place, nor exactly one whose length
            is the number of layers its configuration declares.
    """
    model = unwrapped(model)
    for path in _PATHS:
        found = _at(model, path)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    declared = getattr(_text_config(model), "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == declared]
    if len(lists) == 1:
        return lists[0]
    raise LayerError(
        f"Expected the decoder layers of `{type(model).__name__}` at one of {', '.join(_PATHS)}, "
        f"found {len(lists)} lists of {declared} modules elsewhere",
        hint="Pass the language model itself, or one that keeps its layers in one of these places",
    )


def check_layers(layers: Iterable[int], num_layers: int) -> list[int]:
    """Return the layers in ascending order, if a model with `num_layers` layers has them all.

    Raises:
        LayerError: a layer is out of range or named twice.
    """
    chosen = sorted(layers)
    for layer in chosen:
        if not 0 <= layer < num_layers:
            raise LayerError(
                f"Expected layers in 0..{num_layers - 1}, got {layer}",
                hint=f"Choose among the model's {num_layers} decoder layers, counted from 0",
            )
    if len(set(chosen)) != len(chosen):
        raise LayerError(
            f"Expected every layer once, got {chosen}", hint="Name each layer a single time"
        )
    return chosen


def check_saes(saes: Mapping[int, SparseAutoencoder], model: nn.Module, *, top_k: int) -> None:
    """Return if every SAE reads what its layer puts out, and has k latents.

    The width of a model whose configuration states none is not judged, nor the place that an SAE
    reads where its `identity` names none.

    Raises:
        LayerError: an SAE is a transcoder, or reads another place of the model.
        ShapeError: an SAE's `d_model` is not the model's, or it has fewer than `top_k` latents.
    """
    config = _text_config(unwrapped(model))
    widths = (getattr(config, name, None) for name in _WIDTHS)
    width = next((value for value in widths if isinstance(value, int)), None)
    for layer, sae in saes.items():
        _check_place(sae, layer)
        if width is not None and sae.d_model != width:
            raise ShapeError(
                f"Expected an SAE with d_model {width} at layer {layer}, got {sae.d_model}",
                hint=f"Load an SAE that was trained on `{type(unwrapped(model)).__name__}`",
            )
        if not 1 <= top_k <= sae.n_latents:
            raise ShapeError(
                f"Expected top_k in 1..{sae.n_latents} at layer {layer}, got {top_k}",
                hint="Record no more latents than the SAE has",
            )


def _check_place(sae: SparseAutoencoder, layer: int) -> None:
    """Make sure that an SAE reads the residual stream behind a layer, as far as it says."""
    identity = sae.identity()
    hook, reads = identity.get("hook_name"), identity.get("layer")
    is_transcoder = getattr(sae, "is_transcoder", False)
    if is_transcoder or _INSIDE_A_LAYER.match(str(hook)):
        raise LayerError(
            f"Expected an SAE of the residual stream at layer {layer}, got"
            f" {'a transcoder' if is_transcoder else 'one'} of `{hook}`",
            hint="Only what decoder layers put out is captured; load an SAE that was trained on it",
        )
    if reads is not None and reads != layer:
        raise LayerError(
            f"Expected an SAE of layer {layer}, got one of layer {reads} (`{hook}`)",
            hint=f"Pass it for layer {reads}, or set its `origin` to Origin() to record it all the"
            " same",
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside whatever wraps it (DDP, FSDP, compile, PEFT)."""
    for name in _WRAPPERS:
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    # PEFT keeps the model it adapts, layers in place, at `base_model.model`. Every transformers
    # model has a `base_model` too, which is a plain property without that second step.
    if callable(getattr(model, "get_base_model", None)):
        inner = _at(model, "base_model.model")
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return model


def _at(model: nn.Module, path: str) -> Any:
    try:
        return attrgetter(path)(model)
    except AttributeError:
        return None


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return getattr(config, "text_config", None) or config

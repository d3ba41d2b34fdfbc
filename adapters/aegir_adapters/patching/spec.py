"""What to sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, get_args

import msgspec

from aegir_adapters.patching.chunks import Order
from aegir_adapters.patching.metrics import METRICS, RAW, UNSLOPED, MetricName
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import Method, Position
from aegir_adapters.patching.sources import Source
from aegir_stream.errors import LayerError, OptionError

__all__ = ["SweepSpec", "check_specs"]

CHUNK_BYTES: Final = 1 << 28
"""Memory that the activations of one chunk may take: 256 MiB."""


class SweepSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to patch, with what, and what to measure.

    Attributes:
        prompt_ids: the prompt that is patched. With a clean source that is denoising; with a
            corrupt source, and the clean prompt here, it is noising.
        source: what replaces an activation; see `aegir_adapters.patching.sources`.
        hooks: names of hooks, each once.
        layers: layers to sweep, each once.
        positions: positions of the prompt to sweep, each once; one that is a tuple patches all of
            these together. `None` sweeps every position that the source has something for.
        alpha: ``(1 - alpha) * unpatched + alpha * source``; 0 and 1 are exact.
        answer_ids: the tokens whose probability is measured. Several are forced one after the
            other, and their logprobs are summed.
        foil_ids: what `logit_diff` compares the answer with.
        metrics: what to measure; see `aegir_adapters.patching.metrics`.
        order: whether the cells that a preview by gradients holds for the most important come first
            (`importance`), or those at the first positions (`position`).
        chunk_bytes: memory that the activations of one chunk may take.
        method: `exact` computes every cell with its patch in place. `attribution` estimates every
            cell to first order, ``unpatched + (source - current) . gradient`` in each metric's own
            unit, for the price of one forward and one backward for each metric: a preview that
            misses what saturates. `rank` has no gradient, and `kl` none without a clean prompt.
    """

    prompt_ids: tuple[int, ...]
    source: Source
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    answer_ids: tuple[int, ...]
    positions: tuple[Position, ...] | None = None
    alpha: float = 1.0
    foil_ids: tuple[int, ...] | None = None
    metrics: tuple[MetricName, ...] = ("logprob",)
    order: Order = "importance"
    chunk_bytes: int = CHUNK_BYTES
    method: Method = "exact"

    def swept_positions(self) -> tuple[Position, ...]:
        """Return the positions to sweep."""
        if self.positions is not None:
            return self.positions
        return self.source.positions(self.prompt_ids)


_SHARED: Final = ("hooks", "layers", "alpha", "metrics", "order", "chunk_bytes", "method")
"""What specs that are swept together have in common."""


def check_specs(model: PatchableModel, specs: Sequence[SweepSpec]) -> None:
    """Return if these specs can be swept together.

    Raises:
        OptionError: a spec does not fit the model, or another spec.
        LayerError: a layer does not exist.
    """
    if not specs:
        raise OptionError("Expected at least one `SweepSpec`, got none", hint="Pass one")
    for spec in specs:
        _check(model, spec)
        for name in _SHARED:
            if getattr(spec, name) != getattr(specs[0], name):
                raise _bad(
                    name, getattr(spec, name), f"that of the first, {getattr(specs[0], name)}"
                )


def _check(model: PatchableModel, spec: SweepSpec) -> None:
    for name in ("hooks", "layers", "metrics", "prompt_ids", "answer_ids"):
        if not getattr(spec, name):
            raise _bad(name, (), "at least one")
    for name in ("hooks", "layers", "metrics"):
        if len(set(getattr(spec, name))) < len(getattr(spec, name)):
            raise _bad(name, getattr(spec, name), "each once")
    for hook in spec.hooks:
        model.hook(hook)
    if unknown := set(spec.metrics) - set(METRICS):
        raise _bad("metrics", sorted(unknown), f"some of {', '.join(METRICS)}")
    if not math.isfinite(spec.alpha):
        raise _bad("alpha", spec.alpha, "a finite number")
    if spec.chunk_bytes < 1:
        raise _bad("chunk_bytes", spec.chunk_bytes, "at least 1")
    _check_method(spec)
    _check_layers(model, spec.layers)
    _check_tokens(model, spec)
    _check_positions(spec)


def _check_method(spec: SweepSpec) -> None:
    if spec.method not in get_args(Method):
        raise _bad("method", repr(spec.method), f"one of {', '.join(get_args(Method))}")
    if spec.method != "attribution":
        return
    flat = dict(UNSLOPED)
    if spec.source.prompt() is None:
        flat["kl"] = "without a clean prompt it is the distance from the unpatched run, and level"
    for name in spec.metrics:
        if name in flat:
            allowed = ", ".join(metric for metric in METRICS if metric not in flat)
            raise _bad(
                "metrics",
                f"{name} - it has no gradient there: {flat[name]}",
                f"some of {allowed} with method 'attribution'",
            )


def _check_layers(model: PatchableModel, layers: Sequence[int]) -> None:
    for layer in layers:
        if not 0 <= layer < model.num_layers:
            raise LayerError(
                f"Expected layers in 0..{model.num_layers - 1}, got {layer}",
                hint=f"Choose among the model's {model.num_layers} decoder layers, counted from 0",
            )


def _check_tokens(model: PatchableModel, spec: SweepSpec) -> None:
    for name in ("prompt_ids", "answer_ids", "foil_ids"):
        for token in getattr(spec, name) or ():
            if not 0 <= token < model.vocab_size:
                raise _bad(name, token, f"token ids in 0..{model.vocab_size - 1}")
    if spec.foil_ids is not None and not spec.foil_ids:
        raise _bad("foil_ids", (), "at least one, or `None`")
    if spec.foil_ids is None and "logit_diff" in {RAW.get(name, name) for name in spec.metrics}:
        raise _bad("foil_ids", None, "the token that `logit_diff` compares the answer with")


def _check_positions(spec: SweepSpec) -> None:
    positions = spec.swept_positions()
    if not positions or len(set(positions)) < len(positions):
        raise _bad("positions", positions, "at least one, each once")
    for position in positions:
        rows = (position,) if isinstance(position, int) else position
        outside = [row for row in rows if not 0 <= row < len(spec.prompt_ids)]
        if not rows or outside or len(set(rows)) < len(rows):
            last = len(spec.prompt_ids) - 1
            raise _bad("positions", position, f"positions of the prompt, 0..{last}, each once")


def _bad(name: str, got: Any, expected: str) -> OptionError:
    return OptionError(f"Expected `{name}` to be {expected}, got {got}", hint="Change the sweep")

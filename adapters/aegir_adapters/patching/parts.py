"""The parts of a decoder layer, found by watching it work.

Nothing is listed by family. One forward over a few tokens shows which module calls the attention
function, what is added to the residual stream, and whether there is a residual between attention
and MLP. Hooks that a layer's arithmetic does not offer are refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from aegir_adapters.patching.attention import Recorder, tappable
from aegir_adapters.patching.decoder import Decoder, PatchingError
from aegir_adapters.patching.hooks import Site

__all__ = ["LayerParts", "find_parts", "probe_ids"]

_MIXERS: Final = ("attn", "attention", "mixer", "mamba", "temporal")
"""Parts of the names of what mixes positions, for layers that call no attention function."""

_CLOSE: Final = 0.2
"""How far a sum may be off, as a share of a summand: in bfloat16 a sum that is twenty times as
large as the summand rounds by a twelfth of it."""

_MATRIX: Final = 2
"""Dimensions of the weights that tell a branch from a norm."""


class LayerParts(msgspec.Struct, frozen=True, kw_only=True):
    """One decoder layer.

    Attributes:
        layer: the layer.
        attention: the module that calls the attention function; `None` if none does.
        attn_branch: the module that returns what attention adds to the residual stream.
        mlp_branch: likewise of the MLP.
        projection: the module that takes `z`.
        heads: attention heads; 0 where `z` cannot be patched.
        refusals: why a site cannot be patched in this layer.
    """

    layer: nn.Module
    attention: nn.Module | None
    attn_branch: nn.Module | None
    mlp_branch: nn.Module | None
    projection: nn.Module | None
    heads: int
    refusals: Mapping[Site, str]


class _Call(NamedTuple):
    """What a module was given and what it returned."""

    module: nn.Module
    given: Tensor
    returned: Tensor


def probe_ids(decoder: Decoder, *, prompts: int = 1, length: int = 7) -> Tensor:
    """Return token ids to look at a model with. Shape (prompts, length), int64."""
    vocabulary = decoder.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    numbers = torch.arange(prompts * length, device=decoder.device)
    return (numbers * 7919 + 11).remainder(vocabulary).reshape(prompts, length)


def find_parts(decoder: Decoder) -> list[LayerParts]:
    """Return the parts of each layer.

    Raises:
        PatchingError: a layer does not take the residual that the layer before it returned.
    """
    recorder = Recorder()
    with ExitStack() as stack:
        stack.enter_context(decoder.computing(recorder if tappable(decoder.module) else None))
        modules = [module for layer in decoder.layers for module in layer.modules()]
        calls = stack.enter_context(_watched(modules))
        decoder.run_layers(probe_ids(decoder))
    _check_chain(decoder, calls)
    return [_parts(layer, calls, recorder) for layer in decoder.layers]


@contextmanager
def _watched(modules: list[nn.Module]) -> Iterator[list[_Call]]:
    """Record the calls of some modules, in the order in which they end."""
    calls: list[_Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        given = _tensors((*args, *kwargs.values()))
        returned = _tensors(out if isinstance(out, tuple | list) else (out,))
        if given and returned:
            calls.append(_Call(module, given[0].clone(), returned[0].clone()))

    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _check_chain(decoder: Decoder, calls: list[_Call]) -> None:
    own = [call for layer in decoder.layers for call in calls if call.module is layer]
    chained = len(own) == decoder.num_layers and all(
        _same(before.returned, after.given) for before, after in pairwise(own)
    )
    if not chained:
        raise PatchingError(
            f"Expected decoder layers of which each takes what the one before returned, got those "
            f"of `{type(decoder.module).__name__}`",
            hint="Pass a model with one residual stream; this one keeps several, or skips layers",
        )


def _parts(layer: nn.Module, calls: list[_Call], recorder: Recorder) -> LayerParts:
    own = next(call for call in calls if call.module is layer)
    inside = [call for call in calls if any(call.module is m for m in layer.children())]
    attention = next((module for module in layer.modules() if module in recorder.calls), None)
    mixer = next((c for c in inside if _mixes(layer, c.module, attention)), None)
    attn = _end_of_branch(mixer, inside)
    mlp = _end_of_branch(_mlp(own, inside, mixer), inside)
    projection = _projection(attention, calls, recorder)
    return LayerParts(
        layer=layer,
        attention=attention,
        attn_branch=attn and attn.module,
        mlp_branch=mlp and mlp.module,
        projection=projection,
        heads=recorder.calls[attention][1].shape[2] if attention and projection else 0,
        refusals=_refusals(own, attn, mlp, inside, projection),
    )


def _mixes(layer: nn.Module, child: nn.Module, attention: nn.Module | None) -> bool:
    if attention is not None:
        return any(module is attention for module in child.modules())
    name = next(name for name, module in layer.named_children() if module is child)
    return any(part in name for part in _MIXERS) and not _is_norm(child)


def _is_norm(module: nn.Module) -> bool:
    return all(parameter.ndim < _MATRIX for parameter in module.parameters())


def _mlp(own: _Call, inside: list[_Call], mixer: _Call | None) -> _Call | None:
    """Return the last part with matrices that returns rows as wide as the residual stream."""
    width = own.given.shape[-1]
    others = (call for call in reversed(inside) if call is not mixer)
    return next(
        (c for c in others if c.returned.shape[-1] == width and not _is_norm(c.module)), None
    )


def _end_of_branch(branch: _Call | None, inside: list[_Call]) -> _Call | None:
    """Follow a branch through the norm that sandwich layers have behind it."""
    if branch is None:
        return None
    for call in inside:
        takes = call is not branch and _same(call.given, branch.returned)
        if takes and _is_norm(call.module) and not _same(call.given, call.returned):
            return call
    return branch


def _projection(
    attention: nn.Module | None, calls: list[_Call], recorder: Recorder
) -> nn.Module | None:
    """Return the module that takes what the attention function returned."""
    if attention is None:
        return None
    z = recorder.calls[attention][1]
    below = list(attention.modules())
    takers = (c.module for c in calls if any(c.module is m for m in below) and _same(c.given, z))
    return next(takers, None)


def _refusals(
    own: _Call,
    attn: _Call | None,
    mlp: _Call | None,
    inside: list[_Call],
    projection: nn.Module | None,
) -> dict[Site, str]:
    refusals: dict[Site, str] = {}
    if projection is None:
        refusals["z"] = "no projection takes what its attention function returns"
    if not _adds_up(own, attn, mlp):
        reason = "what it adds to the residual stream is not what its branches return"
        refusals["attn_out"] = refusals["mlp_out"] = reason
    if attn is None:
        refusals["attn_out"] = "no part of it is known to mix positions"
    if mlp is None:
        refusals["mlp_out"] = "it has no MLP"
    if attn is None or mlp is None:
        refusals["resid_mid"] = "it is no attention followed by an MLP"
    elif not any(_near(c.given, _sum(own.given, attn.returned), attn.returned) for c in inside):
        refusals["resid_mid"] = (
            "its MLP does not read the residual stream after attention was added (a parallel "
            "residual has attention and MLP read the same)"
        )
    return refusals


def _adds_up(own: _Call, attn: _Call | None, mlp: _Call | None) -> bool:
    branches = [branch.returned for branch in (attn, mlp) if branch is not None]
    total = own.given
    for branch in branches:
        total = _sum(total, branch)
    return all(_near(own.returned, total, branch) for branch in branches)


def _sum(residual: Tensor, branch: Tensor) -> Tensor:
    # Some layers flatten the prompts of a batch before their MLP.
    return residual + branch.reshape(residual.shape)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))


def _near(a: Tensor, b: Tensor, summand: Tensor) -> bool:
    if a.numel() != b.numel():
        return False
    off = (a.reshape(-1).float() - b.reshape(-1).float()).norm()
    return bool(off <= _CLOSE * summand.float().norm())

"""What happens in a model when nothing is patched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import msgspec
from torch import Tensor, nn

from aegir_adapters.patching.attention import Recorder
from aegir_adapters.patching.decoder import Decoder, first_tensor
from aegir_adapters.patching.hooks import Site
from aegir_adapters.patching.parts import LayerParts

__all__ = ["Attended", "LayerCall", "Trace", "trace", "watching"]


class LayerCall(NamedTuple):
    """What a layer was called with beside the residual stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Attended(NamedTuple):
    """What a layer's attention function was called with.

    Attributes:
        key: shape (lanes, key heads, length, d_head).
        value: likewise.
        mask: as the model made it; `None` for plain causal attention.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One forward over prompts of one length, the lanes.

    Attributes:
        sites: activations by site, one tensor for each layer. Shape (lanes, length, d_model); of
            `z` (lanes, length, heads, d_head).
        final: residuals that leave the last layer. Shape (lanes + guests, length, d_model).
        calls: what each layer was called with.
        attended: what each layer's attention was called with; empty if attention was not tapped.
    """

    sites: dict[Site, list[Tensor]]
    final: Tensor
    calls: list[LayerCall]
    attended: list[Attended]

    @property
    def length(self) -> int:
        """Tokens of each lane."""
        return int(self.final.shape[1])

    def at(self, site: Site, layer: int, lane: int, positions: Sequence[int]) -> Tensor:
        """Return activations of one lane. Shape (positions, d_model); of `z` see `sites`."""
        return self.sites[site][layer][lane, list(positions)]


def trace(
    decoder: Decoder,
    parts: Sequence[LayerParts],
    token_ids: Tensor,
    *,
    sites: set[Site],
    lanes: int | None = None,
    tap: bool = False,
) -> Trace:
    """Run a model over prompts of one length and keep what happens.

    Args:
        decoder: the model.
        parts: its layers.
        token_ids: shape (prompts, length), int64.
        sites: whose activations to keep, beside `resid_pre` and `resid_post`.
        lanes: of how many prompts; the others are guests, of which only `final` is kept.
        tap: whether to keep what attention is called with.
    """
    lanes = len(token_ids) if lanes is None else lanes
    recorder = Recorder()
    wanted: set[Site] = {"attn_out" if site == "resid_mid" else site for site in sites}
    kept: dict[Site, list[Tensor]] = {"resid_pre": []}
    calls: list[LayerCall] = []

    def keep(site: Site, _: int, tensor: Tensor) -> None:
        shape = (len(token_ids), token_ids.shape[1], -1)
        kept.setdefault(site, []).append(tensor.reshape(shape)[:lanes].clone())

    with ExitStack() as stack:
        stack.enter_context(decoder.computing(recorder if tap else None))
        stack.enter_context(_calls_kept(parts, calls, kept["resid_pre"], lanes))
        stack.enter_context(watching(parts, wanted - {"resid_pre", "resid_post"}, keep))
        final = decoder.run_layers(token_ids).clone()
    if "z" in kept:
        heads = [(p.heads, z) for p, z in zip(parts, kept["z"], strict=True)]
        kept["z"] = [z.reshape(*z.shape[:2], count, -1) for count, z in heads]
    if "resid_mid" in sites:
        both = zip(kept["resid_pre"], kept["attn_out"], strict=True)
        kept["resid_mid"] = [pre + out for pre, out in both]
    kept["resid_post"] = [*kept["resid_pre"][1:], final[:lanes]]
    attended = [_attended(p, recorder, lanes) for p in parts] if tap else []
    return Trace(sites=kept, final=final, calls=calls, attended=attended)


@contextmanager
def watching(
    parts: Sequence[LayerParts], sites: set[Site], see: Callable[[Site, int, Tensor], Any]
) -> Iterator[None]:
    """Show activations of the branches and of `z` as they come; layers come in order.

    Args:
        parts: the layers.
        sites: among `attn_out`, `mlp_out` and `z`.
        see: called with site, layer and activations of any shape; what it returns, if not `None`,
            takes their place.
    """

    def output_of(site: Site, layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            seen = see(site, layer, first_tensor(output))
            if seen is None:
                return None
            return seen if isinstance(output, Tensor) else (seen, *output[1:])

        return hook

    def input_of(layer: int) -> Callable[[nn.Module, Any], Any]:
        def hook(_: nn.Module, args: Any) -> Any:
            seen = see("z", layer, args[0])
            return None if seen is None else (seen, *args[1:])

        return hook

    with ExitStack() as stack:
        for layer, part in enumerate(parts):
            for site, branch in (("attn_out", part.attn_branch), ("mlp_out", part.mlp_branch)):
                if site in sites and branch is not None:
                    handle = branch.register_forward_hook(output_of(site, layer))
                    stack.callback(handle.remove)
            if "z" in sites and part.projection is not None:
                handle = part.projection.register_forward_pre_hook(input_of(layer))
                stack.callback(handle.remove)
        yield


@contextmanager
def _calls_kept(
    parts: Sequence[LayerParts], calls: list[LayerCall], pre: list[Tensor], lanes: int
) -> Iterator[None]:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residual = args[0] if args else kwargs["hidden_states"]
        pre.append(residual[:lanes].clone())
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        calls.append(LayerCall(args[1:], others))

    with ExitStack() as stack:
        for part in parts:
            handle = part.layer.register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _attended(part: LayerParts, recorder: Recorder, lanes: int) -> Attended:
    assert part.attention is not None  # noqa: S101 - attention is tapped only where all layers have it
    call, _ = recorder.calls[part.attention]
    mask = None if call.mask is None else call.mask[:lanes]
    return Attended(call.key[:lanes], call.value[:lanes], mask)

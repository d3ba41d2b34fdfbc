"""One forward for each cell, with plain forward hooks on modules named here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

Activations = dict[str, list[Tensor]]
Edit = Callable[[Tensor], Tensor]


class Block(NamedTuple):
    """Modules of one layer: itself, what adds attention, what adds the MLP, what takes z."""

    layer: Any
    attention: Any
    mlp: Any
    projection: Any


def blocks(model: Any) -> list[Block]:  # noqa: PLR0911 - a table by family
    """Return the layers of a model, their parts by their names in this family."""
    family, base = model.config.model_type, model.base_model
    if family == "gpt2":
        return [Block(x, x.attn, x.mlp, x.attn.c_proj) for x in base.h]
    if family == "gptj":
        return [Block(x, x.attn, x.mlp, x.attn.out_proj) for x in base.h]
    if family == "gpt_neox":
        return [Block(x, x.attention, x.mlp, x.attention.dense) for x in base.layers]
    if family == "phi":
        return [Block(x, x.self_attn, x.mlp, x.self_attn.dense) for x in base.layers]
    if family == "mamba":
        return [Block(x, x.mixer, None, None) for x in base.layers]
    if family in {"gemma2", "gemma3_text", "olmo2"}:
        return [
            Block(x, x.post_attention_layernorm, x.post_feedforward_layernorm, x.self_attn.o_proj)
            for x in base.layers
        ]
    return [Block(x, x.self_attn, x.mlp, x.self_attn.o_proj) for x in base.layers]


@contextmanager
def changed_input(module: Any, edit: Edit) -> Iterator[None]:
    """Edit what a module is given."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    yield
    handle.remove()


@contextmanager
def changed_output(module: Any, edit: Edit) -> Iterator[None]:
    """Edit what a module returns."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return edit(output)
        return (edit(output[0]), *output[1:])

    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


def keeper(kept: list[Tensor]) -> Edit:
    """Return an edit that changes nothing and keeps what it sees of the first prompt."""

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor[0].clone())
        return tensor

    return keep


@torch.no_grad()
def activations(model: Any, token_ids: Sequence[int]) -> tuple[Activations, Tensor]:
    """Return activations by hook and layer, and the logits, of one prompt."""
    found: Activations = {
        name: [] for name in ("resid_pre", "attn_out", "mlp_out", "resid_post", "z")
    }
    with ExitStack() as stack:
        for block in blocks(model):
            places = (
                (changed_input, block.layer, "resid_pre"),
                (changed_output, block.attention, "attn_out"),
                (changed_output, block.mlp, "mlp_out"),
                (changed_output, block.layer, "resid_post"),
                (changed_input, block.projection, "z"),
            )
            for place, module, name in places:
                if module is not None:
                    stack.enter_context(place(module, keeper(found[name])))
        logits = model(torch.tensor([list(token_ids)])).logits[0]
    found["resid_mid"] = [
        pre + out for pre, out in zip(found["resid_pre"], found["attn_out"], strict=False)
    ]
    return found, logits


def row_set(position: int, value: Tensor) -> Edit:
    """Return an edit that sets one row."""

    def edit(tensor: Tensor) -> Tensor:
        changed = tensor.reshape(1, -1, tensor.shape[-1]).clone()
        changed[0, position] = value.reshape(-1)
        return changed.reshape(tensor.shape)

    return edit


def row_moved(position: int, difference: Tensor) -> Edit:
    """Return an edit that adds to one row."""

    def edit(tensor: Tensor) -> Tensor:
        changed = tensor.reshape(1, -1, tensor.shape[-1]).clone()
        changed[0, position] += difference
        return changed.reshape(tensor.shape)

    return edit


def head_set(position: int, head: int, heads: int, value: Tensor) -> Edit:
    """Return an edit that sets one head's part of one row."""

    def edit(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        width = tensor.shape[-1] // heads
        part = slice(head * width, (head + 1) * width)
        changed[0, position, part] = value.reshape(-1)[part]
        return changed

    return edit


def place(
    model: Any,
    hook: str,
    layer: int,
    position: int,
    source: Activations,
    other: int,
    before: Activations,
) -> Any:
    """Return the context in which one cell is patched.

    Args:
        model: the model.
        hook: name of the hook.
        layer: the layer.
        position: of the patched prompt.
        source: activations of the source run.
        other: the aligned position of the source run.
        before: activations of the unpatched prompt.
    """
    block = blocks(model)[layer]

    def whole(site: str) -> Tensor:
        # A model without an MLP keeps none of its activations.
        return source[site][layer][other] if source[site] else torch.empty(0)

    def moved(site: str) -> Tensor:
        return source[site][layer][other] - before[site][layer][position]

    if hook.startswith("z."):
        heads = model.config.num_attention_heads
        part = head_set(position, int(hook[2:]), heads, source["z"][layer][other])
        return changed_input(block.projection, part)
    # The residual is pre + attn_out; with this attn_out it is the source's.
    needed = source["resid_mid"][layer][other] - before["resid_pre"][layer][position]
    into, module, edit = {
        "resid_pre": (changed_input, block.layer, row_set(position, whole("resid_pre"))),
        "resid_mid": (changed_output, block.attention, row_set(position, needed)),
        "resid_post": (changed_output, block.layer, row_set(position, whole("resid_post"))),
        "post_block": (changed_output, block.layer, row_set(position, whole("resid_post"))),
        "attn_out": (changed_output, block.attention, row_set(position, whole("attn_out"))),
        "mlp_out": (changed_output, block.mlp, row_set(position, whole("mlp_out"))),
        "pre_attn": (changed_output, block.attention, row_moved(position, moved("resid_pre"))),
        "post_attn": (changed_output, block.mlp, row_moved(position, moved("resid_mid"))),
        "z": (changed_input, block.projection, row_set(position, whole("z"))),
    }[hook]
    return into(module, edit)


@torch.no_grad()
def patched_logits(model: Any, token_ids: Sequence[int], context: Any) -> Tensor:
    """Return the logits of a prompt in a context. Shape (length, vocabulary)."""
    with context:
        logits: Tensor = model(torch.tensor([list(token_ids)])).logits[0]
    return logits

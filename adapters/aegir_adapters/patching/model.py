"""A decoder that can be patched."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import nn

from aegir_adapters.patching.decoder import Decoder, PatchingError
from aegir_adapters.patching.hooks import HOOKS, Hook, parse_hook
from aegir_adapters.patching.parts import find_parts
from aegir_adapters.patching.results import Engine
from aegir_stream.errors import OptionError

__all__ = ["PatchableModel", "PatchingError"]


class PatchableModel(Decoder):
    """Any Hugging Face decoder, with its hooks found and checked.

    The model is neither changed nor copied: while it computes here, it is in evaluation mode,
    without gradients and with a tap before its attention; afterwards all is as it was. Hooks that
    others keep on its modules do run. Nothing else may use the model meanwhile.

    Args:
        module: a causal language model.
        tokenizer: kept for the caller.

    Attributes:
        module: the model.
        tokenizer: as given.
        parts: its decoder layers, taken apart.
        hooks: the hooks that can be injected; where `z` can, so can `z.<head>`.
        num_heads: attention heads of a layer, 0 where `z` cannot be injected.
        engine: `staircase`, or `forwards` where the staircase does not reproduce the model.
        engine_reason: why.

    Raises:
        PatchingError: it is no decoder that can be patched.
    """

    def __init__(self, module: nn.Module, tokenizer: Any = None) -> None:
        # The check runs both engines, and they know the model.
        from aegir_adapters.patching.self_check import choose_engine  # noqa: PLC0415

        super().__init__(module)
        self.tokenizer = tokenizer
        self.parts = find_parts(self)
        self.num_heads = min(parts.heads for parts in self.parts)
        self.hooks = tuple(hook for hook in HOOKS.values() if self.refusal(hook.name) is None)
        self.engine: Engine
        self.engine, self.engine_reason = choose_engine(self)

    def hook(self, name: str) -> Hook:
        """Return the hook of this name.

        Raises:
            OptionError: no hook has this name, or this model refuses it.
        """
        if reason := self.refusal(name):
            raise OptionError(
                f"Expected `hook` to be one of {', '.join(hook.name for hook in self.hooks)} for "
                f"`{type(self.module).__name__}`, got {name!r} - {reason}",
                hint="Choose one of these hooks",
            )
        return parse_hook(name)

    def refusal(self, name: str) -> str | None:
        """Return why a hook cannot be injected, or `None` where it can."""
        try:
            hook = parse_hook(name)
        except OptionError:
            return "it is no hook"
        sites = {hook.site, "resid_mid"} if hook.needs_mid else {hook.site}
        for index, parts in enumerate(self.parts):
            for site, reason in parts.refusals.items():
                if site in sites:
                    return f"layer {index} has no {site}: {reason}"
        if hook.head is not None and hook.head >= self.num_heads:
            return f"heads are 0..{self.num_heads - 1}"
        return None

    @cached_property
    def d_model(self) -> int:
        """Width of the residual stream."""
        config: Any = self.module.config
        return int(config.get_text_config().hidden_size)

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids that the model reads."""
        return int(self.module.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    @cached_property
    def model_id(self) -> str:
        """What its configuration calls it, and its class."""
        name = getattr(self.module.config, "_name_or_path", "") or "unnamed"
        return f"{name} ({type(self.module).__name__})"

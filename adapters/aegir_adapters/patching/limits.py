"""How much one request may ask for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.refusals import RequestError
from aegir_adapters.patching.request_parts import RequestLimits

__all__ = ["Limits", "capture_bytes"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep may take; a request that takes more is refused before anything is computed.

    Attributes:
        cells: cells of one sweep, of all its prompt pairs.
        tokens: tokens of one prompt; of several pairs, of all patched prompts together, and of all
            clean ones.
        bytes: memory of the activations that one sweep captures, of all its prompt pairs.
        body_bytes: size of a request.
    """

    cells: int = 1_000_000
    tokens: int = 8192
    bytes: int = 1 << 32
    body_bytes: int = 1 << 24

    def within(self, asked: RequestLimits) -> Limits:
        """Return these limits, lowered to what a request asks for."""
        return Limits(
            cells=min(self.cells, asked.cells or self.cells),
            tokens=min(self.tokens, asked.tokens or self.tokens),
            bytes=min(self.bytes, asked.bytes or self.bytes),
            body_bytes=self.body_bytes,
        )

    def check_tokens(self, field: str, count: int) -> None:
        """Refuse a prompt that is too long.

        Raises:
            RequestError: it is.
        """
        if count > self.tokens:
            raise RequestError(
                field,
                f"{count} tokens",
                allowed=f"at most {self.tokens} tokens long",
                hint="Shorten the prompt",
            )

    def check_tokens_of_all(self, count: int, *, prompts: int) -> None:
        """Refuse prompt pairs that are too long together.

        Raises:
            RequestError: they are.
        """
        if count > self.tokens:
            raise RequestError(
                "pairs",
                f"{count} tokens in {prompts} prompts",
                allowed=f"prompts of at most {self.tokens} tokens together",
                hint="Sweep fewer pairs at once, or shorten their prompts",
            )

    def check_cells(self, field: str, *, hooks: int, layers: int, columns: Sequence[int]) -> None:
        """Refuse a grid that is too large.

        Args:
            field: what to name.
            hooks: how many hooks there are.
            layers: how many layers.
            columns: how many columns each prompt pair has.

        Raises:
            RequestError: it is.
        """
        cells = hooks * layers * sum(columns)
        if cells > self.cells:
            pairs = f" x {len(columns)} pairs" if len(columns) > 1 else ""
            size = f"{hooks} hooks x {layers} layers x {columns[0]} positions{pairs}"
            raise RequestError(
                field,
                f"{cells} cells ({size})",
                allowed=f"few enough for a grid of at most {self.cells} cells",
                hint="Sweep fewer positions, layers or hooks",
            )

    def check_bytes(self, field: str, size: int, *, besides: int = 0) -> None:
        """Refuse a capture that takes too much memory.

        Args:
            field: what to name.
            size: what it takes.
            besides: what other captures of the same sweep take.

        Raises:
            RequestError: it does.
        """
        if size + besides > self.bytes:
            together = f", and {besides} of other pairs" if besides else ""
            raise RequestError(
                field,
                f"activations of {size} bytes{together}",
                allowed=f"a prompt whose activations take at most {self.bytes} bytes",
                hint="Sweep fewer layers, or shorten the prompt",
            )


def capture_bytes(model: PatchableModel, *, layers: int, positions: int) -> int:
    """Return how much memory a capture of all hooks takes, within the size of `z`."""
    sites = {hook.site for hook in model.hooks}
    element = next(model.module.parameters()).element_size()
    return len(sites) * layers * positions * model.d_model * element

"""How much one request may ask for."""

from __future__ import annotations

import msgspec

from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.request import RequestError, RequestLimits

__all__ = ["Limits", "capture_bytes"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep may take; a request that takes more is refused before anything is computed.

    Attributes:
        cells: cells of one sweep.
        tokens: tokens of one prompt.
        bytes: memory of the activations that one sweep captures.
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

    def check_cells(self, *, hooks: int, layers: int, positions: int) -> None:
        """Refuse a grid that is too large.

        Raises:
            RequestError: it is.
        """
        cells = hooks * layers * positions
        if cells > self.cells:
            raise RequestError(
                "positions",
                f"{cells} cells ({hooks} hooks x {layers} layers x {positions} positions)",
                allowed=f"few enough for a grid of at most {self.cells} cells",
                hint="Sweep fewer positions, layers or hooks",
            )

    def check_bytes(self, field: str, size: int) -> None:
        """Refuse a capture that takes too much memory.

        Raises:
            RequestError: it does.
        """
        if size > self.bytes:
            raise RequestError(
                field,
                f"activations of {size} bytes",
                allowed=f"a prompt whose activations take at most {self.bytes} bytes",
                hint="Sweep fewer layers, or shorten the prompt",
            )


def capture_bytes(model: PatchableModel, *, layers: int, positions: int) -> int:
    """Return how much memory a capture of all hooks takes, within the size of `z`."""
    sites = {hook.site for hook in model.hooks}
    element = next(model.module.parameters()).element_size()
    return len(sites) * layers * positions * model.d_model * element

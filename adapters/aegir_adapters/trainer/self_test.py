"""What an attempt tells every reader after its first step: what is captured, and what is not."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegir_adapters.trainer.capture import CapturedPass
    from aegir_adapters.trainer.pass_account import PassTally

__all__ = ["SelfTest"]

_logger = logging.getLogger("aegir_stream")

_JOINED: Final = ("completion", "rewards", "advantage")
_UNATTACHED: Final = (
    "The callback is not attached to a trainer that generates completions: records are the tokens"
    " that the model is asked to learn, and carry no completion id or reward"
)
_UNREADABLE: Final = (
    "The trainer's batches could not be read: records carry no completion id or reward;"
    " the callback's statistics() name the error"
)
_NEVER_CALLED: Final = (
    "Its hook was never called: another model runs than the one that was hooked, or the code that"
    " runs was compiled before the hooks were there"
)
_NEVER_READ: Final = (
    "Its hook was called, but never for a token that is recorded; the callback's statistics() name"
    " an error, if there was one"
)


class SelfTest:
    """Watches the first step, and then says once what it brought.

    Args:
        sampling: the rule by which tokens are left out, `None` where none are.

    Attributes:
        joined: whether a completion with its rewards was seen.
    """

    def __init__(self, sampling: Mapping[str, Any] | None = None) -> None:
        self.joined = False
        self._sampling = sampling
        self._tokens: Counter[int] = Counter()
        self._told = False

    def count(self, captured: CapturedPass) -> None:
        """Count the tokens that a pass gave, at every layer."""
        if not self._told:
            self._tokens.update(dict.fromkeys(captured.latents, captured.tokens.count))

    def tell_once(
        self,
        *,
        layers: Sequence[int],
        calls: Mapping[str, int],
        attached: bool,
        passes: Mapping[str, PassTally],
        heard: Mapping[int, int] | None = None,
    ) -> dict[str, Any] | None:
        """Return the detail of the note, `None` from the second call on.

        Args:
            layers: the hooked layers.
            calls: how often the hooks were called, by phase.
            attached: whether a trainer that generates completions is followed.
            passes: what each pass gave that was asked for.
            heard: how often the hook of each layer was called.
        """
        if self._told:
            return None
        self._told = True
        detail: dict[str, Any] = {
            "layer_calls": dict(calls),
            "tokens_per_layer": {str(layer): self._tokens[layer] for layer in layers},
            "passes": {name: tally.detail() for name, tally in passes.items()},
            "joined": list(_JOINED) if self.joined else [],
            "sampling": self._sampling,
        }
        if not self.joined:
            detail["why"] = _UNREADABLE if attached else _UNATTACHED
        silent = self._silent(layers, heard or {})
        if silent:
            detail["silent_layers"] = silent
            _logger.warning("The first step brought no token at layers %s", ", ".join(silent))
        return detail

    def _silent(self, layers: Sequence[int], heard: Mapping[int, int]) -> dict[str, str]:
        """Return the layers that gave no token, with what is known of the reason."""
        return {
            str(layer): _NEVER_READ if heard.get(layer) else _NEVER_CALLED
            for layer in layers
            if not self._tokens[layer]
        }

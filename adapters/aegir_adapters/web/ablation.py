"""The sweep that tests one latent: what it adds to the token that was sampled next. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec

from aegir_adapters.web.sweep_order import SweepOrder
from aegir_stream.errors import AegirError
from aegir_stream.events import Completion

__all__ = [
    "NO_IDS",
    "Ablation",
    "AblationError",
    "layers_with_sae",
    "order_of",
    "read_ablation",
]

NO_IDS = (
    "This completion was recorded without its token ids, which a sweep needs: "
    "SidecarCallback(..., record_token_ids=True) records them."
)
LAST_TOKEN = "No token follows the last one, so there is nothing to measure."

_ASKED = re.compile(r"(\d{1,7}):(\d{1,4}):(\d{1,9})")
_ALL_POSITIONS = 256
"""Up to so many tokens every position is swept; of longer prompts the last ones are."""


class AblationError(AegirError, ValueError):
    """A latent cannot be tested at a token."""


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """What a button asks for.

    Attributes:
        token: index of the token in its completion.
        layer: hooked layer.
        latent: index of the latent.
        checkpoint: name of the checkpoint to ask; the newest if it is empty.
    """

    token: int
    layer: int
    latent: int
    checkpoint: str = ""

    @property
    def value(self) -> str:
        """What a button sends."""
        return f"{self.token}:{self.layer}:{self.latent}"


def read_ablation(body: bytes) -> Ablation | None:
    """Return what a button sent; `None` if no button of ours sends that."""
    try:
        sent = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError:
        return None
    asked = _ASKED.fullmatch(sent.get("ablate", [""])[0])
    if asked is None:
        return None
    token, layer, latent = map(int, asked.groups())
    checkpoint = sent.get("checkpoint", [""])[0]
    return Ablation(token=token, layer=layer, latent=latent, checkpoint=checkpoint)


def order_of(ablation: Ablation, completion: Completion, checkpoints: Sequence[str]) -> SweepOrder:
    """Return the sweep that tests a latent.

    The prompt ends with the token that the latent was read at; what is measured is the token that
    was sampled next.

    Args:
        ablation: which latent, and at which token.
        completion: the completion.
        checkpoints: names of the run's checkpoints, newest first.

    Raises:
        AblationError: there is nothing to be measured, or nothing to be measured with.
    """
    prompt, tokens = completion.prompt_ids, completion.token_ids
    if prompt is None or tokens is None:
        raise AblationError(NO_IDS)
    if not checkpoints:
        raise AblationError("The run has no checkpoint yet.")
    checkpoint = ablation.checkpoint or checkpoints[0]
    if checkpoint not in checkpoints:
        raise AblationError("Choose one of the run's checkpoints.")
    if ablation.token + 1 >= len(tokens):
        raise AblationError(LAST_TOKEN)
    asked = (*prompt, *tokens[: ablation.token + 1])
    return SweepOrder(
        checkpoint=checkpoint,
        prompt_ids=",".join(map(str, asked)),
        answer_ids=str(tokens[ablation.token + 1]),
        latent=f"{ablation.layer}:{ablation.latent}",
        # Its SAE says where it is.
        hooks=(),
        layers="",
        positions="all" if len(asked) <= _ALL_POSITIONS else f"-{_ALL_POSITIONS}:",
        metric="logprob",
    )


def layers_with_sae(metadata: Mapping[str, Any]) -> frozenset[int]:
    """Return the layers of which a checkpoint's sidecar, or a manifest, says where the SAE lies."""
    recorded = metadata.get("sae")
    if not isinstance(recorded, dict):
        return frozenset()
    return frozenset(
        int(layer)
        for layer, identity in recorded.items()
        if layer.isdecimal()
        and isinstance(identity, dict)
        and (identity.get("path") or identity.get("repository"))
    )

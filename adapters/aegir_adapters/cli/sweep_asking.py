"""What was asked for on the command line, as a request to the patching service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from aegir_adapters.cli.indices import indices
from aegir_adapters.cli.sweep_lines import About

if TYPE_CHECKING:
    from aegir_adapters.cli.sweep_model import Subject
    from aegir_adapters.patching.request import PatchSweepRequest
    from aegir_adapters.patching.service import PatchService

__all__ = ["Asked", "about", "request"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep as it was typed.

    Attributes:
        prompt: what is patched.
        answer: what is measured.
        clean: where the activations come from; `None` puts in zeros.
        foil: what the answer is compared with.
        hooks: names of hooks.
        layers: see `indices`.
        positions: likewise.
        metric: what a cell holds; chosen by what else is there if `None`.
        alpha: how much of an activation is replaced.
    """

    prompt: str
    answer: str
    clean: str | None
    foil: str | None
    hooks: tuple[str, ...]
    layers: str = "all"
    positions: str = "all"
    metric: str | None = None
    alpha: float = 1.0


def request(asked: Asked, service: PatchService) -> PatchSweepRequest:
    """Return the request.

    Raises:
        OptionError: layers or positions are none, or the prompt is no prompt of the model.
    """
    from aegir_adapters.patching.request import (  # noqa: PLC0415 - needs the extra
        PatchSweepRequest,
        convert_request,
    )

    fields: dict[str, Any] = {
        "prompt": asked.prompt,
        "answer": asked.answer,
        "foil": asked.foil,
        "hooks": asked.hooks,
        "layers": indices(asked.layers, count=service.model.num_layers, option="layers"),
        "positions": indices(
            asked.positions, count=len(_tokens(asked.prompt, service)), option="positions"
        ),
        "metric": asked.metric or _metric(asked),
        "alpha": asked.alpha,
    }
    fields |= {"source": "zero"} if asked.clean is None else {"clean_prompt": asked.clean}
    return convert_request(fields, PatchSweepRequest)


def about(asked: Asked, subject: Subject, service: PatchService) -> About:
    """Return what the service does not say of the sweep."""
    return About(
        model=subject.name,
        tokens=_tokens(asked.prompt, service),
        clean_tokens=None if asked.clean is None else _tokens(asked.clean, service),
        answer=asked.answer,
        foil=asked.foil,
        checkpoint=subject.checkpoint.name if subject.checkpoint else None,
        step=subject.checkpoint.step if subject.checkpoint else None,
    )


def _tokens(prompt: str, service: PatchService) -> tuple[str, ...]:
    from aegir_adapters.patching.request import TokensRequest  # noqa: PLC0415 - needs the extra

    told = service.tokens(TokensRequest(prompt=prompt))
    return told.tokens or tuple(map(str, told.token_ids))


def _metric(asked: Asked) -> str:
    """Return what is brought back of what the prompts differ in, where there are two of them."""
    if asked.clean is None:
        return "logprob" if asked.foil is None else "logit_diff"
    return "recovered" if asked.foil is None else "recovered_logit_diff"

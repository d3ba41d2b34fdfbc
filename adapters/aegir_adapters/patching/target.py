"""What a sweep measures: the tokens of an answer and a foil."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.request import CaptureRequest, PatchSweepRequest, RequestError

__all__ = ["Target", "check_ids", "read_target"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured.

    Attributes:
        answer_ids: tokens of the answer.
        foil_ids: tokens of the foil.
    """

    answer_ids: tuple[int, ...]
    foil_ids: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """Tokens of the answer, and of the foil if there is one."""
        return len(self.answer_ids)


def read_target(request: PatchSweepRequest | CaptureRequest, model: PatchableModel) -> Target:
    """Return the tokens of the answer and the foil.

    Raises:
        RequestError: text that should be one token is not, or a token is none of the model's.
    """
    answer = _target_ids("answer", request, model)
    foil = _target_ids("foil", request, model)
    if foil is not None and answer is not None and len(foil) != len(answer):
        raise RequestError(
            "foil", list(foil), allowed=f"as many tokens as the answer has: {len(answer)}"
        )
    return Target(answer_ids=answer or (), foil_ids=foil)


def check_ids(field: str, ids: Sequence[int], model: PatchableModel) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        RequestError: there is one.
    """
    outside = next((token for token in ids if not 0 <= token < model.vocab_size), None)
    if outside is not None:
        raise RequestError(field, outside, allowed=f"token ids within 0..{model.vocab_size - 1}")


def _target_ids(kind: str, request: Any, model: PatchableModel) -> tuple[int, ...] | None:
    """Return the tokens of `answer` or `foil`: an id wins over a token, a token over text."""
    token_id = getattr(request, f"{kind}_token_id")
    token = getattr(request, f"{kind}_token")
    text = getattr(request, kind)
    if token_id is not None:
        check_ids(f"{kind}_token_id", (token_id,), model)
        return (token_id,)
    if token is not None:
        ids = _encode(f"{kind}_token", token, model)
        if len(ids) != 1:
            raise RequestError(
                f"{kind}_token",
                token,
                allowed=f"exactly one token, and it is {list(ids)}",
                hint=f"Give `{kind}_token_id`, or `{kind}` for several tokens",
            )
        return ids
    if text is None:
        return None
    ids = _encode(kind, text, model) if isinstance(text, str) else text
    if not ids:
        raise RequestError(kind, text, allowed="at least one token")
    check_ids(kind, ids, model)
    return ids


def _encode(field: str, text: str, model: PatchableModel) -> tuple[int, ...]:
    if model.tokenizer is None:
        raise RequestError(field, text, allowed="given as ids, for the model has no tokenizer")
    return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])

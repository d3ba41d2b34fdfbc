"""The form that asks for a sweep: what may be typed, and what is said beside a field. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs

import msgspec

from aegir_adapters.web.sweep_order import SweepOrder

__all__ = ["HOOKS", "METRICS", "Form", "blamed", "form_of", "read_form"]

HOOKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
"""The hooks that can be ticked."""

METRICS = ("recovered", "recovered_logit_diff", "logprob", "logit_diff", "kl", "rank")
"""The metrics that can be chosen."""

_LONGEST_PROMPT = 20_000
_LONGEST_ANSWER = 1_000
_LONGEST_IDS = 100_000
_NEEDS_FOIL = ("recovered_logit_diff", "logit_diff")
_NEEDS_CLEAN = ("recovered", "recovered_logit_diff")
_PART = re.compile(r"all|-?\d{1,6}|(?:-?\d{1,6})?:(?:-?\d{1,6})?(?::[1-9]\d{0,5})?")
_LATENT = re.compile(r"\d{1,6}:\d{1,9}")
_IDS = re.compile(r"\d{1,9}(?:[\s,]+\d{1,9})*")
_NO_GRADIENT = "rank"
_NAMED = re.compile(r"Expected `(\w+)`")
_FIELDS = {
    "answer_token": "answer",
    "answer_token_id": "answer",
    "foil_token": "foil",
    "foil_token_id": "foil",
    "hook": "hooks",
    "method": "preview",
    "sae": "latent",
    "source_run": "clean_prompt",
}
"""Fields of the patching service under other names."""


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What the form shows.

    Attributes:
        order: what stands in its fields.
        errors: what is wrong, by field; under the empty name what is wrong with none of them.
    """

    order: SweepOrder
    errors: dict[str, str] = {}


def read_form(body: bytes, checkpoints: Sequence[str]) -> Form:
    """Return what was sent, and what is wrong with it.

    Args:
        body: the fields as browsers send them.
        checkpoints: names of the run's checkpoints.
    """
    try:
        sent = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=64, errors="strict")
    except ValueError:
        return Form(order=SweepOrder(), errors={"": "The form could not be read."})
    order = _order_of(sent)
    problems = {name: check(order) for name, check in _CHECKS.items()}
    if order.checkpoint not in ("latest", *checkpoints):
        problems["checkpoint"] = "Choose one of the run's checkpoints."
    return Form(order=order, errors={name: told for name, told in problems.items() if told})


def form_of(order: SweepOrder, error: str) -> Form:
    """Return the form again, with an error that came later beside the field it is about."""
    return Form(order=order, errors={blamed(error): error})


def blamed(error: str) -> str:
    """Return the field that an error names first; nothing if it is none of the form."""
    named = _NAMED.search(error)
    field = _FIELDS.get(named[1], named[1]) if named else ""
    return field if field in SweepOrder.__struct_fields__ else ""


def _order_of(sent: Mapping[str, list[str]]) -> SweepOrder:
    def text(name: str) -> str:
        # Browsers send the ends of lines as they did in 1995.
        return sent.get(name, [""])[0].replace("\r\n", "\n")

    latent, groups = text("latent").strip(), text("groups").strip()
    return SweepOrder(
        checkpoint=text("checkpoint") or "latest",
        prompt=text("prompt"),
        clean_prompt=text("clean_prompt"),
        answer=text("answer"),
        foil=text("foil"),
        # Where a latent is, its SAE says; where groups are, they say.
        hooks=() if latent else tuple(dict.fromkeys(sent.get("hooks", []))),
        layers="" if latent else text("layers").strip() or "all",
        positions="all" if groups else text("positions").strip() or "all",
        metric=text("metric"),
        latent=latent,
        prompt_ids=text("prompt_ids").strip(),
        clean_ids=text("clean_ids").strip(),
        answer_ids=text("answer_ids").strip(),
        foil_ids=text("foil_ids").strip(),
        preview=bool(text("preview")),
        groups=groups,
    )


def _check_prompt(order: SweepOrder) -> str:
    return _check_text(order.prompt, _LONGEST_PROMPT) or (
        "" if order.prompt or order.prompt_ids else "Type the prompt that is patched."
    )


def _check_answer(order: SweepOrder) -> str:
    return _check_text(order.answer, _LONGEST_ANSWER) or (
        ""
        if order.answer or order.answer_ids
        else "Type what is measured, as the model would write it."
    )


def _check_foil(order: SweepOrder) -> str:
    if order.metric in _NEEDS_FOIL and not (order.foil or order.foil_ids):
        return f"{order.metric} compares the answer with a foil."
    return _check_text(order.foil, _LONGEST_ANSWER)


def _check_clean(order: SweepOrder) -> str:
    if order.metric in _NEEDS_CLEAN and not (order.clean_prompt or order.clean_ids):
        return f"{order.metric} is a share of the difference between two prompts."
    return _check_text(order.clean_prompt, _LONGEST_PROMPT)


def _check_text(text: str, longest: int) -> str:
    if len(text) > longest:
        return f"At most {longest:,} characters; these are {len(text):,}."
    return "A NUL can be in no prompt." if "\0" in text else ""


def _check_ids(ids: str, text: str) -> str:
    if not ids:
        return ""
    if text:
        return "Type the text or its token ids, not both."
    if len(ids) > _LONGEST_IDS or not _IDS.fullmatch(ids):
        return f"Write numbers with commas between, at most {_LONGEST_IDS:,} characters."
    return ""


def _check_hooks(order: SweepOrder) -> str:
    if order.latent:
        return ""
    unknown = [hook for hook in order.hooks if hook not in HOOKS]
    if unknown or not order.hooks:
        return f"Choose at least one of {', '.join(HOOKS)}."
    return ""


def _check_indices(text: str) -> str:
    if all(_PART.fullmatch(part.strip()) for part in text.split(",")):
        return ""
    return "Write all, or numbers and ranges such as 0,2 or 4:8 or -1."


def _check_latent(order: SweepOrder) -> str:
    if not order.latent or _LATENT.fullmatch(order.latent):
        return ""
    return "Write LAYER:INDEX, such as 2:101."


def _check_metric(order: SweepOrder) -> str:
    if order.metric not in ("", *METRICS):
        return "Choose one of the metrics."
    if order.preview and order.metric == _NO_GRADIENT:
        return f"{_NO_GRADIENT} has no gradient, so it cannot be estimated."
    return ""


_CHECKS: Mapping[str, Callable[[SweepOrder], str]] = {
    "prompt": _check_prompt,
    "clean_prompt": _check_clean,
    "answer": _check_answer,
    "foil": _check_foil,
    "hooks": _check_hooks,
    "layers": lambda order: "" if order.latent else _check_indices(order.layers),
    "positions": lambda order: _check_indices(order.positions),
    "metric": _check_metric,
    "latent": _check_latent,
    "prompt_ids": lambda order: _check_ids(order.prompt_ids, order.prompt),
    "clean_ids": lambda order: _check_ids(order.clean_ids, order.clean_prompt),
    "answer_ids": lambda order: _check_ids(order.answer_ids, order.answer),
    "foil_ids": lambda order: _check_ids(order.foil_ids, order.foil),
    "groups": lambda order: _check_text(order.groups, _LONGEST_ANSWER),
}

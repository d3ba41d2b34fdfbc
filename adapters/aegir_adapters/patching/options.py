"""What a study is asked to sweep, and the fields of the request that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

import msgspec

from aegir_adapters.patching.connection import OnCell
from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.request_parts import SourceKind
from aegir_adapters.patching.results import Method
from aegir_adapters.patching.spans import Span

__all__ = ["CleanRun", "PairOptions", "SweepOptions", "Target", "Text", "sweep_fields", "target"]

Text = str | Sequence[int]
"""Text, or token ids."""

Target = int | str | Sequence[int]
"""What is measured: a token id, text that is one token, or the ids of several tokens."""

Places = Sequence[int | Span]
"""Positions of a prompt, and pieces of its text."""


class CleanRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was captured.

    Attributes:
        run_id: its name.
        prompt: its prompt.
        num_prompt_tokens: tokens of the prompt.
        clean_logprob: of the answer; `None` without one.
        clean_logit_diff: of answer and foil; `None` without them.
    """

    run_id: str
    prompt: Text
    num_prompt_tokens: int
    clean_logprob: float | None = None
    clean_logit_diff: float | None = None


class PairOptions(TypedDict, total=False):
    """One of several prompt pairs.

    Attributes:
        prompt: what is patched.
        clean_prompt: the source run's prompt.
        answer_token: what is measured; by default that of the sweep.
        foil_token: what it is compared with; likewise.
        run: name of the source run.
        clean: the source run, as it was captured.
        positions: a list of positions and `Span`s, or `all_prompt`.
        groups: positions that are patched together, by the name of their column.
        alignment: positions that belong together.
    """

    prompt: Required[Text]
    clean_prompt: Text
    answer_token: Target | None
    foil_token: Target | None
    run: str | None
    clean: CleanRun | None
    positions: Places | Literal["all_prompt"]
    groups: Mapping[str, Places]
    alignment: Sequence[Mapping[str, Any]]


class SweepOptions(TypedDict, total=False):
    """What to sweep, and with what. Other fields are those of `PatchSweepRequest`.

    Attributes:
        answer_token: what is measured.
        foil_token: what it is compared with, for `logit_diff`.
        run: name of the source run.
        clean: the source run, as it was captured.
        layers: a list, ``{"start": 0, "stop": 4, "step": 1}``, or `all`.
        positions: a list of positions and `Span`s, or `all_prompt`.
        groups: in their place positions that are patched together, by the name of their column.
        pairs: several prompt pairs, in the place of one; grids are then means over them.
        metrics: several metrics in the place of `metric`; see `SweepResult.metric`.
        method: `attribution` for a preview by gradients.
        on_cell: called with each cell as it becomes final, the most promising first.
    """

    answer_token: Target | None
    foil_token: Target | None
    run: str | None
    clean: CleanRun | None
    layers: Sequence[int] | Mapping[str, int] | Literal["all"]
    positions: Places | Literal["all_prompt"]
    groups: Mapping[str, Places]
    pairs: Sequence[PairOptions]
    on_cell: OnCell | None
    hook: str
    metric: MetricName
    metrics: Sequence[MetricName]
    method: Method
    alpha: float
    clean_prompt: Text
    keep_source: bool
    clean_baseline: float
    alignment: Sequence[Mapping[str, Any]]
    source: SourceKind
    source_runs: Sequence[str]
    vectors: Sequence[Mapping[str, Any]]
    latent: Mapping[str, Any]
    order: Literal["importance", "position"]
    limits: Mapping[str, int]


_TRANSLATED = ("answer_token", "foil_token", "run", "clean", "layers", "pairs", "on_cell")
"""Options that the request does not have under the same name, or not in the same form."""


def sweep_fields(
    prompt: Text | None, hooks: Sequence[str] | None, options: SweepOptions
) -> dict[str, Any]:
    """Return the fields of a request, as JSON has them.

    Args:
        prompt: what is patched; `None` where there are pairs.
        hooks: several hooks.
        options: the rest.
    """
    fields = {"layers": options.get("layers", "all"), **_translated(options)}
    fields |= {} if prompt is None else {"prompt": prompt}
    fields |= {} if hooks is None else {"hooks": hooks}
    if "pairs" in options:
        fields["pairs"] = [_translated(pair) for pair in options["pairs"]]
    # What a request refuses, it refuses alike here and over HTTP, from plain values.
    plain: dict[str, Any] = msgspec.to_builtins(fields)
    return plain


def target(kind: str, chosen: Target | None) -> dict[str, Any]:
    """Return the field of an `answer` or a `foil`; none if there is none."""
    if chosen is None:
        return {}
    if isinstance(chosen, int):
        return {f"{kind}_token_id": chosen}
    return {f"{kind}_token" if isinstance(chosen, str) else kind: chosen}


def _translated(options: SweepOptions | PairOptions) -> dict[str, Any]:
    fields = {name: value for name, value in options.items() if name not in _TRANSLATED}
    fields |= target("answer", options.get("answer_token"))
    fields |= target("foil", options.get("foil_token"))
    clean, run = options.get("clean"), options.get("run")
    if run is not None or clean is not None:
        fields["source_run"] = clean.run_id if clean is not None and run is None else run
    return fields

"""A request, checked against the model before anything is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import msgspec

from aegir_adapters.patching.checks import (
    check_columns,
    check_metrics,
    check_numbers,
    check_source,
    check_target,
)
from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.prompt_pairs import PairRequest, pair_requests
from aegir_adapters.patching.prompts import (
    check_forced,
    read_prompt,
    resolve_groups,
    resolve_positions,
    spelled,
)
from aegir_adapters.patching.request import LayerRange, PatchSweepRequest, RequestError
from aegir_adapters.patching.sources import LatentDictionary
from aegir_adapters.patching.spans import Prompt
from aegir_adapters.patching.target import Target, read_target

__all__ = ["PairPlan", "SweepPlan", "plan_layers", "plan_sweep"]

Layers = tuple[int, ...] | LayerRange | Literal["all"]


class PairPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt pair of a sweep, as far as it is known without its source run.

    Attributes:
        asked: what is asked for of it.
        hooks: names, each once.
        layers: each once.
        prompt: the patched prompt.
        tokens: what each of its tokens spells; `None` without a tokenizer.
        clean: the source run's prompt, if it was given.
        names: of the columns; `None` without groups.
        columns: positions that are patched together; some may turn out unaligned.
        target: what is measured.
        limits: what applies.
    """

    asked: PairRequest
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    prompt: Prompt
    tokens: tuple[str, ...] | None
    clean: Prompt | None
    names: tuple[str, ...] | None
    columns: tuple[tuple[int, ...], ...]
    target: Target
    limits: Limits

    @property
    def request(self) -> PatchSweepRequest:
        """What is asked for, as if there was no other pair."""
        return self.asked.request

    @property
    def reads_run(self) -> bool:
        """Whether the source is a run, or the activation of a latent in one."""
        kind, request = self.request.source, self.request
        named = request.source_run is not None or request.clean_prompt is not None
        return kind == "run" or (kind == "latent" and named)


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One sweep, as far as it is known without its source runs.

    Attributes:
        request: as it was asked for.
        hooks: names, each once.
        layers: each once.
        names: of the columns; `None` without groups.
        pairs: the prompt pairs; one if no others were given.
    """

    request: PatchSweepRequest
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    names: tuple[str, ...] | None
    pairs: tuple[PairPlan, ...]


def plan_sweep(
    request: PatchSweepRequest,
    model: PatchableModel,
    *,
    limits: Limits,
    saes: Mapping[str, LatentDictionary],
) -> SweepPlan:
    """Return what a request asks for, or refuse it.

    Raises:
        RequestError: a field does not fit the model, the prompt or another field.
    """
    limits = limits.within(request.limits)
    pairs = _checked(request, saes)
    hooks = _hooks(request, model)
    layers = plan_layers(request.layers, model)
    targets = []
    for pair in pairs:
        with pair.naming():
            targets.append(read_target(pair.request, model))
    plans: list[PairPlan] = []
    lengths: Counter[str] = Counter()
    for pair, target in zip(pairs, targets, strict=True):
        with pair.naming():
            plan = _pair(pair, hooks, layers, target, model=model, limits=limits)
        plans.append(plan)
        lengths["patched"] += len(plan.prompt.token_ids)
        lengths["clean"] += len(plan.clean.token_ids) if plan.clean is not None else 0
        limits.check_tokens_of_all(max(lengths.values()), prompts=len(plans))
    if not layers:
        raise RequestError("layers", request.layers, allowed="at least one")
    plans = [_alike(plan, plans[0]) for plan in plans]
    limits.check_cells(
        "positions" if request.pairs is None else "pairs",
        hooks=len(hooks),
        layers=len(layers),
        columns=[len(plan.columns) for plan in plans],
    )
    return SweepPlan(
        request=request, hooks=hooks, layers=layers, names=plans[0].names, pairs=tuple(plans)
    )


def plan_layers(asked: Layers, model: PatchableModel) -> tuple[int, ...]:
    """Return layers, each once, in the order asked for.

    Raises:
        RequestError: one is not a layer of the model.
    """
    if asked == "all":
        return tuple(range(model.num_layers))
    if isinstance(asked, LayerRange):
        ends = (asked.start, asked.stop)
        if not all(0 <= end <= model.num_layers for end in ends):
            raise _not_a_layer(ends, model)
        return tuple(range(asked.start, asked.stop, asked.step))
    outside = [layer for layer in asked if not 0 <= layer < model.num_layers]
    if outside:
        raise _not_a_layer(outside, model)
    return tuple(dict.fromkeys(asked))


def _checked(
    request: PatchSweepRequest, saes: Mapping[str, LatentDictionary]
) -> tuple[PairRequest, ...]:
    """Return the prompt pairs, whose fields go together."""
    pairs = pair_requests(request)
    check_metrics(request)
    for pair in pairs:
        with pair.naming():
            check_target(pair.request)
    check_numbers(request)
    for pair in pairs:
        with pair.naming():
            check_columns(pair.request)
            check_source(pair.request, saes)
    return pairs


def _pair(
    asked: PairRequest,
    hooks: tuple[str, ...],
    layers: tuple[int, ...],
    target: Target,
    *,
    model: PatchableModel,
    limits: Limits,
) -> PairPlan:
    request = asked.request
    prompt = read_prompt("prompt", request.prompt, model, limits)
    clean = None
    if request.clean_prompt is not None:
        clean = read_prompt("clean_prompt", request.clean_prompt, model, limits)
    check_forced(target, prompt.token_ids, model)
    names, columns = _columns(request, prompt)
    return PairPlan(
        asked=asked,
        hooks=hooks,
        layers=layers,
        prompt=prompt,
        tokens=spelled(prompt, model),
        clean=clean,
        names=names,
        columns=columns,
        target=target,
        limits=limits,
    )


def _columns(
    request: PatchSweepRequest, prompt: Prompt
) -> tuple[tuple[str, ...] | None, tuple[tuple[int, ...], ...]]:
    if request.groups is not None:
        groups = resolve_groups(request.groups, prompt)
        return tuple(groups), tuple(groups.values())
    positions = resolve_positions("positions", request.positions, prompt)
    return None, tuple((position,) for position in positions)


def _alike(plan: PairPlan, first: PairPlan) -> PairPlan:
    """Return a pair with its columns in the order of the first, or refuse it."""
    with plan.asked.naming():
        if not plan.columns:
            raise RequestError("positions", plan.request.positions, allowed="at least one")
        if plan.names is None and first.names is None:
            _check_count(plan, first)
            return plan
        if plan.names is None or first.names is None or {*plan.names} != {*first.names}:
            allowed = f"groups named {', '.join(first.names or ())}" if first.names else "left out"
            raise RequestError(
                "groups",
                plan.request.groups,
                allowed=f"{allowed}, as in {first.asked.owner}",
                hint="A column of the grid is a group of every pair",
            )
    columns = dict(zip(plan.names, plan.columns, strict=True))
    return msgspec.structs.replace(
        plan, names=first.names, columns=tuple(columns[name] for name in first.names)
    )


def _check_count(plan: PairPlan, first: PairPlan) -> None:
    if len(plan.columns) != len(first.columns):
        raise RequestError(
            "positions",
            f"{len(plan.columns)} positions",
            allowed=f"as many as in {first.asked.owner}, which has {len(first.columns)}",
            hint="Give `groups`, or a list of as many `positions` for each pair",
        )


def _hooks(request: PatchSweepRequest, model: PatchableModel) -> tuple[str, ...]:
    names, field = request.hooks, "hooks"
    if names is None:
        names, field = (request.hook,), "hook"
    if not names:
        raise RequestError("hooks", [], allowed="non-empty when provided")
    for name in names:
        if reason := model.refusal(name):
            allowed = ", ".join(hook.name for hook in model.hooks)
            raise RequestError(
                field, name, allowed=f"one of {allowed}", hint=f"This model refuses it: {reason}"
            )
    return tuple(dict.fromkeys(names))


def _not_a_layer(value: object, model: PatchableModel) -> RequestError:
    return RequestError("layers", value, allowed=f"within 0..{model.num_layers - 1}")

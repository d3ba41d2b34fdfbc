"""What a run's log says about itself, as lines that people read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from aegir_stream.events import Note
from aegir_stream.sampling import SamplingRule

__all__ = ["note_lines"]

_Detail = Mapping[str, Any]


def note_lines(note: Note) -> list[str]:
    """Return a note as a heading and lines below it; one of an unknown kind as JSON."""
    describe = _KINDS.get(note.kind)
    try:
        if describe:
            return list(describe(note.detail))
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # Another release wrote it.
    return [f"{note.kind}: {_plain(note.detail)}"]


def _self_test(detail: _Detail) -> Iterator[str]:
    yield "self-test after the first step"
    for name, tally in detail.get("passes", {}).items():
        yield f"  {name}: {_tokens(tally['tokens'])}{_why(tally)}"
    if "passes" not in detail:
        yield f"  {_tokens(detail['tokens_per_layer'])}"
    for layer, why in detail.get("silent_layers", {}).items():
        yield f"  layer {layer} gave nothing: {why}"
    joined = ", ".join(detail["joined"])
    yield f"  joined to: {joined}" if joined else f"  joined to nothing: {detail.get('why', '?')}"
    calls = ", ".join(f"{phase} {count:,}" for phase, count in detail["layer_calls"].items())
    yield f"  hooks were called in: {calls or 'nothing'}"
    yield f"  sampling: {_rule(detail.get('sampling'))}"


def _tokens(of_layers: Mapping[str, int]) -> str:
    """Return the tokens of each layer, once for layers that have as many."""
    if not of_layers:
        return "no token"
    same: dict[int, list[str]] = {}
    for layer, count in of_layers.items():
        same.setdefault(count, []).append(layer)
    parts = (f"{count:,} tokens at {_layers(layers)}" for count, layers in same.items())
    return ", ".join(parts)


def _layers(layers: list[str]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(layers)}"


def _why(tally: Mapping[str, Any]) -> str:
    return f" - {tally['why']}" if tally.get("why") else ""


def _sampling(detail: _Detail) -> Iterator[str]:
    yield f"sampling: {_rule(detail)}"


def _rule(detail: Any) -> str:
    """Return a sampling rule as a sentence."""
    if not detail:
        return "every token is recorded"
    rule = SamplingRule.from_description(detail)
    parts = []
    if rule.record_every_n_tokens > 1:
        parts.append(f"one of {rule.record_every_n_tokens} positions")
    if rule.token_share < 1:
        parts.append(f"{rule.token_share:.4g} of the tokens")
    if rule.tokens_per_completion is not None:
        parts.append(f"at most {rule.tokens_per_completion:,} of a completion")
    if rule.max_tokens_per_step is not None:
        parts.append(f"at most {rule.max_tokens_per_step:,} of a step")
    return f"{', '.join(parts)}; drawn with seed {rule.sampling_seed}"


def _drift(detail: _Detail) -> Iterator[str]:
    yield f"differs from what {detail['checkpoint']} was recorded with"
    for name, (was, now) in detail["fields"].items():
        yield f"  {name} was {_plain(was)}, is {_plain(now)}"


def _cut(detail: _Detail) -> Iterator[str]:
    tokens = f"{detail['tokens']:,} tokens"
    yield f"step {detail['step']}: {tokens} of the pass {detail['pass']} were not read"
    yield f"  {detail['why']}"


def _plain(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_KINDS: Mapping[str, Callable[[_Detail], Iterator[str]]] = {
    "self_test": _self_test,
    "sampling": _sampling,
    "identity_drift": _drift,
    "pass_cut": _cut,
}

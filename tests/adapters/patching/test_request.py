from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from adapters.patching.decoders import CLEAN, CORRUPT, LAYERS
from adapters.patching.served import fields_of, pairs_of, patchable, request_of
from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.plan import SweepPlan, plan_sweep
from aegir_adapters.patching.request import (
    LayerRange,
    PatchSweepRequest,
    RequestError,
    decode_request,
)
from aegir_adapters.patching.target import Target


def plan_of(
    *, model: PatchableModel | None = None, server: Limits | None = None, **fields: Any
) -> SweepPlan:
    """Return the plan of a request."""
    model = model or patchable()
    return plan_sweep(request_of(**fields), model, limits=server or Limits(), saes={})


def target_of(**fields: Any) -> Target:
    """Return what a request measures."""
    return plan_of(**fields).pairs[0].target


def refused(fields: Mapping[str, Any]) -> RequestError:
    """Return why a request is refused, decoded from JSON and then planned."""
    with pytest.raises(RequestError) as caught:
        plan_sweep(
            decode_request(json.dumps(fields).encode(), PatchSweepRequest),
            patchable(),
            limits=Limits(),
            saes={},
        )
    return caught.value


def test_a_request_has_the_names_and_defaults_of_the_protocol() -> None:
    """What an earlier client leaves out means what it meant."""
    request = decode_request(
        b'{"model": "m", "prompt": "w5", "source_run": "a", "layers": {"start": 0, "stop": 3},'
        b' "positions": [0, {"span": "w5", "occurrence": 0}], "logprobs": 5}',
        PatchSweepRequest,
    )

    assert request.hook == "post_block"
    assert request.hooks is None
    assert request.layers == LayerRange(start=0, stop=3, step=1)
    assert (request.alpha, request.metric, request.stream) == (1.0, "logprob", False)
    assert (request.keep_source, request.clean_baseline) == (False, None)


WRONG = {
    "prompt": 5,
    "layers": "some",
    "source_run": 5,
    "clean_prompt": {"text": "w5"},
    "hook": None,
    "hooks": "resid_pre",
    "positions": "all",
    "groups": ["subject"],
    "pairs": "two",
    "alpha": "1",
    "answer_token": 7,
    "answer_token_id": "w7",
    "answer": [1.5],
    "foil_token": ["w5"],
    "foil_token_id": 1.5,
    "foil": True,
    "metric": "accuracy",
    "metrics": ["logprob", "accuracy"],
    "method": "guess",
    "stream": "yes",
    "keep_source": 1,
    "clean_baseline": "low",
    "alignment": {"0": 0},
    "source": "noise",
    "source_runs": "a",
    "vectors": {"hook": "resid_pre"},
    "latent": 5,
    "order": "random",
    "limits": {"cells": 0},
    "logprobs": 0,
    "model": 5,
}


def test_every_field_has_a_wrong_value_here() -> None:
    """So that a new field is tested as well."""
    assert set(WRONG) == set(PatchSweepRequest.__struct_fields__)


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_type_is_refused_with_field_value_and_what_is_allowed(field: str) -> None:
    """The client is told what to change, and that it is its own request that is wrong."""
    error = refused({**fields_of(), field: WRONG[field]})

    assert error.field == field
    assert error.value == WRONG[field]
    assert error.allowed != "something else"
    shown = json.dumps(WRONG[field], separators=(",", ":")).replace("null", "nothing")
    assert f"Expected `{field}` to be {error.allowed}, got {shown}" in str(error)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"layers": {"start": 0, "stop": 3, "step": 0}}, "layers"),
        ({"layers": [0, "1"]}, "layers"),
        ({"positions": [0, {"span": "w5", "occurrences": 1}]}, "positions"),
        ({"limits": {"cell": 1}}, "limits"),
        ({"latent": {"sae": "s", "index": -1}}, "latent"),
        ({"groups": {"subject": [1.5]}}, "groups"),
        ({"groups": {"subject": 3}}, "groups"),
        ({"metrics": ["logprob", 5]}, "metrics"),
        ({"pairs": [{"prompt": "w5"}, {"prompt": "w5", "answer": True}]}, "pairs[1].answer"),
        ({"pairs": [{"prompt": "w5"}, {"prompt": "w5", "answers": "w6"}]}, "pairs[1].answers"),
        ({"pairs": [{"clean_prompt": "w5"}]}, "pairs[0].prompt"),
        ({"pairs": [{"prompt": "w5", "groups": {"a": [{}]}}]}, "pairs[0].groups"),
        ({"pairs": [{"prompt": "w5"}, 5]}, "pairs[1]"),
        ({"pairs": {"prompt": "w5"}}, "pairs"),
    ],
)
def test_a_fault_inside_of_a_field_names_the_field(fields: dict[str, Any], field: str) -> None:
    """However deep it lies."""
    assert refused({**fields_of(), **fields}).field == field


def test_an_unknown_field_is_refused() -> None:
    """A misspelt field would otherwise change what is swept, silently."""
    error = refused({**fields_of(), "position": [0]})

    assert error.field == "position"
    assert error.value == [0]
    assert "positions" in error.allowed


def test_a_missing_field_is_refused() -> None:
    """By its name."""
    error = refused(fields_of(layers=None))

    assert error.field == "layers"
    assert "got nothing" in str(error)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"null", b"\xff", b'{"prompt": NaN}'])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(RequestError) as caught:
        decode_request(body, PatchSweepRequest)
    assert caught.value.field == "body"


def test_a_pair_that_is_wrong_is_refused_with_its_value_and_its_fields() -> None:
    """As a field of the whole request would be."""
    error = refused(fields_of(**pairs_of({"prompt": [5]}, {"prompt": [5], "foil": 5.5})))
    assert (error.field, error.value) == ("pairs[1].foil", 5.5)
    assert error.allowed == "text or a list of token ids"
    assert str(error).startswith(
        "Expected `pairs[1].foil` to be text or a list of token ids, got 5"
    )

    error = refused(fields_of(**pairs_of({"prompt": [5], "hook": "z"})))
    assert "fields are prompt, source_run, clean_prompt" in error.allowed


IN_ORDER: list[tuple[dict[str, Any], str, str]] = [
    (
        {"answer_token_id": None, "answer_token": None},
        "answer_token",
        "given: it, `answer_token_id`",
    ),
    ({"metric": "logit_diff", "foil_token_id": None}, "foil_token", "given for logit_diff"),
    ({"hooks": []}, "hooks", "non-empty when provided"),
    ({"hooks": ["resid_pre", "nowhere"]}, "hooks", "resid_pre, resid_mid, resid_post"),
    ({"layers": [0, LAYERS]}, "layers", f"within 0..{LAYERS - 1}"),
    ({"answer_token_id": None, "answer_token": "w5 w6"}, "answer_token", "it is [5, 6]"),
    ({"positions": [{"span": "nowhere"}]}, "positions", "a span of the prompt's text"),
    ({"positions": []}, "positions", "at least one"),
]
"""The order in which requests are checked, with something wrong at each place."""


@pytest.mark.parametrize("place", range(len(IN_ORDER)))
def test_checks_come_in_the_order_of_the_protocol(place: int) -> None:
    """Of several faults the first is told, and it names what is allowed."""
    fields: dict[str, Any] = {}
    for wrong, _, _ in reversed(IN_ORDER[place:]):
        fields.update(wrong)
    _, field, allowed = IN_ORDER[place]

    error = refused(fields_of(**fields))

    assert error.field == field
    assert allowed in error.allowed


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"hook": "nowhere"}, "hook"),
    ({"hook": "z.9"}, "hook"),
    ({"layers": []}, "layers"),
    ({"layers": {"start": 2, "stop": 1}}, "layers"),
    ({"layers": {"start": 0, "stop": LAYERS + 1}}, "layers"),
    ({"layers": [-1]}, "layers"),
    ({"positions": [len(CORRUPT)]}, "positions"),
    ({"positions": [-1]}, "positions"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [5, 1000]}, "prompt"),
    ({"clean_prompt": [-5]}, "clean_prompt"),
    ({"prompt": [5] * 65}, "prompt"),
    ({"answer_token_id": 1000}, "answer_token_id"),
    ({"answer_token_id": None, "answer": []}, "answer"),
    ({"answer_token_id": None, "answer": [5, 6], "foil_token_id": 5}, "foil"),
    ({"source_run": ""}, "source_run"),
    ({"clean_prompt": None}, "source_run"),
    ({"source_runs": ["a"]}, "source_runs"),
    ({"vectors": []}, "vectors"),
    ({"latent": {"sae": "s", "index": 0}}, "latent"),
    ({"source": "latent", "latent": {"sae": "s", "index": 0}}, "latent"),
    ({"source": "latent"}, "latent"),
    ({"source": "vector", "clean_prompt": None}, "vectors"),
    ({"source": "zero"}, "clean_prompt"),
    ({"source": "mean", "clean_prompt": None}, "source_runs"),
    ({"source": "zero", "clean_prompt": None, "metric": "recovered"}, "metric"),
    ({"source": "zero", "clean_prompt": None, "metrics": ["kl", "recovered"]}, "metrics"),
    ({"metrics": []}, "metrics"),
    ({"metrics": ["logprob", "logit_diff"], "foil_token_id": None}, "foil_token"),
    ({"metric": "rank", "method": "attribution"}, "metric"),
    ({"metrics": ["logprob", "rank"], "method": "attribution"}, "metrics"),
    ({"metric": "kl", "method": "attribution", "source": "zero", "clean_prompt": None}, "metric"),
    ({"groups": {}}, "groups"),
    ({"groups": {"a": []}}, "groups.a"),
    ({"groups": {"a": [len(CORRUPT)]}}, "groups.a"),
    ({"groups": {"a": [0], "b": [-len(CORRUPT) - 1]}}, "groups.b"),
    ({"groups": {"a": [{"span": "nowhere"}]}}, "groups.a"),
    ({"groups": {"a": [0]}, "positions": [0]}, "positions"),
    ({"prompt": None}, "prompt"),
    ({"pairs": []}, "pairs"),
]

PAIR: dict[str, Any] = {"prompt": list(CORRUPT), "clean_prompt": list(CLEAN)}

WRONG_PAIRS: list[tuple[dict[str, Any], str]] = [
    ({"pairs": [PAIR]}, "prompt"),
    (pairs_of(PAIR, clean_prompt=[5]), "clean_prompt"),
    (pairs_of(PAIR, source_run="a"), "source_run"),
    (pairs_of(PAIR, positions=[0]), "positions"),
    (pairs_of(PAIR, alignment=[{"position": 0, "source_position": 0}]), "alignment"),
    (pairs_of(PAIR, {**PAIR, "prompt": []}), "pairs[1].prompt"),
    (pairs_of(PAIR, {**PAIR, "clean_prompt": [1000]}), "pairs[1].clean_prompt"),
    (pairs_of(PAIR, {**PAIR, "positions": [7]}), "pairs[1].positions"),
    (pairs_of(PAIR, {**PAIR, "positions": []}), "pairs[1].positions"),
    (pairs_of(PAIR, {**PAIR, "source_run": ""}), "pairs[1].source_run"),
    (pairs_of(PAIR, {"prompt": [5]}), "pairs[1].source_run"),
    (pairs_of(PAIR, {**PAIR, "answer": []}), "pairs[1].answer"),
    (pairs_of(PAIR, {**PAIR, "answer_token_id": 1000}), "pairs[1].answer_token_id"),
    (pairs_of(PAIR, {**PAIR, "answer": [5, 6]}, foil_token_id=5), "foil"),
    (pairs_of(PAIR, answer_token_id=1000), "answer_token_id"),
    (pairs_of(PAIR, answer_token_id=None), "pairs[0].answer_token"),
    (
        pairs_of({**PAIR, "foil_token_id": 5}, PAIR, metric="logit_diff", foil_token_id=None),
        "pairs[1].foil_token",
    ),
    (pairs_of(PAIR, {**PAIR, "groups": {"a": [0]}}), "pairs[1].groups"),
    (pairs_of({**PAIR, "groups": {"a": [0]}}, PAIR), "pairs[1].groups"),
    (
        pairs_of({**PAIR, "groups": {"a": [0]}}, {**PAIR, "groups": {"b": [0]}}),
        "pairs[1].groups",
    ),
    (pairs_of(PAIR, {**PAIR, "positions": [0]}, groups={"a": [0]}), "pairs[1].positions"),
    (pairs_of(PAIR, {**PAIR, "prompt": [5]}, groups={"a": [3]}), "pairs[1].groups.a"),
    (pairs_of(PAIR, {**PAIR, "positions": [0, 1]}), "pairs[1].positions"),
    (pairs_of(PAIR, PAIR, hook="nowhere"), "hook"),
    (pairs_of(PAIR, PAIR, source_runs=["a"]), "source_runs"),
    (pairs_of(PAIR, PAIR, source="zero"), "pairs[0].clean_prompt"),
    (pairs_of(PAIR, PAIR, metric="rank", method="attribution"), "metric"),
]


@pytest.mark.parametrize(("fields", "field"), [*OTHERS, *WRONG_PAIRS])
def test_what_does_not_fit_is_refused(fields: dict[str, Any], field: str) -> None:
    """The model, the prompt or another field; `recovered` needs a clean prompt."""
    error = refused(fields_of(**fields))

    assert error.field == field
    assert str(error).startswith(f"Expected `{field}` to be ")


@pytest.mark.parametrize("alpha", [float("inf"), float("nan")])
def test_alpha_is_finite(alpha: float) -> None:
    """In process a request can hold what JSON cannot."""
    request = msgspec.structs.replace(request_of(), alpha=alpha)

    with pytest.raises(RequestError, match="`alpha` to be a finite number"):
        plan_sweep(request, patchable(), limits=Limits(), saes={})


def test_a_hook_that_the_model_lacks_is_refused_with_the_reason() -> None:
    """A parallel residual has nothing between attention and MLP."""
    with pytest.raises(RequestError, match="parallel residual") as caught:
        plan_of(model=patchable("phi"), hook="resid_mid")
    assert "attn_out" in caught.value.allowed


def test_text_needs_a_tokenizer() -> None:
    """Without one, prompts and answers are token ids."""
    bare = patchable(tokenizer=False)
    for fields in ({"prompt": "w5"}, {"answer_token_id": None, "answer_token": "w5"}):
        with pytest.raises(RequestError, match="no tokenizer"):
            plan_of(model=bare, **fields)
    assert plan_of(model=bare).pairs[0].prompt.token_ids == CORRUPT


def test_an_answer_is_an_id_a_token_or_several() -> None:
    """An id wins over a token, and several tokens are forced one after the other."""
    assert target_of(answer_token_id=7, answer_token="w5 w6").answer_ids == (7,)
    assert target_of(answer_token_id=None, answer_token="w8").answer_ids == (8,)
    several = target_of(answer_token_id=None, answer="w8 w9", foil_token_id=None, foil=[3, 4])
    assert several.answer_ids == (8, 9)
    assert several.foil_ids == (3, 4)


def test_hooks_win_over_hook_and_count_once() -> None:
    """In the order in which they are given."""
    plan = plan_of(hook="nowhere", hooks=["z", "resid_pre", "z"])
    assert plan.hooks == ("z", "resid_pre")


def test_layers_are_a_list_a_range_or_all() -> None:
    """Each layer counts once, in the order given; a range leaves its end out."""
    assert plan_of(layers=[2, 0, 2]).layers == (2, 0)
    assert plan_of(layers={"start": 0, "stop": 3, "step": 2}).layers == (0, 2)
    assert plan_of(layers="all").layers == (0, 1, 2)


def test_positions_are_numbers_and_spans() -> None:
    """Each position counts once, in the order given; special tokens are in no span."""
    plan = plan_of(prompt="w5 w6 w7 w6", positions=[{"span": "w6", "occurrence": 1}, 2, 2, 4])
    assert plan.pairs[0].columns == ((4,), (2,))
    assert plan_of(prompt="w5 w6").pairs[0].columns == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    ("limits", "field", "estimate"),
    [
        (Limits(cells=20), "positions", "21 cells (1 hooks x 3 layers x 7 positions)"),
        (Limits(tokens=6), "prompt", "7 tokens"),
    ],
)
def test_what_is_too_much_is_refused_with_the_estimate(
    limits: Limits, field: str, estimate: str
) -> None:
    """Before anything is computed; a client can ask for less than the server allows, not more."""
    own = {"cells": limits.cells, "tokens": limits.tokens}
    for server, client in ((Limits(), own), (limits, {"cells": 10**9, "tokens": 10**9})):
        with pytest.raises(RequestError) as caught:
            plan_of(server=server, limits=client)
        assert caught.value.field == field
        assert estimate in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "estimate"),
    [
        (Limits(cells=41), "42 cells (1 hooks x 3 layers x 7 positions x 2 pairs)"),
        (Limits(tokens=13), "14 tokens in 2 prompts"),
    ],
)
def test_what_all_pairs_take_together_is_refused(limits: Limits, estimate: str) -> None:
    """Each of them alone is not."""
    assert plan_of(server=limits, **PAIR).pairs
    with pytest.raises(RequestError) as caught:
        plan_of(server=limits, **pairs_of(PAIR, PAIR))

    assert caught.value.field == "pairs"
    assert estimate in str(caught.value)


def test_clean_prompts_count_together_too() -> None:
    """As the patched ones do."""
    long = {"prompt": list(CORRUPT), "clean_prompt": [5] * 20}
    with pytest.raises(RequestError, match="40 tokens in 2 prompts"):
        plan_of(server=Limits(tokens=30), **pairs_of(long, long))


def test_an_answer_has_to_fit_behind_its_prompt() -> None:
    """The model has no positions for more tokens; its last one is not among them."""
    fields: dict[str, Any] = {"prompt": [5] * 60, "answer_token_id": None, "foil_token_id": None}
    assert target_of(**fields, answer=[6] * 5).length == 5

    with pytest.raises(RequestError, match="6 tokens after a prompt of 60") as caught:
        plan_of(**fields, answer=[6] * 6)
    assert (caught.value.field, caught.value.allowed[:20]) == ("answer", "at most 5 tokens lon")


def test_groups_are_columns_by_name() -> None:
    """In the order of the first pair; a pair without groups has those beside the pairs."""
    plan = plan_of(
        **pairs_of(
            {**PAIR, "groups": {"b": [1, 1, 0], "a": [-1]}},
            {**PAIR, "groups": {"a": [2], "b": [3]}},
        )
    )
    assert plan.names == ("b", "a")
    assert [pair.columns for pair in plan.pairs] == [((0, 1), (6,)), ((3,), (2,))]

    plan = plan_of(**pairs_of(PAIR, {**PAIR, "groups": {"a": [2]}}, groups={"a": [-7]}))
    assert [pair.columns for pair in plan.pairs] == [((0,),), ((2,),)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", '"a"'),
        ('say "a"', r'"say \"a\""'),
        ("one\ntwo", r'"one\ntwo"'),
        ("`a`", '"`a`"'),
        (5, "5"),
        (None, "nothing"),
        (["a", 5], '["a",5]'),
        ({"span": "a b"}, '{"span":"a b"}'),
    ],
)
def test_a_value_is_quoted_in_a_message(value: Any, shown: str) -> None:
    """Text is told from numbers and from what stands around it, and stays on one line."""
    message, _, _ = str(RequestError("hook", value, allowed="a hook")).partition(" - ")

    assert message == f"Expected `hook` to be a hook, got {shown}"
    assert "\n" not in message


def test_a_long_value_is_cut_in_the_message() -> None:
    """And whole in the error's value."""
    error = refused({**fields_of(), "metric": "x" * 1000})
    assert len(str(error)) < 700
    assert len(error.value) == 1000

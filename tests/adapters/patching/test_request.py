from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from adapters.patching.decoders import CORRUPT, LAYERS
from adapters.patching.served import fields_of, patchable, request_of
from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.plan import SweepPlan, plan_sweep
from aegir_adapters.patching.request import (
    LayerRange,
    PatchSweepRequest,
    RequestError,
    decode_request,
)


def plan_of(
    *, model: PatchableModel | None = None, server: Limits | None = None, **fields: Any
) -> SweepPlan:
    """Return the plan of a request."""
    model = model or patchable()
    return plan_sweep(request_of(**fields), model, limits=server or Limits(), saes={})


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
    "alpha": "1",
    "answer_token": 7,
    "answer_token_id": "w7",
    "answer": [1.5],
    "foil_token": ["w5"],
    "foil_token_id": 1.5,
    "foil": True,
    "metric": "accuracy",
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
]


@pytest.mark.parametrize(("fields", "field"), OTHERS)
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
    assert plan_of(model=bare).prompt.token_ids == CORRUPT


def test_an_answer_is_an_id_a_token_or_several() -> None:
    """An id wins over a token, and several tokens are forced one after the other."""
    assert plan_of(answer_token_id=7, answer_token="w5 w6").target.answer_ids == (7,)
    assert plan_of(answer_token_id=None, answer_token="w8").target.answer_ids == (8,)
    several = plan_of(answer_token_id=None, answer="w8 w9", foil_token_id=None, foil=[3, 4])
    assert several.target.answer_ids == (8, 9)
    assert several.target.foil_ids == (3, 4)


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
    assert plan.positions == (4, 2)
    assert plan_of(prompt="w5 w6").positions == (0, 1, 2)


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


def test_a_long_value_is_cut_in_the_message() -> None:
    """And whole in the error's value."""
    error = refused({**fields_of(), "metric": "x" * 1000})
    assert len(str(error)) < 700
    assert len(error.value) == 1000

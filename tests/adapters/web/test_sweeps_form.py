"""The form that asks for a sweep."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.sweep_form import blamed, form_of, read_form
from aegir_adapters.web.sweep_order import SweepOrder

GOOD: dict[str, str | list[str]] = {
    "checkpoint": "checkpoint-4",
    "prompt": "41 62 =>",
    "clean_prompt": "41 20 =>",
    "answer": " SPACE",
    "foil": "",
    "hooks": ["resid_pre", "z"],
    "layers": " 0:4, -1 ",
    "positions": "",
    "metric": "",
}


def read(**changed: str | list[str]) -> tuple[SweepOrder, dict[str, str]]:
    """Read a form that is good but for what is changed."""
    form = read_form(urlencode(GOOD | changed, doseq=True).encode(), ["checkpoint-4"])
    return form.order, form.errors


def test_what_was_typed_is_kept_as_it_is() -> None:
    """Spaces of prompts and answers belong to tokens; other fields have their usual values."""
    order, errors = read()
    assert errors == {}
    assert order == SweepOrder(
        checkpoint="checkpoint-4",
        prompt="41 62 =>",
        clean_prompt="41 20 =>",
        answer=" SPACE",
        hooks=("resid_pre", "z"),
        layers="0:4, -1",
        positions="all",
    )
    assert read(prompt="a\r\nb")[0].prompt == "a\nb"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", "x" * 20_001),
        ("prompt", "a\0b"),
        ("clean_prompt", "x" * 20_001),
        ("answer", ""),
        ("foil", "x" * 1001),
        ("checkpoint", "checkpoint-5"),
        ("checkpoint", "../../etc"),
        ("hooks", []),
        ("hooks", ["resid_pre", "--zero"]),
        ("layers", "1-3"),
        ("layers", "0;ls"),
        ("positions", "::0"),
        ("metric", "loss"),
        ("latent", "2"),
        ("latent", "2:448; ls"),
        ("prompt_ids", "1,2"),
        ("clean_ids", "x"),
        ("foil_ids", "1,,-2"),
        ("foil_ids", "1," * 60_000),
        ("groups", "a\0=1"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field(field: str, value: str | list[str]) -> None:
    """And beside no other."""
    assert list(read(**{field: value})[1]) == [field]


def test_metrics_say_what_they_need() -> None:
    """A difference needs a foil, and a share two prompts."""
    assert list(read(metric="logit_diff")[1]) == ["foil"]
    assert list(read(metric="recovered", clean_prompt="")[1]) == ["clean_prompt"]
    assert list(read(metric="logprob", clean_prompt="")[1]) == []


def test_token_ids_stand_in_the_place_of_text() -> None:
    """Beside it they are refused; alone they are enough, for what needs a foil as well."""
    ids = {"prompt": "", "prompt_ids": " 1, 2 3 ", "answer": "", "answer_ids": "4"}
    order, errors = read(**ids, metric="logit_diff", foil_ids="5", clean_prompt="")
    assert errors == {}
    assert (order.prompt_ids, order.answer_ids, order.foil_ids) == ("1, 2 3", "4", "5")
    shares = read(**ids, metric="recovered", clean_prompt="", clean_ids="1,2,9")
    assert shares[1] == {}
    assert list(read(answer_ids="4")[1]) == ["answer_ids"]


def test_a_latent_says_where_it_is() -> None:
    """Whatever hooks and layers are ticked beside it; groups likewise say which positions."""
    order, errors = read(latent=" 2:448 ", hooks=["resid_pre"], layers="nowhere")
    assert errors == {}
    assert (order.latent, order.hooks, order.layers) == ("2:448", (), "")
    order, errors = read(groups="subject=1:3;last=-1", positions="0:2")
    assert errors == {}
    assert (order.groups, order.positions) == ("subject=1:3;last=-1", "all")


def test_a_preview_needs_a_gradient() -> None:
    """A rank has none."""
    assert read(preview="1")[0].preview
    assert not read(preview="")[0].preview
    assert list(read(preview="1", metric="rank")[1]) == ["metric"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_form(body: bytes) -> None:
    """What no browser sends is an error beside a field, and no failure."""
    assert read_form(body, []).errors


@pytest.mark.parametrize(
    ("error", "field"),
    [
        ("Expected `foil` to be as many tokens as the answer has: 2, got [1]", "foil"),
        ("Expected `answer_token` to be exactly one token", "answer"),
        ("Expected `clean_prompt` to be at most 256 tokens long", "clean_prompt"),
        ("Expected `hook` to be one of z", "hooks"),
        ("Expected `layers` to be all, got 9", "layers"),
        ("Expected `prompt_ids` to be token ids", "prompt_ids"),
        ("Expected `groups` to be NAME=POSITIONS", "groups"),
        ("Expected `sae` beside `latent` alone", "latent"),
        ("Expected `bytes` to be few", ""),
        ("Killed", ""),
    ],
)
def test_an_error_of_the_sweep_stands_beside_its_field(error: str, field: str) -> None:
    """The first name that an error quotes is the field's, or the service's name for it."""
    assert blamed(error) == field
    assert form_of(SweepOrder(), error).errors == {field: error}
